"""Never more than agreed: budget, quote, pace, and the ledger of a run, with a clock that is moved by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.command import speaking
from helpers.project import ROOT
from noesis.core.config import BudgetSection, SaveEvery, load_config
from noesis.core.device import Device
from noesis.core.errors import CapError
from noesis.core.project import Project
from noesis.planning.budget import Budget, budget_of, quote, require_affordable, require_remaining
from noesis.planning.display import plan_lines
from noesis.planning.draft import make_plan
from noesis.planning.model_shapes import known_model
from noesis.planning.pricing import MachineOption, StageCost
from noesis.planning.workload import Workload
from noesis.run.directory import load_run, open_run
from noesis.run.ledger import EVERY_S, StageMeter, total, unrecorded_cost
from noesis.run.manifest import Identity
from noesis.training.state.save_schedule import SHARE, SaveSchedule

CPU = Device("cpu", "test", 16 * 10**9, 2, True)
IDENTITY = Identity("x", "", "", "", "")
PLAN = replace(
    make_plan(load_config(Project(ROOT)), "m", known_model("smollm2").shape, Workload((100,) * 24, 50), CPU),
    rented=True,
    usd=6.0,
    epochs=3,
    seconds=3100.0,
    start_seconds=100.0,
    stages=(StageCost("train", "H100", 3100.0, 5.0), StageCost("judge", "A10", 500.0, 1.0)),
    alternatives=(
        MachineOption("A10", "bf16", "none", 10**9, fits=True, tokens_per_s=1.0, seconds=7000.0, usd=1.0),
        MachineOption("L40S", "bf16", "none", 10**9, fits=True, tokens_per_s=1.0, seconds=3300.0, usd=0.9),
        MachineOption("T4", "bf16", "none", 10**9, fits=False, tokens_per_s=1.0, seconds=100.0, usd=0.1),
    ),
)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def budget(clock: Clock, **changes: object) -> Budget:
    settings = {
        "usd_per_s": 0.001,
        "spent_usd": 1.0,
        "spent_seconds": 1000.0,
        "max_usd": 4.0,
        "max_seconds": None,
        "started": clock.now,
    }
    return Budget(**(settings | changes), clock=clock)  # type: ignore[arg-type]


def test_what_was_spent_before_counts():
    clock = Clock()
    b = budget(clock)
    assert b.left_seconds() == pytest.approx(3000)
    clock.now += 1000
    assert (b.usd(), b.seconds(), b.left_seconds()) == (pytest.approx(2.0), 2000.0, pytest.approx(2000))
    assert b.describe() == "2.00 of 4.00 USD"
    assert b.projected(500) == " · spent 2.00 of 4.00 USD; 2.50 USD at the end"
    assert budget(clock, max_seconds=2500.0).left_seconds() == pytest.approx(1500)
    clock.now -= 5000  # a clock that is set back gives nothing back
    assert b.usd() == 1.0


def test_another_process_counts_on_from_the_same_budget():
    b = budget_of(BudgetSection(), usd_per_s=0.5, spent_usd=1.0, spent_seconds=2.0)
    assert Budget.from_json(json.loads(json.dumps(b.to_json()))) == b


def test_a_machine_of_ones_own_costs_nothing_and_no_cap_binds_it():
    b = budget_of(BudgetSection(), usd_per_s=0.0, spent_usd=0.0, spent_seconds=1e9)
    assert b.left_seconds() == float("inf")
    assert b.describe() == b.projected(10) == ""
    assert BudgetSection().max_usd == 90  # the guide's


def test_the_quote_says_whether_the_free_usd_cover_it():
    lines = "\n".join(quote(PLAN, budget(Clock())))
    assert "6.00 USD in 1 h 00 min expected, 1.00 spent before; cap 4.00 USD" in lines
    assert "free 30 USD a month cover it, if 7.00 of them are left" in lines
    assert "do not cover it: 11.00 USD remain to be paid" in "\n".join(quote(replace(PLAN, usd=40.0), budget(Clock())))
    assert "nothing on this machine" in quote(replace(PLAN, rented=False), budget(Clock(), usd_per_s=0.0))[0]


def test_sums_are_told_in_reais_where_the_settings_give_a_rate():
    section = BudgetSection(max_usd=90, brl_per_usd=5.4)
    known = budget_of(section, usd_per_s=0.001, spent_usd=0.0, spent_seconds=0.0)
    assert Budget.from_json(known.to_json()).brl_per_usd == 5.4
    with speaking("pt"):
        assert quote(PLAN, known)[0] == (
            "  custo     US$ 6,00 (R$ 32,40) previstos, em 1 h 00 min; US$ 0,00 já gastos; limite de US$ 90,00 (R$ 486,00)"
        )
        assert any("US$     6,00 (R$ 32,40)" in line for line in plan_lines(PLAN, everything=False, brl_per_usd=5.4))
    assert "R$" not in "".join([*quote(PLAN, budget(Clock())), *plan_lines(PLAN, everything=True)])


def test_a_plan_beyond_the_cap_is_refused_with_what_would_fit():
    with pytest.raises(CapError) as refused:
        require_affordable(PLAN, budget(Clock(), max_usd=3.5))
    assert refused.value.exit_code == 5
    assert "3.10 USD more and 2.50 USD of the cap is left (1.00 of 3.50 USD spent)" in str(refused.value)
    assert "--epochs 2 (35 min 00 s), or L40S (55 min 00 s, 0.90 USD)" in str(refused.value)
    require_affordable(PLAN, budget(Clock(), max_usd=3.5), done=0.5)  # half of it is done
    require_affordable(PLAN, budget(Clock(), max_usd=4.2))
    with pytest.raises(CapError, match="52 min|51 min"):
        require_affordable(
            replace(PLAN, rented=False), budget(Clock(), usd_per_s=0.0, spent_usd=0.0, max_seconds=1200.0)
        )
    with pytest.raises(CapError, match="merging was not started"):
        require_remaining(budget(Clock(), max_usd=1.0), "merging")


def pace(clock: Clock, **changes: object) -> SaveSchedule:
    settings = {
        "every": SaveEvery(),
        "on_gpu": False,
        "step_seconds": 2.0,
        "state_bytes": 15e6,
        "steps": 100,
        "clock": clock,
    }
    p = SaveSchedule(**(settings | changes))  # type: ignore[arg-type]
    p.begin()
    return p


def test_saving_stays_below_its_share_however_slow_the_disk():
    clock = Clock()
    p, saves = pace(clock, every=SaveEvery(seconds=1.0), steps=2000), []
    for step in range(1, 1001):
        clock.now += 1.0
        p.step_ended(step)
        if p.should_save(step):
            clock.now += 0.9
            p.saved(0.9)
            saves.append(step)
    assert len(saves) > 20
    assert p.save_share() <= SHARE
    assert pace(clock, every=SaveEvery(steps=5)).should_save(5)
    assert not pace(clock, every=SaveEvery(steps=5)).should_save(6)
    assert pace(clock).should_save(100)  # the last one always


@pytest.mark.parametrize(("step_s", "save_s"), [(1.0, 0.1), (30.0, 5.0), (0.2, 8.0)])
def test_it_stops_before_the_cap_is_passed_with_time_to_save(step_s: float, save_s: float):
    clock = Clock()
    b = budget(clock, spent_usd=0.0, spent_seconds=0.0, max_usd=0.3, max_seconds=None)
    p = pace(clock, every=SaveEvery(steps=7), step_seconds=step_s, budget=b, steps=10**6)
    step = 0
    while not p.near_cap():
        step += 1
        clock.now += step_s * (1.15 if step % 3 else 1.0)  # steps are not all alike
        p.step_ended(step)
        if p.should_save(step):
            clock.now += save_s
            p.saved(save_s)
    clock.now += save_s  # the last save
    assert 0.3 * 0.8 < b.usd() <= 0.3 if step_s < 10 and save_s < 5 else b.usd() <= 0.3
    assert step > 1


def test_the_ledger_counts_processes_that_were_killed(tmp_path: Path):
    config = load_config(Project(ROOT))
    run = open_run(tmp_path / "r", IDENTITY, config)
    run.usd_per_s = 0.5
    run.perform("plan", dict, list)
    assert [entry.ended for entry in run.manifest.ledger] == ["done"]
    note = run.path / ".meter"
    killed = json.loads(note.read_text()) | {"id": "other", "stage": "train", "seconds": 20.0}
    note.write_text(json.dumps(killed))  # as a process leaves it that was killed 20 s after its start
    again = load_run(run.path)
    again.usd_per_s = 0.5
    before = again.spent()
    assert before[1] == pytest.approx(20 + EVERY_S, abs=1)
    again.perform("merge", dict, list)
    booked = load_run(run.path).manifest
    assert [(entry.stage, entry.ended) for entry in booked.ledger] == [
        ("plan", "done"),
        ("train", "killed"),
        ("merge", "done"),
    ]
    assert booked.cost_usd == pytest.approx(0.5 * (20 + EVERY_S), abs=1)
    assert total(booked.ledger)[0] == booked.cost_usd
    assert unrecorded_cost(run.path, booked.ledger) is None


def test_a_running_stage_is_noted_and_a_stop_at_the_cap_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("noesis.run.ledger.EVERY_S", 0.02)
    meter = StageMeter(tmp_path, "train", "now", 1.0)
    first = json.loads((tmp_path / ".meter").read_text())["seconds"]
    while json.loads((tmp_path / ".meter").read_text())["seconds"] <= first:
        pass
    assert meter.stop("done").usd > first
    run = open_run(tmp_path / "r", IDENTITY, load_config(Project(ROOT)))

    def at_the_cap() -> dict:
        raise CapError("enough")

    with pytest.raises(CapError):
        run.perform("train", at_the_cap, list)
    assert load_run(run.path).state("train") == "interrupted"


def test_the_budget_is_no_part_of_a_runs_identity():
    plain = load_config(Project(ROOT))
    other = load_config(
        Project(ROOT),
        {"training.budget.max_usd": 5.0, "training.budget.max_minutes": 3, "training.save_every": "10 minutes"},
    )
    assert plain.digest() == other.digest()
    assert (other.training.saving, load_config(Project(ROOT), {"training.save_every": "7 steps"}).training.saving) == (
        SaveEvery(seconds=600.0),
        SaveEvery(steps=7),
    )
    assert total(()) == (0.0, 0.0)
