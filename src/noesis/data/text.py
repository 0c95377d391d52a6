"""Small questions asked of text: what is hidden in it, and when two texts are the same to a reader."""

from __future__ import annotations

import re
import unicodedata

# What a chat template turns into the boundary of a message. A data set must not be able to forge one.
CONTROL_TOKEN = re.compile(
    r"<\|[A-Za-z0-9_]{2,40}\|>"  # <|im_start|>, <|eot_id|>, <|endoftext|>
    r"|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>|\[(?:gMASK|MASK|CLS|SEP)\]"
)
PLACEHOLDER = re.compile(
    r"\{\{?\s*[A-Za-zÀ-ÿ_][\wÀ-ÿ .-]{0,40}\}?\}"  # {concept}, {{ name }}
    r"|\[(?:TODO|FIXME|TBD|INSERT[^\]]*|INSERIR[^\]]*|PREENCHER[^\]]*)\]"
    r"|<(?:insert|inserir|your|seu|sua|todo)\b[^>]{0,60}>"
    r"|\blorem ipsum\b",
    re.IGNORECASE,
)


def invisible(text: str) -> str | None:
    """The name of the first zero-width, bidirectional or control character in `text`, None if there is none."""
    if text.isascii() and text.isprintable():
        return None
    for character in text:
        if unicodedata.category(character) in ("Cf", "Cc", "Co", "Cs") and character not in "\n\t":
            return unicodedata.name(character, f"U+{ord(character):04X}")
    return None


def normalised(text: str) -> str:
    """`text` as far as a reader tells texts apart: no case, no punctuation, single spaces."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))
