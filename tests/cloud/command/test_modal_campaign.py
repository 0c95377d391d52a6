"""A sample of benchmarks/modal_faults.py: whole runs without torch, each with one fault, end as undisturbed or with a message first."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from grpclib import Status

from helpers.modal_guide import make_clone
from helpers.modal_local import Fault, RpcFault
from helpers.modal_local.faults.calls import SDK_TRIES
from helpers.modal_local.toys.campaign import BUSY, Campaign, interleaved

LOST = {"lost": True, "times": SDK_TRIES}


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    clone = make_clone(tmp_path_factory.mktemp("campaign") / "noesis")
    environment = os.environ | {"PYTHONPATH": str(clone / "src")}
    command = [sys.executable, "scripts/export_for_modal.py"]
    subprocess.run(command, cwd=clone, env=environment, check=True, capture_output=True)
    found = Campaign(clone)
    found.undisturbed()
    return found


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.timing
@pytest.mark.parametrize(
    ("fault", "end"),
    [
        pytest.param(RpcFault("FunctionMap", "conduct", **LOST), "same", id="the training may have started twice"),
        pytest.param(
            RpcFault("FunctionGetOutputs", "conduct", 4, 2 * SDK_TRIES), "same", id="the orchestrator can't ask"
        ),
        pytest.param(
            RpcFault("VolumeCommit", "train", 3, status=Status.RESOURCE_EXHAUSTED), "same", id="a commit fails"
        ),
        pytest.param(RpcFault("VolumeReload", "judge", status=None, hang=60.0), "same", id="a minute of silence"),
        pytest.param(Fault("train", log="STEP 3"), "same", id="a second container starts while the first leaves"),
        pytest.param(
            RpcFault("FunctionMap", "command line", times=4, status=Status.PERMISSION_DENIED), "clear", id="refused"
        ),
    ],
)
def test_one_fault_in_a_whole_run(fault: RpcFault | Fault, end: str, campaign: Campaign):
    outcome = campaign.run(fault, overlap=True)
    assert outcome.end == end, outcome.said
    assert fault.struck
    assert outcome.usd < 90.0
    assert BUSY not in outcome.said


def test_a_second_trainer_would_be_seen():
    assert interleaved("STEP 1 a\nx\nSTEP 2 a\nSTEP 3 b\nSTEP 4 b\n") == []
    assert interleaved("STEP 1 a\nSTEP 2 b\nSTEP 2 a\n") == ["a"]
