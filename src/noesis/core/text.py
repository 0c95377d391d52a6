"""Texts compared as a reader would, searched for control tokens, and put into templates without trusting them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Texts are hostile: every repetition that may fail after it has an upper bound, so that a search takes linear time
# (tests/hostile/test_patterns.py measures each pattern of the package).
# What a chat template turns into the boundary of a message. A dataset must not be able to forge one.
_FRAMES = (  # of no use but to frame messages
    r"<\|(?![a-z]+[A-Z])[A-Za-z0-9_:.-]{2,40}\|>"  # <|im_start|>, <|eot_id|>; camel case is a function's
    r"|<\|\s{0,3}(?:[a-z]{1,20}_[a-z_]{1,20}|system|user|assistant|end|endoftext)\s{0,3}\|>"  # misspelt: <|im_end |>
    r"|<\|(?:turn|channel|tool\w{0,20})>|<(?:turn|channel|tool\w{0,20})\|>|<(?:start|end)_of_turn>"  # Gemma's
    r"|<｜[^｜\n]{2,40}｜>"  # DeepSeek's, with full-width bars
    r"|\[\|[A-Za-z_]{2,40}\|\]|\]~!?b[\[\]]|\[e~\[|<role>[A-Z]{4,9}</role>"  # EXAONE's, MiniMax's, Ling's
    r"|<</?SYS>>|\[(?:/?SYSTEM_PROMPT|/?AVAILABLE_TOOLS)\]|\[INST\](?=[^\[\]]{0,2000}\[/INST\])"
)
_NAMES = r"\[/?INST\]|</?s>|<(?:bos|eos|pad|unk)>"  # those of some models that texts speak of too
_FRAME, NAMED_TOKEN = re.compile(_FRAMES), re.compile(_NAMES)
_UNSEEN = re.compile("[\u00ad\u2060\ufeff]")
CONTROL_TOKEN = re.compile(rf"{_FRAMES}|{_NAMES}|\[(?:gMASK|MASK|CLS|SEP)\]")
LONGEST_TOKEN = 200  # characters
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"”»)]?\s+")
_WORD = re.compile(r"\w+")
_FIELD = re.compile(r"\{(\w+)\}")
_MARKS = re.compile(r"<{2,}|>{2,}")


def control_token(text: str, special: re.Pattern[str] | None = None) -> str | None:
    """The first token in `text` that could forge a turn; None if there is none.

    Those that only frame messages count for every model, also in compatibility characters (full-width ones), or with
    soft hyphens and the like inside. Those that texts speak of too, such as `<s>` and `[INST]`, count for the models
    that have them.

    Args:
        special: matches the tokens of the model, from `any_of`; None: the model is not known and may have all of them.
    """
    forms = [text]
    if _UNSEEN.search(text) or not unicodedata.is_normalized("NFKC", text):
        forms.append(unicodedata.normalize("NFKC", _UNSEEN.sub("", text)))
    for form in forms:
        match = _FRAME.search(form) if "<" in form or "[" in form or "]~" in form else None
        if match := match or (special or NAMED_TOKEN).search(form):
            return match.group()[:LONGEST_TOKEN]
    return None


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


def break_control_tokens(text: str, special: re.Pattern[str] | None = None) -> str:
    """`text` with a space inside each chat-template token, so that no tokenizer reads it as one.

    Args:
        special: matches the model's own tokens, from `any_of`; those of known models are always broken up.
    """
    for pattern in (CONTROL_TOKEN, special):
        while pattern is not None and pattern.search(text):  # a break may leave another token: "<</s></s>"
            text = pattern.sub(lambda m: m[0][0] + " " + m[0][1:], text)
    return text


def any_of(tokens: Iterable[str], *, breakable: bool = True) -> re.Pattern[str]:
    """A pattern of the longest of a model's `tokens` at each place of a text.

    The pattern is a tree: trying thousands of tokens one by one at each `<` takes minutes. Tokens of more than 200
    characters are left out: no tokenizer has them.

    Args:
        breakable: leave out what a space can't break up too: tokens of one character, or with white space.
    """
    tree: dict[str, Any] = {}
    for token in tokens:
        if 0 < len(token) <= LONGEST_TOKEN and not (breakable and (len(token) == 1 or any(map(str.isspace, token)))):
            node = tree
            for char in token:
                node = node.setdefault(char, {})
            node[""] = {}
    return re.compile(_branches(tree) if tree else r"(?!)")


def _branches(node: dict[str, Any]) -> str:
    follow = [re.escape(char) + _branches(after) for char, after in node.items() if char]
    if "" not in node and len(follow) == 1:
        return follow[0]
    return f"(?:{'|'.join(follow)}){'?' if '' in node else ''}" if follow else ""


def common_prefix(a: Sequence[object], b: Sequence[object]) -> int:
    """How many items (characters, tokens) two sequences begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def slug_of(text: str) -> str:
    """ASCII letters, digits and single hyphens of `text`, in lower case; may be empty."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")
