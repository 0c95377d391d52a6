"""Texts compared as a reader would, searched for control tokens, and put into templates without trusting them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

# What a chat template turns into the boundary of a message. A dataset must not be able to forge one.
CONTROL_TOKEN = re.compile(
    r"<\|[A-Za-z0-9_]{2,40}\|>"  # <|im_start|>, <|eot_id|>, <|endoftext|>
    r"|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>"
    r"|\[(?:gMASK|MASK|CLS|SEP|/?SYSTEM_PROMPT|/?AVAILABLE_TOOLS)\]"
    r"|<｜[^｜\n]{2,40}｜>"  # DeepSeek's, with full-width bars
)
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"”»)]?\s+")
_WORD = re.compile(r"\w+")
_FIELD = re.compile(r"\{(\w+)\}")
_MARKS = re.compile(r"<{2,}|>{2,}")


def control_token(text: str, special: re.Pattern[str] | None = None) -> str | None:
    """The first chat-template token in `text`, of any known model or matched by `special`; None if there is none."""
    if ("<" in text or "[" in text) and (match := CONTROL_TOKEN.search(text)):
        return match.group()
    return match.group() if special and (match := special.search(text)) else None


def normalised(text: str) -> str:
    """`text` without case and punctuation and with single spaces, to compare texts as a reader would."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def closing(text: str) -> str:
    """The last sentence of `text`; empty if its last 300 characters don't end in a sentence of 3 to 40 words."""
    tail = text.rstrip()[-300:]
    last = _SENTENCE_END.split(tail.replace("\n", ". "))[-1]
    return last if 3 <= len(last.split()) <= 40 and len(last) < len(tail) else ""


def counted(count: int, noun: str) -> str:
    """`count` of something, for a message: "1 row", "1,024 rows"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def fill_template(template: str, values: Mapping[str, str]) -> str:
    """Put `values` into the `{fields}` of `template` in one pass: braces inside a value are never read as a field."""
    return _FIELD.sub(lambda m: values[m[1]], template)


def neutralise(text: str) -> str:
    """`text` without what could end its place in the prompt: copies of the marks, and control tokens of templates."""
    return break_control_tokens(_MARKS.sub(lambda m: m[0].replace("<", "‹").replace(">", "›"), text))


def break_control_tokens(text: str) -> str:
    """`text` with a space inside each chat-template token, so that no tokenizer reads it as one."""
    return CONTROL_TOKEN.sub(lambda m: m[0][0] + " " + m[0][1:], text)


def common_prefix(a: Sequence[object], b: Sequence[object]) -> int:
    """How many items (characters, tokens) two sequences begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
