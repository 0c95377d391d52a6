"""What a run costs when something hangs: every function in turn, under caps that are ample, tight and tiny, on a clock of its own."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.project import ROOT
from noesis.cloud.container import answers, spending
from noesis.cloud.container import orchestrator as order
from noesis.cloud.container.prepare import prepare
from noesis.cloud.container.shards import Shards
from noesis.cloud.container.workspace import BESIDE, CallResult, ContainerContext, staged_run
from noesis.cloud.limits import QUEUE_S, TRIES, CallLimit, call_limit, orchestrator_limit, price_of, worst_case
from noesis.cloud.request import CloudRequest, request_from_options
from noesis.cloud.volume.layout import FOLDER, OPENED
from noesis.core.config import ModalSection, load_config
from noesis.core.files import write_json
from noesis.core.project import Project
from noesis.run.directory import load_run, open_run
from noesis.run.ledger import LedgerEntry
from noesis.run.manifest import Identity

SECTION = ModalSection()
QUOTED = {
    "prepare": 160.0,
    "train": 1200.0,
    "probe_judge": 330.0,
    "judge_epoch": 140.0,
    "judge": 3000.0,
    "judge_served": 3000.0,
    "answer_shard": 1400.0,
    "merge": 1400.0,
}
FUNCTIONS = tuple(QUOTED)
OPTIONAL = ("probe_judge", "judge_epoch", "answer_shard")  # the run ends well without them
REMOTE = "openai:https://judge.example/v1:m"


class Clock:
    """A service where calls take as long as quoted; `hangs` never ends by itself, `starved` never gets a card."""

    def __init__(self, root: Path, request: CloudRequest, *, hangs: str = "", starved: str = "") -> None:
        self.root, self.request, self.hangs, self.starved = root, request, hangs, starved
        self.now, self.metered, self.bill, self.lost = 0.0, 0.0, 0.0, 0.0
        self.prepared: dict[str, object] = {"judge_problem": None}
        self.before = 0.0  # USD that the run on the volume had cost
        self.calls: dict[str, tuple[str, float, CallLimit]] = {}
        self.ended: list[str] = []
        self.asked: dict[str, dict] = {}
        self.shards = Shards(root, "answers", {}, 2)

    def functions(self) -> order.FunctionCalls:
        return order.FunctionCalls(
            self.start, self.result, self.cancel, lambda: None, lambda: None, sleep=lambda seconds: None
        )

    def metered_usd(self, root: Path, *, run: bool = True, charges: bool = True) -> float:
        moved = not self.prepared.get("continues", True) and (root / FOLDER / OPENED).is_file()
        return run * (self.metered + (0.0 if moved else self.before)) + charges * charged(root)

    def start(self, name: str, arguments: dict, limit: CallLimit) -> str:
        call = f"{name}-{len(self.calls)}"
        self.asked[call] = arguments
        self.calls[call] = (name, self.now, limit)
        if name == "train":
            note = json.dumps({"ticket": arguments["ticket"], "epochs": 3, "starts": 1})
            (self.root / FOLDER / OPENED).write_text(note, encoding="utf-8")
            for epoch in range(2):
                file = self.root / "checkpoints" / f"epoch_{epoch}" / "adapter_model.safetensors"
                file.parent.mkdir(parents=True)
                file.write_text("", encoding="utf-8")
        return call

    def result(self, call: str, seconds: float) -> CallResult | None:
        self.now += 150.0
        name, began, limit = self.calls[call]
        hangs = name == self.hangs or QUOTED[name] > limit.timeout_s
        takes = limit.seconds if hangs else QUOTED[name]
        if name == self.starved or self.now - began < takes:
            return None
        self.end(call, takes)
        if hangs:
            self.lost += takes * limit.usd_per_s
            return CallResult(error="FunctionTimeoutError", code=1, lost=True)
        self.metered += takes * limit.usd_per_s * (name.removesuffix("_served") in spending.WRITERS)
        if name == "answer_shard":
            write_json(self.shards.file(self.asked[call]["index"]), [0])
        beside = self.prepared | {"seconds": takes} if name in spending.LEDGERLESS else {}
        return CallResult({"court": {"verdict": "UNDECIDED", "reason": ""}} | beside)

    def end(self, call: str, seconds: float) -> None:
        assert call not in self.ended
        self.ended.append(call)
        self.bill += seconds * self.calls[call][2].usd_per_s

    def cancel(self, call: str) -> None:
        name, began, limit = self.calls[call]
        self.end(call, 0.0 if name == self.starved else min(self.now - began, limit.seconds))


@pytest.fixture
def conduct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs everything on such a service, with a cap; what came out, and the service."""
    monkeypatch.setattr(order, "summary_lines", lambda root, no_trial: [])
    shards = (Shards(tmp_path, "answers", {}, 2), ["a", "b"])
    monkeypatch.setattr(answers, "trial_shards", lambda root, project, request: shards)

    def run(cap: float, before: float = 0.0, continues: bool = True, **faults: str) -> tuple[CallResult, Clock]:
        judge = REMOTE if "judge" in faults.values() else None
        request = request_from_options(SECTION, epochs=3, max_usd=cap, shards=2, judge=judge)
        request = replace(request, seconds=QUOTED)
        clock = Clock(tmp_path, request, **faults)
        clock.before, clock.prepared["continues"] = before, continues
        monkeypatch.setattr(spending, "metered_usd", clock.metered_usd)
        money = spending.Spending(
            tmp_path, lambda name: call_limit(name, request, SECTION), cap, clock=lambda: clock.now
        )
        result = order.orchestrate(request, tmp_path, clock.functions(), "call", project=Project(ROOT), spending=money)
        clock.bill += clock.now * orchestrator_limit().usd_per_s
        return result, clock

    return run


