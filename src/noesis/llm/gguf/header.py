"""The head of a GGUF file, read without trust: every count, length and offset is checked against the file's size, and
what llama.cpp divides by or allocates for is checked before llama.cpp sees it.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noesis.core.console import command
from noesis.core.errors import ModelError
from noesis.core.i18n import N_, _

REMAKE = N_("make it again with  {command}", command=command("gguf", "RUN", "--again"))
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# ggml's types of tensors: id → (weights in a block, bytes of a block); a type that llama.cpp dropped is not listed
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2),
    26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
    40: (64, 36), 41: (128, 18),
}  # fmt: skip
MOST_KEYS, MOST_TENSORS = 10_000, 200_000
MOST_ITEMS = 4_000_000  # of all lists together; the largest vocabularies have 262,000 tokens in three lists, and merges
LONGEST_NAME, LONGEST_TEXT = 256, 4_000_000  # bytes: of a key or tensor; of any other text
TENSOR_DIMENSIONS, LARGEST_DIMENSION = 4, 1 << 31
LARGEST_ALIGNMENT = 1 << 16
NO_TOKEN = 0xFFFFFFFF
# What an architecture's numbers may be, by the end of their key. Many may also be lists, one number a layer.
BOUNDS = {
    "block_count": (1, 2_000),
    "context_length": (1, 1 << 28),
    "embedding_length": (1, 1 << 20),
    "feed_forward_length": (0, 1 << 22),
    "attention.head_count": (0, 1 << 14),
    "attention.head_count_kv": (0, 1 << 14),
    "attention.key_length": (1, 1 << 14),
    "attention.value_length": (1, 1 << 14),
    "rope.dimension_count": (0, 1 << 14),
    "vocab_size": (1, MOST_ITEMS),
    "expert_count": (0, 10_000),
    "expert_used_count": (0, 10_000),
}
NEEDED = ("block_count", "context_length", "embedding_length", "attention.head_count")
PER_LAYER = ("feed_forward_length", "attention.head_count", "attention.head_count_kv")


@dataclass(frozen=True)
class GgufHeader:
    """metadata: key → value; tensors: name → (shape, type)."""

    metadata: dict[str, Any]
    tensors: dict[str, tuple[tuple[int, ...], int]]


def read_header(file: Path, *, remedy: str = REMAKE, refuse: Callable[[GgufHeader], None] | None = None) -> GgufHeader:
    """Read and check the head of `file`; a large vocabulary takes some tenths of a second.

    Args:
        remedy: what to do about a damaged file, for messages.
        refuse: called before the metadata are checked as a model's; raises for files of another kind.

    Raises:
        ModelError: the file is missing, not GGUF, cut short, or names what no model has.
    """
    if not file.is_file():
        made = _("make it with  {command}", command=command("gguf", "RUN")) if remedy is REMAKE else remedy
        raise ModelError(_("{file} does not exist: {made}", file=file, made=made))
    with open(file, "rb") as f:
        head = f.read(8)
    if head[:4] != b"GGUF" or int.from_bytes(head[4:8], "little") not in (2, 3):
        raise ModelError(
            _("{file} is not a GGUF file (it begins with {head!r}); {remedy}", file=file, head=head[:4], remedy=remedy)
        )
    try:
        with open(file, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
            header = _Reader(content).read()
        if refuse is not None:
            refuse(header)
        _check_metadata(header)
    except (ValueError, struct.error) as error:
        raise ModelError(
            _("can't load {file}: {error}; it is damaged or hostile; {remedy}", file=file, error=error, remedy=remedy)
        ) from None
    return header


class _Reader:
    """Reads on from a position; nothing is believed to be longer than the file."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._at, self._items = content, 8, 0

    def read(self) -> GgufHeader:
        tensors, keys = self._count(MOST_TENSORS, "tensors"), self._count(MOST_KEYS, "keys")
        metadata: dict[str, Any] = {}
        for _ignored in range(keys):
            name = self._text(LONGEST_NAME)
            if name in metadata:
                raise ValueError(_("the key {name!r} is there twice", name=name))
            metadata[name] = self._value(self._scalar("I"), nested=False)
        places = [self._tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 8 <= alignment <= LARGEST_ALIGNMENT or alignment & (alignment - 1):
            raise ValueError(_("its alignment is {alignment!r}", alignment=alignment))
        begin = -(-self._at // alignment) * alignment
        found: dict[str, tuple[tuple[int, ...], int]] = {}
        for name, shape, kind, offset, size in places:
            if name in found:
                raise ValueError(_("the tensor {name!r} is there twice", name=name))
            if offset % alignment or begin + offset + size > len(self._content):
                raise ValueError(_("the tensor {name!r} lies outside of the file", name=name))
            found[name] = (shape, kind)
        return GgufHeader(metadata, found)

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int, int]:
        """(name, shape, type, offset, bytes)"""
        name, dimensions = self._text(LONGEST_NAME), self._scalar("I")
        if not 1 <= dimensions <= TENSOR_DIMENSIONS:
            raise ValueError(_("the tensor {name!r} has {dimensions} dimensions", name=name, dimensions=dimensions))
        shape = tuple(self._scalar("Q") for _ in range(dimensions))
        if any(not 1 <= length < LARGEST_DIMENSION for length in shape):
            raise ValueError(_("the tensor {name!r} has the shape {shape}", name=name, shape=shape))
        kind, offset = self._scalar("I"), self._scalar("Q")
        if kind not in BLOCKS:
            raise ValueError(_("the tensor {name!r} is of an unknown type, {kind}", name=name, kind=kind))
        weights, size = BLOCKS[kind]
        if shape[0] % weights:
            raise ValueError(
                _(
                    "the tensor {name!r} of rows of {shape} can't be in blocks of {weights}",
                    name=name,
                    shape=shape[0],
                    weights=weights,
                )
            )
        return name, shape, kind, offset, math.prod(shape) // weights * size

    def _value(self, kind: int, *, nested: bool) -> Any:
        if kind == STRING:
            return self._text(LONGEST_TEXT)
        if kind != ARRAY:
            return self._scalar(_form(kind))
        if nested:
            raise ValueError(_("it has lists within lists"))
        inner, count = self._scalar("I"), self._count(MOST_ITEMS - self._items, _("items of lists"))
        self._items += count
        if inner in (STRING, ARRAY):
            return [self._value(inner, nested=True) for _ in range(count)]
        form = _form(inner)
        return list(struct.unpack(f"<{count}{form}", self._bytes(count * struct.calcsize("<" + form))))

    def _count(self, most: int, what: str) -> int:
        count = int(self._scalar("Q"))
        if count > most:
            raise ValueError(_("it claims to have {count:,} {what}", count=count, what=what))
        return count

    def _scalar(self, form: str) -> Any:
        return struct.unpack("<" + form, self._bytes(struct.calcsize("<" + form)))[0]

    def _text(self, most: int) -> str:
        length = self._scalar("Q")
        if length > most:
            raise ValueError(_("a text claims to have {length:,} bytes", length=length))
        return self._bytes(length).decode(errors="replace")

    def _bytes(self, count: int) -> bytes:
        if count > len(self._content) - self._at:
            raise ValueError(_("it is cut short"))
        self._at += count
        return self._content[self._at - count : self._at]


def _form(kind: int) -> str:
    if kind not in SCALARS:
        raise ValueError(_("a value is of an unknown type, {kind}", kind=kind))
    return SCALARS[kind]


def _check_metadata(header: GgufHeader) -> None:
    """Raises ValueError where a number is one that no model has."""
    known = header.metadata
    architecture = known.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise ValueError(_("it names no architecture"))
    for ending, (least, most) in BOUNDS.items():
        key = f"{architecture}.{ending}"
        values = known.get(key)
        for value in values if isinstance(values, list) and ending in PER_LAYER else [values]:
            if value is not None and (type(value) is not int or not least <= value <= most):
                raise ValueError(_("{key} is {value!r}", key=key, value=value))
    if known.get("general.type", "model") == "adapter":
        return
    for ending in NEEDED:
        if f"{architecture}.{ending}" not in known:
            raise ValueError(_("{architecture}.{ending} is missing", architecture=architecture, ending=ending))
    layers = known[f"{architecture}.block_count"]
    for ending in PER_LAYER:
        values = known.get(f"{architecture}.{ending}")
        if isinstance(values, list) and len(values) != layers:
            raise ValueError(
                _(
                    "{architecture}.{ending} has {values} items for {layers} layers",
                    architecture=architecture,
                    ending=ending,
                    values=len(values),
                    layers=layers,
                )
            )
    heads = known[f"{architecture}.attention.head_count"]
    if heads == 0 or (isinstance(heads, list) and not any(heads)):
        raise ValueError(_("{architecture}.attention.head_count is 0", architecture=architecture))
    _check_vocabulary(known)


def _check_vocabulary(known: dict[str, Any]) -> None:
    tokens = known.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise ValueError(_("it has no list of tokens"))
    for name, kind in (("scores", float), ("token_type", int)):
        values = known.get(f"tokenizer.ggml.{name}")
        if values is not None and not (isinstance(values, list) and len(values) == len(tokens)):
            raise ValueError(
                _(
                    "tokenizer.ggml.{name} does not have one item for each of {tokens:,} tokens",
                    name=name,
                    tokens=len(tokens),
                )
            )
        if values and not all(type(value) is kind for value in values):
            raise ValueError(_("tokenizer.ggml.{name} holds what is not a number", name=name))
    for key, value in known.items():
        if (
            key.startswith("tokenizer.ggml.")
            and key.endswith("_token_id")
            and value != NO_TOKEN
            and (type(value) is not int or not 0 <= value < len(tokens))
        ):
            raise ValueError(
                _("{key} is {value!r}, and there are {tokens:,} tokens", key=key, value=value, tokens=len(tokens))
            )
