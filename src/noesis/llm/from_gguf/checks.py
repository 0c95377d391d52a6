"""What can't be a base model, seen from a GGUF file's head: each in one message, before anything is written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from noesis.core.families.shape import Shape
from noesis.core.i18n import _
from noesis.llm.from_gguf.config import CLASSES, DAMAGED, refused
from noesis.llm.from_gguf.tokenizer import TEMPLATE
from noesis.llm.gguf.families import config_of, gguf_name, name_map
from noesis.llm.gguf.header import BLOCKS, GgufHeader
from noesis.llm.gguf.rope import rope_tensors

PART = re.compile(r"\A(.*)-\d{5}-of-(\d{5})\.gguf", re.IGNORECASE)


def check_kind(file: Path, known: dict[str, Any]) -> None:
    """Refuse a GGUF file that is not a whole text model, by what it is."""
    _refuse_part(file, known)
    kind, arch = known.get("general.type", "model"), known.get("general.architecture")
    if kind == "adapter" or "adapter.type" in known:
        raise refused(file, _("it is a LoRA adapter"), _("give the model that it was trained on"))
    if kind in ("mmproj", "projector") or arch == "clip":
        raise refused(
            file, _("it is the vision or audio part of a model (mmproj)"), _("give the file of the text model")
        )
    if kind != "model":
        raise refused(file, _("it is of the type {kind!r:.40}", kind=kind), DAMAGED)
    if not isinstance(arch, str) or arch not in CLASSES:
        raise refused(
            file, _("its architecture is {arch!r:.40}; here {classes} are read", arch=arch, classes=", ".join(CLASSES))
        )


def _refuse_part(file: Path, known: dict[str, Any]) -> None:
    named, told = PART.fullmatch(file.name), known.get("split.count", 1)
    if named is None and told in (0, 1):
        return
    stem, count = (named.group(1), int(named.group(2))) if named else (file.stem, told)
    if not isinstance(count, int) or not 0 < count < 100_000:
        raise refused(file, _("split.count is {told!r:.40}", told=told), DAMAGED)
    first = f"{stem}-00001-of-{count:05d}.gguf"
    raise refused(
        file,
        _(
            "it is one of {count} parts, {first} to {stem}-{count:05d}-of-{count:05d}.gguf",
            count=count,
            first=first,
            stem=stem,
        ),
        _("join them with llama.cpp's  llama-gguf-split --merge {first} {stem}.gguf", first=first, stem=stem),
    )


def check_content(file: Path, header: GgufHeader) -> None:
    """Refuse a model without chat template, with another kind of vocabulary, or in a type that can't be read."""
    import gguf
    import numpy as np

    known = header.metadata
    template = known.get(TEMPLATE)
    if not isinstance(template, str) or not template.strip():
        raise refused(file, _("it has no chat template"), _("take the instruct version of the model"))
    if (kind := known.get("tokenizer.ggml.model")) not in ("gpt2", "llama"):
        raise refused(file, _("its tokenizer is of the kind {kind!r:.40}", kind=kind))
    vocabulary = header.tensors.get("token_embd.weight", ((0, 0), 0))[0][-1]
    if vocabulary != len(known["tokenizer.ggml.tokens"]):
        tokens = len(known["tokenizer.ggml.tokens"])
        raise refused(
            file,
            _(
                "it has {tokens:,} tokens and {vocabulary:,} rows of token_embd.weight",
                tokens=tokens,
                vocabulary=vocabulary,
            ),
            DAMAGED,
        )
    for number in sorted({kind for _size, kind in header.tensors.values()}):
        name = gguf.GGMLQuantizationType(number).name
        try:
            gguf.quants.dequantize(np.zeros((1, BLOCKS[number][1]), np.uint8), gguf.GGMLQuantizationType(number))
        except NotImplementedError:
            raise refused(
                file, _("it has tensors of the type {name}, which can't be dequantised here", name=name)
            ) from None


def check_tensors(file: Path, header: GgufHeader, raw: dict[str, Any]) -> None:
    """Refuse a model that lacks a tensor, or has one more than its architecture: transformers would make up the first
    and leave out the second.

    Args:
        raw: the content of config.json.
    """
    config = config_of(raw, file)
    names = name_map(config)
    expected = {gguf_name(names, name, config) for name in _names(config.shape)} | set(rope_tensors(config.rope))
    if lost := sorted(expected - header.tensors.keys()):
        raise refused(file, _("it lacks the tensor {lost}", lost=lost[0]), DAMAGED)
    if more := sorted(header.tensors.keys() - expected):
        raise refused(file, _("it has the tensor {more!r:.80}, which its architecture does not have", more=more[0]))


def _names(shape: Shape) -> Iterator[str]:
    """Hugging Face's names of a model's tensors."""
    parts = shape.parts
    blocks = {"qkv": "self_attn", "o": "self_attn", "gate_up": "mlp", "down": "mlp"}
    own = [
        f"{blocks[group]}.{name}.{kind}"
        for group, names in parts.groups.items()
        for name in names
        for kind in ("weight", *(("bias",) if group in parts.biases else ()))
    ]
    norms = [*parts.input_norms, *parts.output_norms]
    norms += ["self_attn.q_norm", "self_attn.k_norm"] if parts.head_norms else []
    for i in range(shape.layers):
        yield from (f"model.layers.{i}.{name}" for name in (*own, *(f"{norm}.weight" for norm in norms)))
    yield from ("model.embed_tokens.weight", "model.norm.weight", *(() if shape.tied else ("lm_head.weight",)))
