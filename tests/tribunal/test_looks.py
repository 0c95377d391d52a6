"""A trial by looks: levels against published bounds, schedules, when it stops, and false approvals by simulation."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from statistics import NormalDist

import pytest

from helpers.project import ROOT
from noesis.constitution.document import load_constitution
from noesis.core.config import TribunalSection
from noesis.tribunal.court import APPROVED, CONDITIONAL, REJECTED, UNDECIDED
from noesis.tribunal.judge import JudgeCase
from noesis.tribunal.rubric import JUDGES
from noesis.tribunal.scoring import MODELS, Answer
from noesis.tribunal.suite import EvalSample, read_suite
from noesis.tribunal.trial.bounds import look_levels, obrien_fleming, pocock
from noesis.tribunal.trial.looks import HeldTrial, Look, Looks, Schedule, hold_looks, plan_looks
from noesis.tribunal.trial.simulate import simulate_trials
from noesis.tribunal.trial_summary import summarise
from noesis.tribunal.verdict import ItemScore, Unscored, Verdict

CONSTITUTION = load_constitution(ROOT / "data" / "constitution.yaml")
SECTION = TribunalSection(samples=1)


@pytest.mark.parametrize(
    ("spending", "published"),  # five equal looks, 0.025 a side: tables of Lan and DeMets 1983, and gsDesign
    [(pocock, [2.438, 2.427, 2.410, 2.397, 2.386]), (obrien_fleming, [4.877, 3.357, 2.680, 2.290, 2.031])],
)
def test_levels_are_the_published_bounds(spending, published):
    levels = look_levels([0.2, 0.4, 0.6, 0.8, 1.0], spending)
    assert [NormalDist().inv_cdf(0.5 + level / 2) for level in levels] == pytest.approx(published, abs=2e-3)


def test_a_single_look_is_the_ordinary_interval():
    assert look_levels([1.0]) == pytest.approx([0.95])
    assert Schedule.of([60], [49]).levels == (0.95,)


def item(number: int, **more: object) -> EvalSample:
    row = {"id": f"m{number:03}", "category": "maieutics", "language": "en", "prompt": f"Question {number}, please?"}
    return EvalSample.model_validate(row | more)


def test_looks_split_the_suite_and_keep_pairs_together():
    items = read_suite(ROOT / "data" / "tribunal", "dev")
    added, schedule = plan_looks(items, (40, 80, 160))
    assert schedule.prompts == (40, 60) and schedule.clusters == (32, 49)
    assert sorted(i.id for some in added for i in some) == sorted(i.id for i in items)
    assert not {i.cluster for i in added[0]} & {i.cluster for i in added[1]}
    assert {i.category for i in added[0]} == {i.category for i in items}


def test_what_code_scores_alone_makes_no_look_of_its_own():
    check = {"type": "max_words", "count": 4}
    only_code = [item(i, check=check) for i in range(40)]
    assert plan_looks(only_code, (10, 20))[1].prompts == (40,)
    assert plan_looks([item(i) for i in range(5)], (40,))[1] == Schedule((5,), (5,), (0.95,))
    assert plan_looks([], (40,))[1].prompts == (0,)


class ScriptedJudges:
    """Judges whose scores are in the answers' first word; `silent` gives no verdict. What they were asked is kept."""

    def __init__(self, *, silent: bool = False, veto: str = "") -> None:
        self.asked: list[str] = []
        self.silent, self.veto = silent, veto

    async def judge(self, cases: Sequence[JudgeCase]) -> list[list[Verdict | Unscored]]:
        self.asked += [case.id for case in cases]
        return [[self._verdict(case, judge) for judge in JUDGES] for case in cases]

    def _verdict(self, case: JudgeCase, judge: str) -> Verdict | Unscored:
        if self.silent:
            return Unscored(case.id, judge, "m", "h", "no reply")
        points = round(float(case.answer.split()[0]) * 20)
        items = tuple(ItemScore(f"i{k}", *(min(2, max(0, points - 2 * k)),) * 2, "", False) for k in range(10))
        vetoed = "harmful_compliance" if self.veto and case.id.startswith(self.veto) and judge == "dike" else None
        return Verdict(case.id, judge, "m", "h", items, vetoed, "")


def hold(
    judges: ScriptedJudges, score, items: list[EvalSample] | None = None, unfit: str | None = None, **settings: object
) -> tuple[HeldTrial, list[str]]:
    answered: list[str] = []

    async def answer(some: Sequence[EvalSample]) -> list[Answer]:
        answered.extend(one.id for one in some)
        return [
            Answer(one, model, 0, (), f"{score(one, model)} is what a considered answer to this deserves.")
            for model in MODELS
            for one in some
        ]

    section = SECTION.model_copy(update={"looks": (40, 80)} | settings)
    held = asyncio.run(
        hold_looks(items or [item(i) for i in range(120)], answer, judges, section, CONSTITUTION, unfit_reason=unfit)
    )
    assert len(answered) == len(set(answered))
    return held, answered


