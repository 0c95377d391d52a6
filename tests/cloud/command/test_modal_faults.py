"""The control plane made hostile, on the toy app: refused and hanging calls, ten GPUs, two containers of one input, late cards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from grpclib import Status

from helpers.modal_local import ControlPlane, Fault, RpcFault, fault_plan
from helpers.modal_local.faults.calls import KINDS
from helpers.modal_local.toys.run import toy

pytestmark = [pytest.mark.slow, pytest.mark.timing]


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    with ControlPlane() as plane:
        plane.volume("toy-data")
        plane.secret("toy-secret", TOY_KEY="abc")
        yield plane


def test_a_plan_of_faults_meets_every_call_with_every_kind_and_is_the_same_for_a_seed():
    calls = [("VolumeCommit", "train")] * 5 + [("FunctionMap", "conduct"), ("AppCreate", "command line")]
    plan = fault_plan(calls, 48)
    assert {(f.rpc, f.caller) for f in plan} == set(calls)
    assert len({(f.status, f.times, f.hang, f.lost) for f in plan}) == len(KINDS)
    assert (
        [str(f) for f in plan] == [str(f) for f in fault_plan(calls, 48)] != [str(f) for f in fault_plan(calls, 48, 2)]
    )


def test_an_answer_that_is_lost_is_given_to_the_next_try_and_nothing_is_done_twice(plane: ControlPlane):
    lost = plane.inject_rpc(RpcFault("FunctionMap", lost=True, times=2))
    slow = plane.inject_rpc(RpcFault("FunctionPutOutputs", "square", status=None, hang=40.0))
    plane.speed = 20.0
    assert toy(plane, "spawn") == "[0, 1, 4]"
    assert (lost.struck, slow.struck) == (2, 1)
    assert len(plane.functions.call_of) == 3


def test_a_status_outlasting_the_sdk_reaches_the_caller(plane: ControlPlane):
    plane.inject_rpc(RpcFault("FunctionMap", "command line", times=4, status=Status.UNAVAILABLE))
    assert "a fault of the test" in toy(plane, "spawn", code=1)


def test_gpus_are_limited_cards_come_late_and_a_preempted_input_may_run_twice_at_once(plane: ControlPlane):
    plane.max_gpus, plane.dispatch_delay, plane.overlap = 1, 0.3, True
    plane.inject(Fault("steps", log="step 3"))
    toy(plane, "steps", "--n", "5")
    first, second = plane.tasks_of("steps")
    assert second.started_at - first.started_at > 0.3
    assert (plane.volume("toy-data") / "step").read_text() == "5"
    assert plane.definition("look").gpu_count == 1


def test_volume_get_into_a_missing_folder_writes_all_files_into_one_and_says_it_finished(
    plane: ControlPlane, tmp_path: Path
):
    for name in ("a", "b"):
        (plane.volume("toy-data") / "in").mkdir(exist_ok=True)
        (plane.volume("toy-data") / "in" / name).write_text(name)
    target = tmp_path / "missing"
    done = plane.modal("volume", "get", "toy-data", "/in", target)
    assert (done.returncode, target.is_file()) == (0, True), done.stderr
    target.unlink()
    target.mkdir()
    plane.modal("volume", "get", "toy-data", "/in", target, check=True)
    assert (target / "in" / "b").read_text() == "b"