def charged(root: Path) -> float:
    return sum(entry.usd for entry in spending.read_charges(root))


@pytest.mark.parametrize("cap", [0.05, 1.0, 3.0, 6.0, 90.0])
@pytest.mark.parametrize("hangs", ["", *FUNCTIONS])
def test_whatever_hangs_the_bill_stays_below_the_cap_and_nothing_is_left_running(
    hangs: str, cap: float, conduct, tmp_path: Path
):
    result, clock = conduct(cap, hangs=hangs)
    assert clock.bill <= cap
    assert set(clock.calls) == set(clock.ended)
    needed = hangs not in ("", *OPTIONAL)
    if cap == 90.0:
        assert (result.error is None) == (not needed), result
        assert hangs in {"", *(name for name, _, _ in clock.calls.values())}
    if result.code == 5:
        assert "--max-usd" in result.error
    assert charged(tmp_path) >= clock.lost - 1e-6


def test_at_most_says_what_the_worst_of_all_runs_costs(conduct):
    bills = [_bill(conduct, hangs) for hangs in FUNCTIONS]
    request = replace(request_from_options(SECTION, epochs=3, shards=2), seconds=QUOTED)
    worst = worst_case(request, SECTION, 3)
    assert max(bills) <= sum(worst.values())
    assert {"prepare", "probe_judge", "judge_served"} <= set(worst)


def _bill(conduct, hangs: str) -> float:
    _, clock = conduct(90.0, hangs=hangs)
    shutil.rmtree(clock.root)
    return clock.bill


def test_a_judge_is_tried_beside_training_where_the_cap_pays_for_both_and_what_writes_no_run_is_charged(
    conduct, tmp_path: Path
):
    for cap, order_of_calls in ((90.0, ["train", "probe_judge"]), (8.0, ["train", "judge_epoch", "probe_judge"])):
        result, clock = conduct(cap)
        names = [name for name, _, _ in clock.calls.values()]
        assert names[: len(order_of_calls) + 1] == ["prepare", *order_of_calls]
        limit = next(limit for name, _, limit in clock.calls.values() if name == "probe_judge")
        assert limit == call_limit("probe_judge", clock.request, SECTION)  # whole: cut short it would tell nothing
        charges = {entry.stage: (entry.seconds, entry.ended) for entry in spending.read_charges(tmp_path)}
        assert charges == {"prepare": (160.0, "done"), "probe": (330.0, "done")}, result
        shutil.rmtree(tmp_path)


def test_what_another_run_on_the_volume_has_cost_is_not_held_against_the_one_that_moves_it_away(conduct):
    result, clock = conduct(20.0, before=19.9, continues=False)
    assert result.error is None and clock.bill <= 20.0
    assert next(limit for name, _, limit in clock.calls.values() if name == "train").tries == TRIES
    shutil.rmtree(clock.root)
    result, clock = conduct(20.0, before=19.9)  # the same run goes on
    assert (result.code, [name for name, _, _ in clock.calls.values()]) == (5, ["prepare"])
    assert "train was not started: 0.0" in result.error


