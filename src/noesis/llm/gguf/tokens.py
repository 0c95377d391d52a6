"""The tokens of a GGUF file that no text may contain: llama.cpp reads them in any text of a conversation."""

from __future__ import annotations

from pathlib import Path

from noesis.llm.gguf.header import read_header

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # llama.cpp's types of tokens that are found in texts before tokenising


def special_tokens(file: Path) -> frozenset[str]:
    """The control and unknown tokens of `file`, and those of its own definition that its chat template writes.

    Raises:
        ModelError: as `read_header`.
    """
    known = read_header(file).metadata
    tokens, types = known.get("tokenizer.ggml.tokens", []), known.get("tokenizer.ggml.token_type", [])
    template = str(known.get("tokenizer.chat_template") or "")
    return frozenset(
        token
        for token, kind in zip(tokens, types, strict=False)
        if kind in (CONTROL, UNKNOWN) or (kind == USER_DEFINED and token in template)
    )
