"""What a model thinks before it answers, where the reply itself holds it: told by the marks of known families.

Servers and templates keep thoughts apart only where they know the family. Else a reply begins with a thought, or (where
the template wrote the mark that begins it) has only the mark that ends it. All readers of replies use this module.
"""

from __future__ import annotations

import re

_NAME = r"(?:[a-z]{2,20}[:_])?(?:think(?:ing)?|thoughts?|reasoning)"
# What begins a thought, what ends it: tags of many (also seed:think, mm:think), Magistral, Kimi, OpenThinker, Cohere,
# Gemma, MedGemma, and gpt-oss, whose thoughts end where the final channel begins.
_FAMILIES = (
    (rf"<{_NAME}(?:\s[^<>]{{0,80}})?>", rf"</{_NAME}>"),
    (r"\[THINK\]", r"\[/THINK\]"),
    ("◁think▷", "◁/think▷"),
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
    (r"<\|channel>thought", r"<channel\|>"),
    ("<unused94>thought", "<unused95>"),
    (
        r"(?:<\|start\|>assistant)?<\|channel\|>(?!\s?final)",
        r"(?:<\|start\|>assistant)?<\|channel\|>\s?final[^<]{0,40}(?:<\|constrain\|>[^<]{0,40})?<\|message\|>",
    ),
)
_OPENING = re.compile("|".join(f"({begin})" for begin, _ in _FAMILIES), re.IGNORECASE)
_END_OF_CHANNEL = r"<\|end\|>(?!\s?<\|start\|>)"  # of gpt-oss under a grammar, which lets no header follow
_ENDS = [re.compile(end, re.IGNORECASE) for _, end in _FAMILIES[:-1]]
_ENDS.append(re.compile(f"{_FAMILIES[-1][1]}|{_END_OF_CHANNEL}", re.IGNORECASE))
_CLOSING = re.compile("|".join(end for _, end in _FAMILIES), re.IGNORECASE)
_SPACE, _INDENT = re.compile(r"\s*"), re.compile(r"[ \t]*")
_SCAN = re.compile(
    rf'(?P<skip>\\.)|(?P<fence>```)|(?P<code>`)|(?P<quote>")|(?P<line>\n)|(?P<begin>{_OPENING.pattern})'
    rf"|(?P<end>{_CLOSING.pattern})",
    re.IGNORECASE,
)
_BARE_CHANNELS = re.compile(r"\s{0,100}analysis(?=[^\s\w]|[A-Z]).*?assistant\s?final", re.DOTALL)
_TURN_END = re.compile(r"<\|(?:end|return|call)\|>")
_BEFORE_QUOTED = "'‘’“”«»‹(["


def without_thought(text: str) -> str:
    """The answer in a reply: what follows the thoughts that it begins with; empty where they do not end.

    A mark in mid-answer, in quotation marks or in code is text. Linear time.
    """
    at = _answer_begins(text)
    if at is None:
        return ""
    answer = text[at:]
    return _TURN_END.split(answer, maxsplit=1)[0] if "<|channel|>" in text[:at] else answer


def has_thought_mark(text: str) -> bool:
    """Whether a mark of thoughts stands anywhere in `text`."""
    return bool(_OPENING.search(text) or _CLOSING.search(text))


def _answer_begins(text: str) -> int | None:
    at = 0
    while begins := _OPENING.match(text, _after_space(text, at)):
        end = _ENDS[(begins.lastindex or 1) - 1].search(text, begins.end())
        if end is None:
            return None
        at = end.end()
        while again := _CLOSING.match(text, _after_space(text, at)):
            at = again.end()
    if at:
        return at
    if bare := _BARE_CHANNELS.match(text):  # gpt-oss through a server that left out its tokens
        return bare.end()
    return _after_an_end_alone(text)


def _after_an_end_alone(text: str) -> int:
    """Where the answer begins after a thought whose beginning the reply does not have; 0 where there is none."""
    fenced = coded = quoted = False
    line = _after_space(text, 0)  # where the words of this line begin
    for mark in _SCAN.finditer(text):
        kind, start, end = mark.lastgroup or "", mark.start(), mark.end()
        if mark["begin"] is not None:
            return 0
        if mark["end"] is None:
            fenced ^= kind == "fence"
            coded ^= kind == "code"
            quoted ^= kind == "quote"
            if kind == "line":  # neither a quotation nor code in a line goes on
                line, coded, quoted = _after_space(text, end, _INDENT), False, False
        elif not (fenced or coded or quoted) and _ends_a_thought(text, line, start, end):
            return end
    return 0


def _ends_a_thought(text: str, line: int, start: int, end: int) -> bool:
    """Whether a mark stands where models write it and not where a sentence speaks of it.

    Args:
        line: where the words of its line begin.
    """
    alone = line >= start
    attached = not alone and not text[start - 1].isspace() and text[start - 1] not in _BEFORE_QUOTED
    return alone or attached or text.startswith("\n\n", end)


def _after_space(text: str, at: int, space: re.Pattern[str] = _SPACE) -> int:
    found = space.match(text, at)
    return found.end() if found else at