def test_a_preparation_that_fails_is_charged_for_its_work_and_not_for_the_wait(conduct, tmp_path: Path):
    context = ContainerContext(tmp_path, Project(ROOT), *[lambda: None] * 3, began=time.monotonic() - 3.0)
    failed = prepare(context, request_from_options(SECTION, epochs=3, model="smollm2"))
    assert "Dataset not found" in failed.error and 3.0 <= failed.value["seconds"] < 30.0
    money = spending.Spending(
        tmp_path, lambda name: CallLimit(3600.0, 2, 0.001), 90.0, clock=iter([0, 0, 900]).__next__
    )
    money.reserve("prepare", "prepare", running=True)
    money.settle("prepare", "fc-1", lost=False, worked_s=failed.value["seconds"])
    (charge,) = spending.read_charges(tmp_path)
    assert charge.seconds == pytest.approx(failed.value["seconds"], abs=0.01)


def test_charges_count_before_there_is_a_run(tmp_path: Path):
    spending.write_charges(tmp_path, (LedgerEntry("fc-1", "prepare", "2026-11-27T10:00:00+00:00", 0.01, 9.0, 0.09),))
    assert spending.metered_usd(tmp_path) == 0.09 and spending.metered_usd(tmp_path, charges=False) == 0.0


@pytest.mark.parametrize("starved", FUNCTIONS)
def test_a_card_that_never_comes_ends_in_a_message_and_an_optional_stage_blocks_nothing(starved: str, conduct):
    result, clock = conduct(90.0, starved=starved)
    assert set(clock.calls) == set(clock.ended)
    if starved == "judge_epoch":
        assert result.error is None
        assert clock.now < 4 * 3600
    elif starved == "probe_judge":
        assert "probe did not end within" in result.value["no_trial"]
        assert clock.now < 10 * 3600
    elif starved not in OPTIONAL:
        assert f"{starved.removesuffix('_served')} did not end within" in result.error
        assert "there may have been no GPU" in result.error
        assert QUEUE_S < clock.now < 24 * 3600


def test_time_outs_follow_from_the_quote_and_tries_are_few():
    request = CloudRequest.from_json(request_from_options(SECTION, epochs=3, gpu="H100:2").to_json())
    assert call_limit("train", request, SECTION) == CallLimit(12 * 3600, TRIES, price_of("train", request, SECTION))
    quoted = CloudRequest.from_json(request.to_json() | {"seconds": {"train": 2000.0}})
    assert call_limit("train", quoted, SECTION).timeout_s == 8000
    assert 2 * 0.001097 < price_of("train", request, SECTION) < 2 * 0.0012
    dearest = request_from_options(SECTION, epochs=3)
    assert price_of("train", dearest, SECTION) > 0.000694  # an A100, if there is no L40S


def test_what_was_charged_is_read_back_and_damage_is_nothing(tmp_path: Path):
    entry = LedgerEntry("fc-1", "train", "2026-11-27T10:00:00+00:00", 0.001, 10.0, 0.01, "killed")
    spending.write_charges(tmp_path, (entry,))
    assert spending.read_charges(tmp_path) == (entry,)
    for text in ("{", "7", '[{"stage": 1}]', '[{"stage": "x", "seconds": 1, "usd": -1}]', "[[]]"):
        (tmp_path / FOLDER / "charges.json").write_text(text, encoding="utf-8")
        assert spending.read_charges(tmp_path) == ()


def test_starts_downloads_and_hung_containers_are_in_the_ledger_once(tmp_path: Path):
    config = load_config(Project(ROOT))
    open_run(tmp_path, Identity("c", "d", "k", "someone/else", "r"), config, archive_to=tmp_path / "runs")
    hung = LedgerEntry("fc-1", "train", "2026-11-27T10:00:00+00:00", 0.001, 10.0, 0.01, "killed")
    spending.write_charges(tmp_path, (hung,))
    assert spending.metered_usd(tmp_path) == 0.01

    def nothing() -> None: ...

    for times in (1, 2):
        began = time.monotonic() - 100.0
        context = ContainerContext(tmp_path, Project(ROOT), nothing, nothing, nothing, began)
        with staged_run(context) as run:
            run.usd_per_s = 0.01
            run.perform("plan", dict, list, again=True)
        ledger = load_run(tmp_path).manifest.ledger
        beside = [entry for entry in ledger if entry.stage == BESIDE]
        assert len(beside) == times
        assert 100.0 <= beside[-1].seconds < 160.0
        assert beside[-1].usd == pytest.approx(0.01 * beside[-1].seconds, abs=0.001)
        assert ledger.count(hung) == 1
        assert spending.read_charges(tmp_path) == ()
    assert spending.metered_usd(tmp_path) == pytest.approx(sum(entry.usd for entry in ledger), abs=1e-6)
