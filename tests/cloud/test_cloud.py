"""The side of Modal that needs no Modal: options, the check of the upload, the quote and what a run cost."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.project import ROOT
from noesis.cloud.cost import metered_lines
from noesis.cloud.quote import quote_lines
from noesis.cloud.request import CloudRequest, gpu_to_rent, most_gpus, request_from_options
from noesis.cloud.run_summary import preemption_lines
from noesis.cloud.volume.uploaded_data import exported_hashes, require_upload
from noesis.core.config import ModalSection
from noesis.core.errors import DataError, UsageError
from noesis.core.project import Project
from noesis.planning.gpus import rented_gpu
from noesis.planning.pricing import RENTED, train_machine, usd_for, usd_per_second
from noesis.run.manifest import Identity
from noesis.run.manifest_file import parse_manifest

SECTION = ModalSection()


def asked(**more: object) -> CloudRequest:
    return request_from_options(SECTION, **({"epochs": 3} | more))


@pytest.mark.parametrize("model", ["models/x.gguf", "/home/someone/X.GGUF"])
def test_a_gguf_file_of_this_machine_is_refused_before_anything_is_quoted(model: str):
    with pytest.raises(
        UsageError, match=f"--model {model}: a file of this machine is not in the cloud; name the model"
    ):
        asked(model=model)


def test_options_become_a_request_that_survives_the_journey():
    request = asked(epochs=1, gguf="q8_0,f16,q8_0", max_usd=5.0, method="dpo", judge="none", gate=True)
    assert request.gguf == ("q8_0", "f16")
    assert (request.judges, request.max_usd, request.max_minutes, request.gate) == ((), 5.0, None, True)
    assert CloudRequest.from_json(json.loads(json.dumps(request.to_json()))) == request
    assert request.overrides.settings("dpo")["training.method"] == "dpo"
    assert "training.method" not in asked().overrides.settings("sft")
    assert asked().model == "meta-llama/Llama-3.1-8B-Instruct"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"test_only": True, "merge_only": True}, "exclude each other"),
        ({"resume": True, "fresh": True}, "one of them"),
        ({"epochs": 0}, "--epochs 0"),
        ({"max_usd": -1.0}, "--max-usd -1: it must be above 0"),
        ({"gpus": 9}, "at most 8 GPUs"),
        ({"method": "ppo"}, "choose sft, dpo"),
        ({"test_only": True, "fresh": True}, "train nothing"),
        ({"judge": "gguf:judge.gguf"}, "is not in the cloud"),
        ({"judge": "openai:http://127.0.0.1:8000/v1:x"}, "is not in the cloud"),
        ({"judge": "vllm:../../etc"}, "name a model on the Hub"),
        ({"judge": "nonsense"}, "not understood"),
    ],
)
def test_options_that_can_not_work_are_refused_before_anything_starts(given: dict, said: str):
    with pytest.raises(UsageError, match=said):
        asked(**given)


def test_one_judge_is_served_by_the_run_itself():
    request = request_from_options(ModalSection(judges=()), judge="vllm:Qwen/Qwen2.5-7B-Instruct,openai:https://x/v1:m")
    assert (request.served_judges, request.remote_judges) == (("Qwen/Qwen2.5-7B-Instruct",), ("openai:https://x/v1:m",))
    with pytest.raises(UsageError, match="room for one vllm: model"):
        asked(judge="vllm:a/b,vllm:c/d")


@pytest.mark.parametrize(
    ("gpu", "gpus", "rented"),
    [
        (None, None, None),
        ("H100", None, "H100"),
        ("H100", 4, "H100:4"),
        ("H100:2", None, "H100:2"),
        (None, 2, "L40S:2"),
        ("a10g", None, "A10"),
        ("H100:2", 2, "H100:2"),
    ],
)
def test_the_gpu_of_a_call(gpu: str | None, gpus: int | None, rented: str | None):
    assert gpu_to_rent(asked(gpu=gpu, gpus=gpus), SECTION) == rented


def test_the_older_name_of_a_card_in_the_yaml_file_is_todays():
    assert ModalSection(judge_gpu=("A10G",), train_gpu=("a10g:2", "L40S")).judge_gpu == ("A10",)
    assert ModalSection(train_gpu=("a10g:2", "L40S")).train_gpu == ("A10:2", "L40S")


# --- the upload


def test_an_upload_that_is_missing_torn_stale_or_misplaced_says_what_to_type(tmp_path: Path):
    exports, dataset = tmp_path / "exports", tmp_path / "dataset"
    shutil.copytree(ROOT / "data" / "training" / "exports", exports)
    here = exported_hashes(exports)
    with pytest.raises(UsageError, match="Dataset not found.*modal volume put vol data/training/exports /dataset"):
        require_upload(dataset, here, "vol")
    shutil.copytree(exports, dataset / "exports")
    with pytest.raises(UsageError, match="one folder too deep"):
        require_upload(dataset, here, "vol")
    shutil.rmtree(dataset)
    shutil.copytree(exports, dataset)
    require_upload(dataset, here, "vol")
    require_upload(dataset, None, "vol")
    lines = (dataset / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (dataset / "train.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(DataError, match="not complete.*--force"):
        require_upload(dataset, here, "vol")
    shutil.copyfile(exports / "train.jsonl", dataset / "train.jsonl")
    with pytest.raises(DataError, match="not the one that was exported here.*--force"):
        require_upload(dataset, {"train": "0" * 64, "eval": here["eval"]}, "vol")
    (exports / "eval.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="changed since its export.*export_for_modal"):
        exported_hashes(exports)
    assert exported_hashes(tmp_path / "nowhere") is None


# --- what it costs


def test_the_quote_names_every_part_and_the_parts_add_up():
    project = Project(ROOT)
    request = asked()
    lines = quote_lines(project, request.overrides.configure(project), request, SECTION)
    text = "\n".join(lines)
    for part in (
        "train",
        "judge",
        "merge and gguf",
        "fetch weights",
        "judge 2 epochs",
        "try the judge",
        "trial, estimated",
        "orchestrator",
        "cap 90.00 USD",
        "L40S",
    ):
        assert part in text, part
    begin = next(i for i, line in enumerate(lines) if line.strip().startswith("time"))
    costs = [
        float(found[1])
        for line in lines[begin:]
        if "in all" not in line and "cost" not in line and (found := re.search(r" ([0-9.]+) USD(  |$)", line))
    ]
    whole = next(float(line.split("cost")[1].split()[0]) for line in lines if line.strip().startswith("cost"))
    assert whole == pytest.approx(sum(costs), abs=0.05)
    few = "\n".join(
        quote_lines(
            project,
            asked(epochs=1, judge="none").overrides.configure(project),
            asked(epochs=1, judge="none"),
            SECTION,
        )
    )
    assert "trial" not in few and "judge 1 epoch" not in few


def test_cards_that_would_be_paid_for_and_not_used_are_refused():
    request = asked(method="sft+dpo", gpus=2)
    with pytest.raises(UsageError, match="runs on one GPU"):
        quote_lines(Project(ROOT), request.overrides.configure(Project(ROOT)), request, SECTION)


def test_costs_by_stage_and_how_often_it_was_taken_away():
    entry = {"usd": 0.5, "seconds": 900.0, "ended": "done"}
    ledger = [
        entry | {"stage": "train", "ended": e} for e in ("killed", "interrupted", "interrupted", "capped", "done")
    ] + [entry | {"stage": "merge"}]
    plan = {"result": {"stages": [{"name": "train", "usd": 2.0}, {"name": "merge and gguf", "usd": 0.1}]}}
    stages = {"plan": {"status": "done"} | plan}
    identity = Identity("c", "d", "k", "someone/else", "r").to_json()
    manifest = parse_manifest({"identity": identity, "output_name": "m", "ledger": ledger, "stages": stages})
    lines = metered_lines(manifest)
    assert "2.5000 USD   quoted 2.00" in lines[0]
    assert "3.0000 USD   quoted 2.10" in lines[-1]
    assert preemption_lines(manifest) == ["  training was preempted 3 times and resumed each time"]


def test_the_cost_tables_are_what_the_planner_says_now():
    done = subprocess.run([sys.executable, ROOT / "docs" / "make_costs.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_vllm_s_image_installs_is_pinned():
    lines = (ROOT / "constraints-vllm.txt").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("vllm==") for line in lines)
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []


def test_several_gpus_get_the_cores_and_the_memory_of_several():
    assert (most_gpus(("L40S:2", "H100")), most_gpus(["H100"])) == (2, 1)
    assert train_machine(8) == (16, 256)


@pytest.mark.parametrize(
    ("asked_for", "given", "billed"),
    [
        ("H100", "NVIDIA H200", "H100"),
        ("H100:4", "NVIDIA H200", "H100"),
        ("H100,H200", "NVIDIA H200", "H200"),
        ("H200", "NVIDIA H200", "H200"),
        ("L40S,A100-80GB", "NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("", "NVIDIA H200", "H200"),
    ],
)
def test_a_card_that_was_upgraded_is_metered_as_it_is_billed(
    monkeypatch: pytest.MonkeyPatch, asked_for: str, given: str, billed: str
):
    """Modal may run an H100's function on an H200, at the H100's price."""
    monkeypatch.setenv("MODAL_TASK_ID", "ta-1")
    monkeypatch.setenv(RENTED, asked_for)
    device = replace(rented_gpu("H200"), name=given)
    assert usd_per_second(device, None) == pytest.approx(usd_for(rented_gpu(billed), 1.0, 1, train_machine(1)))
