"""Cleans a model's reply of what small models wrap around it, and says why it can't be used. Plain code, no judge.

A reply can be turned down as empty, refusing, in another language, looping, cut off, a copy of what it was to criticise
or revise, one that speaks of the critique instead of using it, or one with emojis: repeated closings and emojis in
revisions have led a model trained on them to collapse (arXiv 2504.04918).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from noesis.constitution.analysis_block import hide_analysis
from noesis.constitution.document import Constitution
from noesis.core.i18n import N_
from noesis.core.language import other_language
from noesis.core.text import normalised
from noesis.dataset.checks.invisible import invisible, stray
from noesis.dataset.checks.placeholders import placeholder
from noesis.dataset.schema import MIN_REVISED
from noesis.llm.clients.protocol import ModelReply
from noesis.llm.clients.thoughts import has_thought_mark, without_thought
from noesis.tribunal.offline_screen import ScreenedPrompt, screen

Kind = Literal["initial", "critique", "revision"]
COPIED_RUN = 10  # consecutive words of the critique that a revision may not contain, unless prompt or answer do
COPIED_SHARE = 0.8  # share of a text's three-word runs from which it is a copy
EMOJI = re.compile("[\U0001f000-\U0001faff\u2600-\u27bf\u2b50\u2b55\u231a\u231b\u23e9-\u23f3\ufe0f\u20e3]")
_LABEL = re.compile(
    r"^\W*(?:(?:the |a )?(?:critique|revised answer|revision|new answer|rewritten answer|answer|response)"
    r"|crítica|revisão|resposta(?: (?:nova|revisada|reescrita))?"
    r"|here(?:'s| is) (?:the|a|my) (?:\w+ ){0,2}(?:critique|answer|response|version)[^\n:]{0,40}"
    r"|(?:aqui está|segue) (?:a|uma) (?:\w+ ){0,2}(?:crítica|resposta|versão)[^\n:]{0,40})"
    r"\W{0,3}:\W*",
    re.IGNORECASE,
)
_WRAPPING = re.compile(r"<{2,9}[^<>\n]{0,60}>{2,9}|‹{2,9}[^‹›\n]{0,60}›{2,9}")
_SPEAKS_OF_WORK = re.compile(
    r"\b(?:the|this|your) critique\b|\b(?:revised|previous|original|old|new) (?:answer|response)\b"
    r"|\bas (?:an? )?(?:revision|rewrite)\b|\bthe principle of\b"
    r"|\b(?:a|essa|esta|sua) crítica (?:aponta|diz|acima|anterior|feita)|\bresposta (?:revisada|reescrita|original"
    r"|anterior|antiga|nova)\b"
    r"|\bo princípio (?:de|diz|pede)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Work:
    """What a reply responds to. answer, critique: texts in the request, which the reply must not copy."""

    kind: Kind
    prompt: str
    language: str
    stance: str | None = None
    answer: str = ""
    critique: str = ""


def clean_reply(text: str) -> str:
    """A reply without what models put around it: thoughts, an analysis block, marks, labels, quotation marks."""
    text = hide_analysis(without_thought(text))
    text = _WRAPPING.sub("", text).strip()
    text = _LABEL.sub("", text, count=1).strip()
    if len(text) > 2 and text[0] in '"“«' and text[-1] in '"”»' and not any(c in text[1:-1] for c in '"“”«»'):
        text = text[1:-1].strip()
    return text


def up_to_a_sentence(text: str) -> str:
    """A text that was cut off, up to its last whole sentence; empty if that is less than half of it."""
    ends = [m.end() for m in re.finditer(r"[.!?…][\"”»)]?(?=\s|$)", text)]
    return text[: ends[-1]].strip() if ends and ends[-1] >= len(text) / 2 else ""


def reply_problem(reply: ModelReply, text: str, work: Work, constitution: Constitution) -> str | None:
    """Why `text` (a cleaned reply) can't be used; None if it can.

    Causes come before effects: an empty text is not also called short.
    """
    if reply.finish == "length":
        return "loops" if _loops(text) else N_("cut off")
    if has_thought_mark(text):
        return N_("contains a thought")
    flags = screen(text, _screened(work), constitution)
    for flag, name in (
        ("empty", "empty"),
        (N_("repeats itself"), "loops"),
        (N_("needless refusal"), "refusal"),
        (N_("other language"), N_("other language")),
        (N_("copies the prompt"), N_("copies the prompt")),
        (N_("control token"), N_("control token")),
        (N_("addresses the judge"), N_("addresses a judge")),
        (N_("recites the system prompt"), N_("recites the system prompt")),
    ):
        if flag in flags:
            return name
    if _loops(text):
        return "loops"
    if other_language(text, work.language):
        return N_("other language")
    if invisible(text) or stray(text) or placeholder(text):
        return N_("placeholder or invisible character")
    if work.kind == "critique":
        return N_("copies the answer") if share_copied(text, work.answer) >= COPIED_SHARE else None
    if work.kind == "initial":
        return None
    return _revision_problem(text, work)


def _revision_problem(text: str, work: Work) -> str | None:
    if len(text) < MIN_REVISED:
        return "empty"
    if normalised(text) == normalised(work.answer) or share_copied(text, work.answer) >= 0.95:
        return N_("says the same as before")
    if (
        copies_run(text, work.critique, allowed=work.answer + " " + work.prompt)
        or share_copied(text, work.critique) >= COPIED_SHARE / 2
    ):
        return N_("copies the critique")
    if _SPEAKS_OF_WORK.search(text) and not _SPEAKS_OF_WORK.search(work.prompt):
        return N_("speaks of the critique")
    return "emojis" if EMOJI.search(text) else None


def share_copied(text: str, source: str) -> float:
    """Share of the three-word runs of `text` that `source` contains; 0 for texts of under eight runs."""
    runs, there = _runs(text, 3), set(_runs(source, 3))
    return sum(run in there for run in runs) / len(runs) if len(runs) >= 8 else 0.0


def copies_run(text: str, source: str, *, allowed: str = "") -> bool:
    """Whether `text` contains COPIED_RUN consecutive words of `source` that `allowed` does not contain."""
    taken = set(_runs(source, COPIED_RUN)) - set(_runs(allowed, COPIED_RUN))
    return any(run in taken for run in _runs(text, COPIED_RUN))


def _runs(text: str, length: int) -> list[tuple[str, ...]]:
    words = normalised(text).split()
    return [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]


def _loops(text: str) -> bool:
    """Whether a sentence or line occurs three times; the screen's share of repeated runs misses that in long texts."""
    parts = [normalised(part) for part in re.split(r"[.!?…\n]+", text)]
    counts = Counter(part for part in parts if len(part.split()) >= 4)
    return any(count >= 3 for count in counts.values())


def _screened(work: Work) -> ScreenedPrompt:
    """The prompt as the screen reads it; a first answer may refuse (the critique will see it), a critique may not."""
    stance = {"initial": None, "critique": "explore", "revision": work.stance or "explore"}[work.kind]
    return ScreenedPrompt(work.prompt, work.language, stance)
