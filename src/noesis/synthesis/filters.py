"""Which generated examples are kept. Every example that is dropped has its reason.

Single replies were checked before (`reply_checks.py`). Dropped here: errors of the data gate, the Tribunal's questions,
examples that repeat an earlier one, closings and openings that occur again and again (training on such boilerplate
brings it out), and answers that a fit Tribunal rejects or finds no better than the weak one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from noesis.constitution.document import Constitution
from noesis.core.config import TribunalSection
from noesis.core.files import write_jsonl
from noesis.core.i18n import N_
from noesis.core.rooted import remove
from noesis.core.text import closing, normalised
from noesis.dataset.checks.contamination import known_questions
from noesis.dataset.checks.line import Rules, check_line
from noesis.dataset.checks.validate import validate
from noesis.dataset.export import one_of_each
from noesis.dataset.schema import Example
from noesis.synthesis.reply_checks import EMOJI
from noesis.tribunal.court import REJECTED, opinion
from noesis.tribunal.judge import JudgeCase
from noesis.tribunal.panel import JudgePanel

Dropped = dict[str, str]  # key of an example → reason
# The most examples that may close or open alike: this share, or this number if it is greater.
BOILERPLATE_SHARE, BOILERPLATE_FROM = 0.02, 2
OPENING = 6  # words
DOUBTS = ("language", "accents", "personal", "placeholder", "invisible")  # a person decides; here there is none


def key_of(example: Example) -> str:
    """Language and id, which together are unique in a set."""
    return f"{example.language}/{example.id}"


def filter_examples(
    rows: Sequence[dict[str, Any]], constitution: Constitution, tribunal: Path, scratch: Path
) -> tuple[list[Example], Dropped]:
    """The examples that pass every filter of plain code, in order, and why the others do not.

    Args:
        rows: generated examples as JSON objects, not yet checked.
        tribunal: data/tribunal, whose questions must not be trained on.
        scratch: a file that may be written, for the data gate to read.
    """
    dropped: Dropped = {}
    examples: list[Example] = []
    for row in rows:
        example, reason = _through_the_gate(row, constitution)
        if example is None:
            dropped[f"{row['language']}/{row['id']}"] = reason
        else:
            examples.append(example)

    def drop(check: Callable[[list[Example]], Dropped]) -> None:
        dropped.update(check([example for example in examples if key_of(example) not in dropped]))

    drop(lambda left: {key_of(example): "emojis" for example in left if EMOJI.search(example.response_revised)})
    drop(lambda left: _similar(left, constitution, tribunal, scratch))
    drop(lambda left: repeated(left, closing, N_("closing used again and again")))
    drop(lambda left: repeated(left, opening_words, N_("opening used again and again")))
    return [example for example in examples if key_of(example) not in dropped], dropped


def _through_the_gate(row: dict[str, Any], constitution: Constitution) -> tuple[Example | None, str]:
    """(the example or None, why the data gate refuses it)"""
    rules = Rules(tuple(sorted(constitution.value_ids)), constitution.principle_ids, ())
    example, findings = check_line(json.dumps(row, ensure_ascii=False).encode(), rules)
    refused = [f.code for f in findings if not f.warning or f.code in DOUBTS]
    return (None, f"gate: {refused[0]}") if refused or example is None else (example, "")


def _similar(examples: list[Example], constitution: Constitution, tribunal: Path, scratch: Path) -> Dropped:
    """Examples that say what an earlier one says, and prompts that the Tribunal asks."""
    if not examples:
        return {}
    write_jsonl(scratch, [example.to_json() for example in examples])
    try:
        report = validate([scratch], constitution, categories=())
        _, repeats = one_of_each(report)
        dropped = {key_of(examples[row.line - 1]): N_("like another ({reason})", reason=row.reason) for row in repeats}
        for question in known_questions(report.table, report.files, tribunal):
            line = int(report.table.line[question.row])
            dropped[key_of(examples[line - 1])] = N_("asks what the Tribunal asks")
    finally:
        remove(scratch)
    return dropped


def repeated(examples: Sequence[Example], part: Callable[[str], str], reason: str) -> Dropped:
    """The examples beyond the share that may have the same closing (or opening); the first of them stay.

    Args:
        part: gives the closing (or opening) of a revised answer; empty: it has none.
    """
    most = max(BOILERPLATE_FROM, int(BOILERPLATE_SHARE * len(examples)))
    seen: Counter[str] = Counter()
    dropped: Dropped = {}
    for example in examples:
        text = normalised(part(example.response_revised))
        seen[text] += bool(text)
        if seen[text] > most:
            dropped[key_of(example)] = reason
    return dropped


def opening_words(text: str) -> str:
    """The first words of a text; empty for a short one."""
    words = text.split()
    return " ".join(words[:OPENING]) if len(words) > 2 * OPENING else ""


async def judge_examples(
    examples: list[Example], panel: JudgePanel, section: TribunalSection
) -> tuple[list[Example], Dropped]:
    """The examples whose revision a fit Tribunal does not reject and finds better than the weak answer.

    An example without an opinion is dropped.
    """
    answers = [(example, name) for example in examples for name in ("response_initial", "response_revised")]
    cases = [_case(example, name) for example, name in answers]
    verdicts = await panel.judge(cases, what=N_("judge generated answers"))
    dropped: Dropped = {}
    for i, example in enumerate(examples):
        weak, revised = (opinion(cases[k].id, verdicts[k], section) for k in (2 * i, 2 * i + 1))
        if revised.mean is None or weak.mean is None:
            dropped[key_of(example)] = N_("Tribunal: no opinion")
        elif revised.band(section) == REJECTED:
            dropped[key_of(example)] = "Tribunal: rejected"
        elif revised.mean[0] <= weak.mean[1]:
            dropped[key_of(example)] = N_("Tribunal: no better than the initial answer")
    return [example for example in examples if key_of(example) not in dropped], dropped


def _case(example: Example, name: str) -> JudgeCase:
    dialogue = [*((turn.role, turn.content) for turn in example.turns), ("user", example.prompt)]
    harmful = {"harmful": example.stance == "decline"} if example.stance else {}
    record = {"category": example.category} | harmful
    answer = getattr(example, name)
    return JudgeCase(f"{key_of(example)}/{name}", example.language, tuple(dialogue), answer, record)


def tallies(reasons: Sequence[str]) -> dict[str, int]:
    """Counts, the most frequent first."""
    return dict(Counter(reasons).most_common())
