"""The demo's court: it judges held-out answers while there is time, shows what it said, and rules what it may."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from noesis.core.config import TribunalSection
from noesis.pipeline.court_at_work import CourtAtWork, hold_court, show_court
from noesis.tribunal.judge import JudgeCase
from noesis.tribunal.rubric import JUDGES
from noesis.tribunal.verdict import ItemScore, Unscored, Verdict

ROWS = [
    {
        "id": f"e{i}",
        "language": "en",
        "category": "maieutica",
        "prompt": f"Question {i} \x1b[2J" + "and more " * 20,
        "turns": [{"role": "user", "content": "before"}, {"role": "assistant", "content": "indeed"}],
        "base": {"answer": "weak", "flags": []},
        "tuned": {"answer": "strong", "flags": []},
    }
    for i in range(3)
]


class Panel:
    """Judges that take `takes` seconds of a clock of their own for each question, and prefer the strong answer."""

    names, unfit_reason = ["toy"], "judge not fit: toy was calibrated never"

    def __init__(self, takes: float, mute: str = "") -> None:
        self.clock, self.takes, self.mute = 0.0, takes, mute
        self.asked: list[tuple[str, str]] = []

    def now(self) -> float:
        return self.clock

    async def __aenter__(self) -> Panel:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def judge(self, cases: Sequence[JudgeCase], judges: Sequence[Sequence[str]], *, what: str):
        self.clock += self.takes
        (name,) = judges[0]
        self.asked += [(case.id, name) for case in cases]
        return [[self._verdict(case, name)] for case in cases]

    def _verdict(self, case: JudgeCase, name: str) -> Verdict | Unscored:
        if name == self.mute:
            return Unscored(
                case.id, name, "toy", "h", f"reply could not be read, twice: cut off at {len(case.id)} tokens"
            )
        points = 2 if case.answer == "strong" else 0
        return Verdict(case.id, name, "toy", "h", (ItemScore("i", points, points, "", False),), None, "")


def held(panel: Panel, seconds: float) -> CourtAtWork:
    found = hold_court(ROWS, panel, TribunalSection(), seconds=seconds, now=panel.now)  # type: ignore[arg-type]
    assert CourtAtWork.from_json(found.to_json()) == found
    return found


def test_all_answers_are_judged_where_there_is_time(capsys: pytest.CaptureFixture[str]):
    panel = Panel(1.0)
    found = held(panel, 50)
    assert len(panel.asked) == len(set(panel.asked)) == found.verdicts == 3 * 2 * 3
    assert found.pairs[0].scores == {"base": dict.fromkeys(JUDGES, 0.0), "tuned": dict.fromkeys(JUDGES, 1.0)}
    assert found.ruling.verdict == "UNDECIDED" and "judge not fit" in found.ruling.reason
    show_court(found)
    out = capsys.readouterr().out
    assert "tuned  Veritas 1.00, Sophia 1.00, Dikē 1.00" in out and "Tribunal: UNDECIDED: judge not fit" in out
    assert "\x1b" not in out


def test_no_question_is_begun_that_would_end_too_late():
    panel = Panel(20.0)
    found = held(panel, 50)
    assert panel.clock == 40 and found.verdicts == 4  # Veritas and Sophia on the first prompt
    assert [set(pair.scores["tuned"]) for pair in found.pairs] == [{"veritas", "sophia"}]
    slow = Panel(300.0)
    assert held(slow, 50).verdicts == 2


def test_a_judge_that_takes_too_long_is_not_waited_for(capsys: pytest.CaptureFixture[str]):
    class Silent(Panel):
        async def judge(self, cases: Sequence[JudgeCase], judges: Sequence[Sequence[str]], *, what: str):
            await asyncio.Event().wait()

    found = held(Silent(0.0), 0.05)
    assert found.verdicts == 0 and found.pairs == () and found.ruling.verdict == "UNDECIDED"
    show_court(found)
    assert "Veritas on e0: no reply in the 0.05 s that this may take" in capsys.readouterr().out


def test_missing_verdicts_are_shown_with_their_number(capsys: pytest.CaptureFixture[str]):
    found = held(Panel(1.0, mute="sophia"), 50)
    assert found.missing == ("6 × sophia (toy): reply could not be read, twice: cut off at 7 tokens",)
    show_court(found)
    assert "Sophia –" in capsys.readouterr().out
