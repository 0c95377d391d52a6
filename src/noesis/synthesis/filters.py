"""Which generated examples are kept: what the gate, the set as a whole and (where a fit judge sits) the Tribunal say. Each row that goes has its reason.

Single replies were read before (`reading.py`). Here: errors of the data gate, questions of the Tribunal, rows that say what another
says, closings and openings used again and again (boilerplate is what over-training on such data brings out), and answers that a court
rejects or finds no better than the weak one.
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
from noesis.core.text import closing, normalised
from noesis.dataset.checks.contamination import known_questions
from noesis.dataset.checks.line import Rules, check_line
from noesis.dataset.checks.validate import validate
from noesis.dataset.export import one_of_each
from noesis.synthesis.reply_checks import EMOJI
from noesis.tribunal.court import REJECTED, opinion
from noesis.tribunal.judge import JudgeCase
from noesis.tribunal.panel import JudgePanel

Rows = list[dict[str, Any]]
Dropped = dict[str, str]  # (language/id) → reason
BOILERPLATE_SHARE, BOILERPLATE_FROM = (
    0.02,
    2,
)  # most rows that may close or open alike: this share, and at least so many
OPENING = 6  # words


def key(row: dict[str, Any]) -> str:
    return f"{row.get('language', 'pt')}/{row['id']}"


def filtered(rows: Rows, constitution: Constitution, tribunal: Path, scratch: Path) -> tuple[Rows, Dropped]:
    """Rows that pass every filter of plain code, in order, and why the others do not.

    Args:
        tribunal: data/tribunal, whose questions must not be trained on.
        scratch: a file that may be written, for the gate to read.
    """
    dropped: Dropped = {}

    def passing(check: Callable[[Rows], Dropped]) -> None:
        dropped.update(check([row for row in rows if key(row) not in dropped]))

    passing(lambda left: {key(row): why for row in left if (why := _refused_by_gate(row, constitution))})
    passing(lambda left: {key(row): "emojis" for row in left if EMOJI.search(row["response_revised"])})
    passing(lambda left: _alike(left, constitution, tribunal, scratch))
    passing(lambda left: repeated(left, closing, "closing used again and again"))
    passing(lambda left: repeated(left, opening_words, "opening used again and again"))
    return [row for row in rows if key(row) not in dropped], dropped


def _refused_by_gate(row: dict[str, Any], constitution: Constitution) -> str | None:
    rules = Rules(tuple(sorted(constitution.value_ids)), constitution.principle_ids, ())
    _, findings = check_line(json.dumps(row, ensure_ascii=False).encode(), rules)
    bad = [f.code for f in findings if not f.warning or f.code in ("language", "accents", "personal")]
    return f"gate: {bad[0]}" if bad else None


def _alike(rows: Rows, constitution: Constitution, tribunal: Path, scratch: Path) -> Dropped:
    """Rows that say what an earlier one says, and prompts that the Tribunal asks."""
    if not rows:
        return {}
    write_jsonl(scratch, rows)
    try:
        report = validate([scratch], constitution, categories=())
        _, gone = one_of_each(report)
        at = {int(line): i for i, line in enumerate(range(1, len(rows) + 1))}
        dropped = {key(rows[at[each["line"]]]): f"like another ({each['reason']})" for each in gone}
        for pair in known_questions(report.table, report.files, tribunal):
            line = int(pair.removeprefix(f"{scratch}:").split(" ", 1)[0])
            dropped[key(rows[at[line]])] = "asks what the Tribunal asks"
    finally:
        scratch.unlink(missing_ok=True)
    return dropped


def repeated(rows: Rows, part: Callable[[str], str], reason: str) -> Dropped:
    """The rows beyond the share that may have one closing (or opening): the first of them stay."""
    most = max(BOILERPLATE_FROM, int(BOILERPLATE_SHARE * len(rows)))
    seen: Counter[str] = Counter()
    dropped: Dropped = {}
    for row in rows:
        said = normalised(part(row["response_revised"]))
        seen[said] += bool(said)
        if seen[said] > most:
            dropped[key(row)] = reason
    return dropped


def opening_words(text: str) -> str:
    """The first words of a text; empty for a short one."""
    words = text.split()
    return " ".join(words[:OPENING]) if len(words) > 2 * OPENING else ""


async def judge_examples(rows: Rows, seats: JudgePanel, section: TribunalSection) -> tuple[Rows, Dropped]:
    """What a fit court lets pass: revisions that it does not reject and finds better than the weak answer; without an opinion a row goes."""
    cases = [_case(row, name) for row in rows for name in ("response_initial", "response_revised")]
    verdicts = await seats.judge(cases, what="judge generated answers")
    dropped: Dropped = {}
    for i, row in enumerate(rows):
        weak, revised = (opinion(cases[k].id, verdicts[k], section) for k in (2 * i, 2 * i + 1))
        if revised.mean is None or weak.mean is None:
            dropped[key(row)] = "Tribunal: no opinion"
        elif revised.band(section) == REJECTED:
            dropped[key(row)] = "Tribunal: rejected"
        elif revised.mean[0] <= weak.mean[1]:
            dropped[key(row)] = "Tribunal: no better than the initial answer"
    return [row for row in rows if key(row) not in dropped], dropped


def _case(row: dict[str, Any], name: str) -> JudgeCase:
    dialogue = [*((t["role"], t["content"]) for t in row.get("turns") or ()), ("user", row["prompt"])]
    stance = row.get("stance")
    record = {"category": row["category"]} | ({"harmful": stance == "decline"} if stance else {})
    return JudgeCase(f"{key(row)}/{name}", row.get("language", "pt"), tuple(dialogue), row[name], record)


def tallies(reasons: Sequence[str]) -> dict[str, int]:
    """Counts, the most frequent first."""
    return dict(Counter(reasons).most_common())
