"""`--nodes N`: what is refused and why, what several machines cost, and what each of them does."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import modal
import pytest

from helpers.project import ROOT
from noesis.cloud import entrypoint
from noesis.cloud.container import orchestrator as order
from noesis.cloud.container import stages
from noesis.cloud.container.spending import Spending
from noesis.cloud.container.workspace import CallResult, ContainerContext
from noesis.cloud.entrypoint import NODES_ASKED, nodes_asked, require_nodes_deployed
from noesis.cloud.limits import CallLimit, price_of
from noesis.cloud.quote import cloud_quote
from noesis.cloud.request import CloudRequest, gpu_to_rent, request_from_options
from noesis.cloud.volume.lease import Lease
from noesis.core.config import Config, ModalSection
from noesis.core.errors import UsageError
from noesis.core.project import Project
from noesis.training.distributed import Nodes

SECTION, PROJECT = ModalSection(), Project(ROOT)
TWO = {"nodes": 2, "gpu": "H100"}


def configured(request: CloudRequest, sequences: int = 16) -> Config:
    """The project's, with so many sequences a step."""
    config = request.overrides.configure(PROJECT)
    training = config.training.model_copy(
        update={"per_device_train_batch_size": 1, "gradient_accumulation_steps": sequences}
    )
    return config.model_copy(update={"training": training})


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"nodes": 2}, "name the card, for example  --nodes 2 --gpu H100"),
        (TWO | {"gpu": "H100:4"}, "has all 8 GPUs of its host"),
        (TWO | {"gpus": 2}, "has all 8 GPUs of its host"),
        (TWO | {"nodes": 33}, "at most 32 machines"),
        (TWO | {"nodes": -1}, "must be above 0"),
        (TWO | {"test_only": True}, "is for training"),
    ],
    ids=["no card", "half a host", "few GPUs", "too many", "less than none", "nothing is trained"],
)
def test_what_modal_s_clusters_are_not_is_refused(options: dict, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        request_from_options(SECTION, **options)


@pytest.mark.parametrize(
    ("more", "sequences", "why"),
    [({}, 8, "16 GPUs can't share a step's 8 sequences.*multiple of 16"), ({"method": "dpo"}, 16, "runs on one GPU")],
    ids=["too few sequences a step", "preference training"],
)
def test_what_the_training_can_t_share_is_refused_before_anything_starts(more: dict, sequences: int, why: str) -> None:
    request = request_from_options(SECTION, **TWO, **more)
    with pytest.raises(UsageError, match=why):
        cloud_quote(PROJECT, configured(request, sequences), request, SECTION)


def test_two_machines_are_quoted_and_metered_as_two() -> None:
    request = CloudRequest.from_json(request_from_options(SECTION, **TWO, judge="none").to_json())
    assert gpu_to_rent(request, SECTION) == "H100:8"
    one = replace(request, nodes=1)
    assert price_of("train", request, SECTION) == pytest.approx(2 * price_of("train", one, SECTION))
    assert price_of("judge", request, SECTION) == price_of("judge", one, SECTION)
    found, of_one = (cloud_quote(PROJECT, configured(r), r, SECTION) for r in (request, one))
    assert found is not None and of_one is not None
    assert (found.plan.setup.gpus, found.plan.device.gpus) == (16, 16)
    assert found.plan.stages[0].where == "16 × H100"
    per_second = [quote.plan.stages[0].usd / quote.plan.stages[0].seconds for quote in (found, of_one)]
    assert per_second[0] == pytest.approx(2 * per_second[1])
    assert request_from_options(SECTION).nodes == request_from_options(SECTION, nodes=1).nodes == 1


def test_where_the_sdk_or_the_plan_has_no_clusters_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_from_options(SECTION, **TWO)

    def refused() -> None:
        raise modal.exception.PermissionDeniedError("Clusters are not available on this plan")

    with pytest.raises(UsageError, match=r"gives no cluster here \(Clusters are not available on this plan\); without"):
        require_nodes_deployed(request, refused)
    require_nodes_deployed(replace(request, nodes=1), refused)
    monkeypatch.delattr(entrypoint.modal, "clustered")
    with pytest.raises(UsageError, match=rf"modal {modal.__version__} has no clusters; without --nodes"):
        require_nodes_deployed(request, pytest.fail)


@pytest.mark.parametrize(
    ("typed", "set_to", "size"),
    [
        (["--nodes", "3"], "", 3),
        (["--epochs", "3", "--nodes=4"], "", 4),
        ([], "5", 5),
        (["--max-nodes", "7"], "", 2),
        ([], "", 2),
    ],
)
def test_the_cluster_is_declared_as_large_as_asked(
    monkeypatch: pytest.MonkeyPatch, typed: list[str], set_to: str, size: int
) -> None:
    monkeypatch.setattr(sys, "argv", ["modal", "run", "x", *typed])
    monkeypatch.setenv(NODES_ASKED, set_to)
    assert nodes_asked() == size


def test_the_first_machine_trains_and_the_others_bring_the_saved_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reloads: list[int] = []
    context = ContainerContext(tmp_path / "volume", PROJECT, lambda: reloads.append(1), *[lambda: None] * 2)
    state = context.root / "checkpoints" / "resume" / "checkpoint-3" / "state"
    state.parent.mkdir(parents=True)
    state.write_text("saved", encoding="utf-8")
    job = SimpleNamespace(resume_folder=tmp_path / "elsewhere" / "checkpoints" / "resume")
    monkeypatch.setattr(stages, "train", lambda *_: CallResult({"steps": 6}))
    monkeypatch.setattr(stages, "leading", lambda nodes: nullcontext())
    monkeypatch.setattr(stages, "follow", lambda nodes, bring: bring(job) or nodes.rank)
    request = request_from_options(SECTION, **TWO)
    assert stages.train_on_nodes(context, request, "call", Nodes(0, 2, "::1")).value == {"steps": 6}
    assert stages.train_on_nodes(context, request, "call", Nodes(1, 2, "::1")).value == {"jobs": 1}
    assert (job.resume_folder / "checkpoint-3" / "state").read_text(encoding="utf-8") == "saved"
    assert len(reloads) == 2  # at its start, and for the newest state


def test_machines_in_an_app_of_their_own_are_stopped_with_the_orchestrator(tmp_path: Path) -> None:
    stopped: list[str] = []
    calls = order.FunctionCalls(lambda *_: "fc-1", lambda *_: None, stopped.append, lambda: None, lambda: None)
    for nodes, expected in ((1, []), (2, ["fc-1"])):
        request = replace(request_from_options(SECTION, **TWO), nodes=nodes)
        lease = Lease(tmp_path / str(nodes), "call", lambda: None, lambda: None, sleep=lambda s: None)
        spending = Spending(tmp_path, lambda name: CallLimit(60.0, 1, 0.0), None)
        spending.reserve("train", "train", running=True)
        lease.calls["train"] = "fc-1"
        order._Orchestrator(request, tmp_path, PROJECT, calls, lease, spending).cancel_all(apart=True)
        assert stopped == expected
