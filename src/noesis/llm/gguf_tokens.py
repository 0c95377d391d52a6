"""The tokens of a GGUF file that no text may contain: llama.cpp reads them in any text of a conversation.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md . The gguf package's reader needs seconds for a vocabulary.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

from noesis.core.errors import ModelError

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # llama.cpp's types of tokens that are found in texts before tokenising
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
WANTED = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.chat_template")


def special_tokens(file: Path) -> frozenset[str]:
    """The control and unknown tokens of `file`, and those of its own definition that its chat template writes.

    Raises:
        ModelError: the file's metadata can't be read.
    """
    try:
        with open(file, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = _Metadata(content).read()
        tokens, types, template = (found.get(name) for name in WANTED)
        return frozenset(
            token
            for token, kind in (zip(tokens, types, strict=True) if tokens and types else ())
            if kind in (CONTROL, UNKNOWN) or (kind == USER_DEFINED and token in (template or ""))
        )
    except (OSError, ValueError, TypeError, struct.error) as error:
        raise ModelError(f"{file}: its metadata can't be read ({error}): make it again with  noesis gguf") from None


class _Metadata:
    """Reads the wanted values; nothing is believed to be longer than the file."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._at = content, 8

    def read(self) -> dict[str, Any]:
        self._scalar("Q")  # tensors
        found: dict[str, Any] = {}
        for _ in range(self._scalar("Q")):
            name, kind = self._string(), self._scalar("I")
            value = self._value(kind, wanted=name in WANTED)
            if name in WANTED:
                found[name] = value
            if len(found) == len(WANTED):
                break
        return found

    def _value(self, kind: int, *, wanted: bool) -> Any:
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._scalar(SCALARS.get(kind, "?"))
        inner, count = self._scalar("I"), self._scalar("Q")
        if inner == STRING:
            values = (self._string() for _ in range(count))
            return list(values) if wanted else sum(1 for _ in values)
        if inner not in SCALARS:
            raise ValueError(f"an array of type {inner}")
        size = struct.calcsize("<" + SCALARS[inner])
        raw = self._bytes(count * size)
        return struct.unpack(f"<{count}{SCALARS[inner]}", raw) if wanted else None

    def _scalar(self, form: str) -> Any:
        return struct.unpack("<" + form, self._bytes(struct.calcsize("<" + form)))[0]

    def _string(self) -> str:
        return self._bytes(self._scalar("Q")).decode(errors="replace")

    def _bytes(self, count: int) -> bytes:
        if count > len(self._content) - self._at:
            raise ValueError("it is truncated")
        self._at += count
        return self._content[self._at - count : self._at]