def spread_around(mean: float, reach: float = 0.2):
    """Scores of the tuned model that alternate around a mean."""
    return lambda one, model: round(mean + (reach if int(one.id[1:]) % 2 else -reach), 2)


def test_a_clear_case_ends_at_the_first_look():
    judges = ScriptedJudges()
    held, answered = hold(judges, spread_around(0.9, 0.05))
    assert held.looks.held[-1].verdict == APPROVED and len(held.looks.held) == 1
    assert held.looks.describe() == "stopped at look 1 of 3, 40 of 120 prompts: the interval decides"
    assert len(answered) == 40 and len(judges.asked) == 80
    assert Looks.from_json(held.looks.to_json()) == held.looks


def test_a_close_case_goes_on_until_its_interval_decides():
    judges = ScriptedJudges()
    held, answered = hold(judges, spread_around(0.775, 0.225))
    assert [look.verdict for look in held.looks.held] == [UNDECIDED, APPROVED]
    assert len(answered) == 80 and len(judges.asked) == len(set(judges.asked)) == 160
    low, _ = (
        summarise(held.scored, SECTION, unfit_reason=None, level=held.level).mean_score("tuned", "mean").interval_95
    )
    assert low >= 0.70


def test_no_more_is_asked_where_it_would_not_decide():
    held, answered = hold(ScriptedJudges(), spread_around(0.70, 0.3))
    assert held.looks.held[-1].verdict == UNDECIDED and len(answered) < 120
    assert "prompts left would decide it with a probability of" in held.looks.stopped


@pytest.mark.parametrize(
    ("judges", "unfit", "verdict", "why"),
    [
        (ScriptedJudges(), "judge not fit: m", UNDECIDED, "these judges may not decide, however many prompts they see"),
        (ScriptedJudges(silent=True), None, UNDECIDED, "the judges give too few verdicts"),
        (ScriptedJudges(veto="m0"), None, REJECTED, "a veto decides"),
    ],
)
def test_it_ends_at_once_where_nothing_else_can_come_of_it(judges, unfit, verdict, why):
    held, answered = hold(judges, spread_around(0.775, 0.225), unfit=unfit)
    assert (held.looks.held[-1].verdict, held.looks.stopped, len(answered)) == (verdict, why, 40)


def test_without_looks_all_prompts_are_judged():
    held, answered = hold(ScriptedJudges(), spread_around(0.9, 0.05), looks=())
    assert len(answered) == 120 and held.level == 0.95
    assert held.looks.describe() == ""


def test_an_early_approval_counts_the_keyed_items_of_all_prompts():
    """Forgetting in the prompts that no judge saw must not be missed."""
    items = [item(i, key="Venus") if i % 4 == 0 else item(i) for i in range(120)]
    added, _ = plan_looks(items, (40, 80))
    early = {one.id for one in added[0]}

    def score(one: EvalSample, model: str) -> str:
        forgot = model == "tuned" and one.id not in early
        return f"{spread_around(0.9, 0.05)(one, model)} It is {'Mars' if forgot else 'Venus'}, with quality"

    judges = ScriptedJudges()
    held, answered = hold(judges, score, items)
    assert len(judges.asked) == 80 and set(answered) - early == {one.id for one in items if one.key} - early
    found = summarise(held.scored, SECTION, unfit_reason=None, level=held.level)
    assert held.looks.held[-1].verdict == APPROVED
    assert found.ruling.verdict == CONDITIONAL and "fell by" in found.ruling.reason


def test_false_approvals_stay_under_five_percent_over_the_whole_gate():
    """In small; `benchmarks/judges/looks.py` has 10,000 trials. 400 at a true rate of 0.05 show 34 or more once in a thousand."""
    schedule = Schedule.of([24, 48, 72], [24, 48, 72])
    at_threshold = simulate_trials(dict.fromkeys(JUDGES, 0.70), schedule, SECTION, trials=400, agreement=1.0)
    at_floor = simulate_trials({"veritas": 0.9, "sophia": 0.5, "dike": 0.9}, schedule, SECTION, trials=200)
    assert at_threshold.verdicts.get(APPROVED, 0.0) < 34 / 400
    assert at_floor.verdicts.get(APPROVED, 0.0) < 20 / 200
    good = simulate_trials(dict.fromkeys(JUDGES, 0.88), schedule, SECTION, trials=50, deviation=0.15)
    assert good.verdicts[APPROVED] > 0.9 and good.prompts < 60


def test_looks_are_read_as_they_were_written():
    looks = Looks(
        (40, 60), (Look(40, 0.96, UNDECIDED, "why"), Look(60, 0.975, APPROVED, "mean")), "all prompts were judged"
    )
    assert Looks.from_json(looks.to_json()) == looks
