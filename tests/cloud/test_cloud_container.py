"""What runs in containers, without Modal: the orchestrator's order, results of calls, shards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.project import ROOT
from noesis.cloud.container import orchestrator as order
from noesis.cloud.container.shards import Shards, do_shard, map_shards
from noesis.cloud.container.workspace import CallResult, ContainerContext, run_guarded
from noesis.cloud.limits import CallLimit
from noesis.cloud.request import CloudRequest, request_from_options
from noesis.cloud.volume.layout import FOLDER, LEASE, OPENED
from noesis.cloud.volume.lease import LeaseRecord
from noesis.core.config import ModalSection
from noesis.core.errors import RunError, UsageError
from noesis.core.project import Project

SECTION = ModalSection()
SERVED = ["probe_judge", "judge_served"]  # the default judge is served by the run itself


@pytest.fixture(autouse=True)
def no_wait_for_what_was_left(monkeypatch: pytest.MonkeyPatch):
    """The waits are none here, so that the clock would be asked for as long as a lease is held after a stop."""
    monkeypatch.setattr("noesis.cloud.volume.lease.LEAVING_S", 0.05)


def asked(**more: object) -> CloudRequest:
    return request_from_options(SECTION, **({"epochs": 3} | more))


# --- the orchestrator


class Plays:
    """Functions that end when they are polled for the third time; training leaves an epoch at each poll."""

    def __init__(self, root: Path, **results: CallResult) -> None:
        self.root, self.results, self.started, self.polls = root, results, [], {}
        self.cancelled: list[str] = []
        self.asked: dict[str, dict] = {}  # name → arguments

    def calls(self) -> order.FunctionCalls:
        return order.FunctionCalls(
            self.start, self.result, self.cancelled.append, lambda: None, lambda: None, sleep=lambda s: None
        )

    def start(self, name: str, arguments: dict, limit: CallLimit) -> str:
        self.started.append(name if name != "judge_epoch" else f"judge epoch_{arguments['epoch']}")
        self.asked[name] = arguments
        if name == "train":
            (self.root / FOLDER / OPENED).write_text(
                json.dumps({"ticket": arguments["ticket"], "epochs": 3, "starts": 1}), encoding="utf-8"
            )
        return f"{name}-{len(self.started)}"

    def result(self, call: str, seconds: float) -> CallResult | None:
        self.polls[call] = self.polls.get(call, 0) + 1
        name = call.split("-")[0]
        if name == "train":
            adapter = self.root / "checkpoints" / f"epoch_{self.polls[call] - 1}" / "adapter_model.safetensors"
            adapter.parent.mkdir(parents=True, exist_ok=True)
            adapter.write_text("", encoding="utf-8")
        if self.polls[call] < 3:
            return None
        return self.results.get(
            name, CallResult({"court": {"verdict": "REJECTED", "reason": ""}, "judge_problem": None})
        )


@pytest.fixture
def quiet_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "summary_lines", lambda root, no_trial: ["done", no_trial or ""])


def test_epochs_are_judged_beside_and_the_verdict_is_the_exit_code_only_where_asked(
    tmp_path: Path, quiet_summary: None
):
    plays = Plays(tmp_path)
    old = (
        tmp_path / "checkpoints" / "epoch_0" / "adapter_model.safetensors"
    )  # of a run before: nobody's to judge until training has opened its own
    old.parent.mkdir(parents=True)
    old.write_text("", encoding="utf-8")
    assert order.orchestrate(asked(gate=True), tmp_path, plays.calls(), "call").code == 3
    assert plays.started == ["prepare", "train", *SERVED[:1], "judge epoch_0", "judge epoch_1", *SERVED[1:], "merge"]
    assert order.orchestrate(asked(), tmp_path, Plays(tmp_path).calls(), "call-2").code == 0


def test_test_only_and_merge_only_do_only_that(tmp_path: Path, quiet_summary: None):
    for given, started in (({"test_only": True}, SERVED), ({"merge_only": True}, ["merge"])):
        plays = Plays(tmp_path)
        assert order.orchestrate(asked(**given), tmp_path, plays.calls(), "call").code == 0
        assert plays.started == ["prepare", *started]


def test_a_stop_ends_the_order_with_its_code_and_gives_the_volume_back(tmp_path: Path):
    plays = Plays(tmp_path, train=CallResult(error="at the cap", code=5))
    assert order.orchestrate(asked(), tmp_path, plays.calls(), "call").code == 5
    assert "judge" not in plays.started
    assert (
        order.orchestrate(
            asked(test_only=True),
            tmp_path,
            Plays(tmp_path, judge_served=CallResult(error="x", code=1)).calls(),
            "other",
        ).code
        == 1
    )


def test_a_preempted_orchestrator_waits_for_the_same_training(tmp_path: Path, quiet_summary: None):
    plays = Plays(tmp_path)
    calls = plays.calls()

    def preempted(call: str, seconds: float) -> CallResult | None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        order.orchestrate(
            asked(),
            tmp_path,
            replace(calls, result=preempted),
            "call",
        )
    assert order.orchestrate(asked(), tmp_path, calls, "call").code == 0
    assert plays.started.count("train") == 1


def test_a_judge_that_can_not_judge_costs_no_answers_and_stops_nothing_else(tmp_path: Path, quiet_summary: None):
    """All answers were paid for before the judge was started; and the verdict said that no judge was named."""
    why = "the judge vllm:x/y can't judge: RuntimeError: no nvcc"
    for problem in (
        {"prepare": CallResult({"judge_problem": why})},
        {"probe_judge": CallResult({"judge_problem": why})},
    ):
        plays = Plays(tmp_path, **problem)
        done = order.orchestrate(asked(gate=True, shards=2), tmp_path, plays.calls(), "call", project=Project(ROOT))
        assert (done.error, done.value["lines"]) == (None, ["done", why])
        assert ("probe_judge" in plays.started) == ("probe_judge" in problem)
        assert plays.started[-2:] == ["judge", "merge"]  # without vLLM, on the plain image
        assert plays.asked["judge"]["request"]["judge_problem"] == why
        assert "answer_shard" not in plays.started
    killed = Plays(tmp_path, probe_judge=CallResult(error="FunctionTimeoutError: x", code=1))
    done = order.orchestrate(asked(test_only=True), tmp_path, killed.calls(), "other")
    assert "vllm:Qwen/Qwen2.5-7B-Instruct can't judge: FunctionTimeoutError" in done.value["no_trial"]


def test_missing_weights_end_the_run_before_a_card_is_rented(tmp_path: Path):
    plays = Plays(tmp_path, prepare=CallResult(error="meta-llama/x is gated", code=1))
    assert order.orchestrate(asked(), tmp_path, plays.calls(), "call").error == "meta-llama/x is gated"
    assert plays.started == ["prepare"]


def test_what_runs_in_the_judges_own_app_is_cancelled_when_the_orchestrator_leaves(tmp_path: Path):
    """Calls of a deployed function are not stopped with the app of `modal run`, and would be paid for to their end."""
    plays = Plays(tmp_path, train=CallResult(error="out of memory", code=1))
    plays.polls["probe_judge-3"] = -100  # still under way
    assert order.orchestrate(asked(), tmp_path, plays.calls(), "call").code == 1
    assert plays.cancelled == ["probe_judge-3", "judge_epoch-4", "judge_epoch-5"]

    stopped = Plays(tmp_path)  # Ctrl-C stops the app of `modal run`; after a preemption training is waited for again
    calls = stopped.calls()

    def result(call: str, seconds: float) -> CallResult | None:
        if call.startswith("train"):
            raise KeyboardInterrupt
        return stopped.result(call, seconds)

    with pytest.raises(KeyboardInterrupt):
        order.orchestrate(asked(), tmp_path, replace(calls, result=result), "call-2")
    assert stopped.cancelled == ["probe_judge-3"]
    assert set(LeaseRecord.parse((tmp_path / FOLDER / LEASE).read_text()).calls) == {"prepare", "train"}


def test_what_goes_wrong_in_a_container_is_a_result_and_what_takes_it_away_is_not(tmp_path: Path):
    done: list[str] = []
    context = ContainerContext(
        tmp_path,
        Project(ROOT),
        lambda: done.append("reload"),
        lambda: done.append("commit"),
        lambda: done.append("keep"),
    )

    def raises(error: BaseException):
        def work() -> dict:
            raise error

        return work

    class OutOfMemoryError(RuntimeError):
        pass

    for error in (MemoryError(), OutOfMemoryError("CUDA out of memory")):
        said = run_guarded(context, raises(error)).error
        assert "per_device_train_batch_size: 1 and gradient_accumulation_steps: 8" in said
    assert run_guarded(context, raises(UsageError("x"))) == CallResult(error="x", code=2)
    assert "modal app logs" in run_guarded(context, raises(ZeroDivisionError("y"))).error
    done.clear()
    with pytest.raises(KeyboardInterrupt):
        run_guarded(context, raises(KeyboardInterrupt()))
    assert done == ["reload", "commit", "keep"]


# --- shards


def test_shards_cover_every_item_once_and_survive_the_loss_of_any(tmp_path: Path):
    items = list(range(11))
    shards = Shards(tmp_path, "answers", {"model": "m"}, 4)
    asked, lost = [], {1: 2, 3: 1}  # shard → times that its machine is lost

    def spread(indices: list[int]) -> list[object]:
        asked.append(indices)
        done: list[object] = []
        for index in indices:
            if lost.get(index, 0):
                lost[index] -= 1
                done.append(RuntimeError("taken away"))
            else:
                done.append(do_shard(shards, index, items, lambda own: [i * i for i in own], lambda: None))
        return done

    assert map_shards(shards, items, spread, lambda: None) == [i * i for i in items]
    assert asked == [[0, 1, 2, 3], [1, 3], [1]]
    assert map_shards(shards, items, spread, lambda: None) == [i * i for i in items]
    assert len(asked) == 3
    shards.file(2).write_text("[1", encoding="utf-8")  # torn
    assert map_shards(shards, items, spread, lambda: None) == [i * i for i in items]
    assert asked[-1] == [2]
    assert Shards(tmp_path, "answers", {"model": "other"}, 4).missing(items) == [0, 1, 2, 3]
    assert map_shards(Shards(tmp_path, "few", 0, 4), [], spread, lambda: None) == []


def test_a_shard_that_is_always_lost_ends_in_a_message_and_the_others_are_kept(tmp_path: Path):
    shards = Shards(tmp_path, "answers", 0, 3)

    def spread(indices: list[int]) -> list[object]:
        return [
            RuntimeError("no card") if i == 1 else do_shard(shards, i, "abcdef", lambda own: [*own], lambda: None)
            for i in indices
        ]

    with pytest.raises(RunError, match="1 of 3 shards of answers were lost 3 times .1: RuntimeError: no card"):
        map_shards(shards, "abcdef", spread, lambda: None)
    assert shards.missing("abcdef") == [1]
    with pytest.raises(RunError, match="1 results for 2 items"):
        do_shard(shards, 1, "abcdef", lambda own: own[:1], lambda: None)
