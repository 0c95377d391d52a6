"""Jobs and results as JSON, and which backend takes which job."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.project import ROOT
from helpers.tiny_runs import CONSTITUTION, PLAIN, examples, rows_of, small
from helpers.training_jobs import preference_job, sft_job
from noesis.dataset.encode import example_pairs
from noesis.llm.row_encoder import open_encoder
from noesis.planning.budget import Budget
from noesis.training.job import HeldOutPairs, HeldOutRewards, PreferencePairs, TrainJob, TrainResult

RESULT = TrainResult(
    steps=6,
    epochs=2,
    tokens=900,
    seconds=3.5,
    tokens_per_s=257.1,
    first_loss=3.5,
    final_loss=None,
    peak_memory_bytes=10**9,
)


def test_a_job_survives_the_way_to_another_process(tiny_shape: Path, tmp_path: Path, record: dict):
    budget = Budget(0.01, 0.5, 20.0, 90.0, None, 12.0)
    job = sft_job(tiny_shape, tmp_path, rows_of(tiny_shape, 4, record), small(), budget=budget, parent=tmp_path / "p")
    assert TrainJob.from_json(json.loads(json.dumps(job.to_json()))) == job
    pairs = example_pairs(
        examples(4, record), open_encoder(tiny_shape), CONSTITUTION, include_critique=False, max_length=2048
    )
    job = preference_job(tiny_shape, tmp_path, PreferencePairs(pairs[:3], pairs[3:]), small())
    assert TrainJob.from_json(json.loads(json.dumps(job.to_json()))) == job


def test_a_result_is_stored_under_todays_keys_and_read_again(tiny_shape: Path, tmp_path: Path, record: dict):
    plan = sft_job(tiny_shape, tmp_path, rows_of(tiny_shape, 4, record), small()).plan
    held_out = HeldOutPairs(3, (HeldOutRewards(1.0, 0.25, 2.5),))
    result = replace(RESULT, held_out=held_out, sft=RESULT, smaller_plan=plan)
    stored = json.loads(json.dumps(result.to_json()))
    assert stored["held_out"] == {
        "pairs": 3,
        "by_epoch": [{"reward_accuracy": 1.0, "reward_margin": 0.25, "loss": 2.5}],
    }
    assert stored["out_of_memory_once"] is True and stored["sft"]["out_of_memory_once"] is False
    assert "saves" not in stored and stored["final_loss"] is None
    assert TrainResult.from_json(stored) == result


def test_the_train_stages_result_of_an_old_run_is_read(tmp_path: Path):
    manifest = json.loads((ROOT / "tests/helpers/golden_run/manifest.json").read_text(encoding="utf-8"))
    stored = manifest["stages"]["train"]["result"]
    assert TrainResult.from_json(stored).to_json() == stored


def test_libraries_are_silenced_before_a_backend_imports_them():
    """bitsandbytes warns while it is imported; transformers imports it."""
    names = "{'torch', 'trl', 'transformers', 'bitsandbytes'}"
    code = f"import noesis.training.trainer, sys; print(*{names} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.slow
def test_each_job_goes_to_its_backend(tiny_model: Path, tmp_path: Path, record: dict, monkeypatch: pytest.MonkeyPatch):
    from noesis.training.trainer import choose_backend

    rows = rows_of(tiny_model, 4, record)
    job = sft_job(tiny_model, tmp_path, rows, small())

    def chosen(job: TrainJob, **setup: object) -> str:
        return choose_backend(replace(job, plan=replace(job.plan, setup=replace(job.plan.setup, **setup)))).name

    assert chosen(job) == "sft"
    assert chosen(job, engine="unsloth") == "unsloth"
    assert chosen(job, gpus=2) == "torchrun"
    plain = sft_job(tiny_model, tmp_path, rows, small(**PLAIN))
    assert (chosen(plain), chosen(plain, gpus=2)) == ("sft", "torchrun")
    spread = replace(plain, plan=replace(plain.plan, sharded=True))
    assert chosen(spread, gpus=2) == "sft"  # only the engine spreads a base over several GPUs
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert chosen(job, gpus=2) == "sft"  # one of torchrun's processes
    pairs = example_pairs(
        examples(2, record), open_encoder(tiny_model), CONSTITUTION, include_critique=False, max_length=2048
    )
    assert chosen(preference_job(tiny_model, tmp_path, PreferencePairs(pairs), small())) == "preference"
