"""Whole runs on the engine, on a tiny Llama and a CPU: outputs, resuming, too little memory, two processes, Unsloth."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest


def train_packed(tiny_model: Path, folder: Path, record: dict, **overrides: object):
    """The result of training 20 examples on the engine; the plan has one fallback, which recomputes."""

    from helpers.tiny_runs import rows_of, small
    from helpers.training_jobs import sft_job
    from noesis.planning.plan import PlanVariant
    from noesis.training.trainer import train

    config = small(
        **{
            "training.packing": True,
            "lora.lora_dropout": 0.1,
            "training.num_train_epochs": 2,
            "training.save_every": "1 step",
        }
        | overrides
    )
    job = sft_job(tiny_model, folder, rows_of(tiny_model, 20, record), config)
    assert job.plan.setup.packing
    smaller = PlanVariant(**{field.name: getattr(job.plan, field.name) for field in fields(PlanVariant)})
    smaller = replace(smaller, setup=replace(smaller.setup, gradient_checkpointing="full"))
    return train(replace(job, plan=replace(job.plan, fallbacks=(smaller,))))


@pytest.mark.slow
def test_a_packed_run_leaves_metrics_and_plain_peft_adapters(tiny_model: Path, tmp_path: Path, record: dict):
    import json

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    result = train_packed(tiny_model, tmp_path, record)
    assert result.steps == 6 and result.smaller_plan is None
    assert result.final_loss < result.first_loss - 0.3
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in lines] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2], abs=1e-3)
    assert lines[-1]["tokens"] == result.tokens
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = base.state_dict()["model.layers.0.mlp.down_proj.weight"].clone()
    merged = PeftModel.from_pretrained(base, tmp_path / "checkpoints" / "epoch_1").merge_and_unload()
    assert not before.equal(merged.state_dict()["model.layers.0.mlp.down_proj.weight"])


@pytest.mark.slow
def test_a_packed_run_that_was_stopped_ends_with_the_same_adapter(
    tiny_model: Path, tmp_path: Path, record: dict, monkeypatch: pytest.MonkeyPatch
):
    from noesis.training.state.resumable import Resumable

    train_packed(tiny_model, tmp_path / "whole", record)
    original, calls = Resumable._save_checkpoint, []

    def stop_in_mid_epoch(self, *args, **kwargs):
        original(self, *args, **kwargs)
        calls.append(self.state.global_step)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Resumable, "_save_checkpoint", stop_in_mid_epoch)
    with pytest.raises(KeyboardInterrupt):
        train_packed(tiny_model, tmp_path / "broken", record)
    monkeypatch.undo()
    train_packed(tiny_model, tmp_path / "broken", record)
    name = "checkpoints/epoch_1/adapter_model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()


@pytest.mark.slow
def test_a_row_that_is_not_finite_stops_the_run_and_is_named(
    tiny_model: Path, tmp_path: Path, record: dict, monkeypatch: pytest.MonkeyPatch
):
    from noesis.core.errors import TrainingError
    from noesis.training.engine import model as engine_model

    original = engine_model.Engine.loss

    def poisoned(self, packed, divisor, anchors=None):
        return original(self, packed, divisor, anchors=None) * (float("nan") if 4 in packed.members else 1.0)

    monkeypatch.setattr(engine_model.Engine, "loss", poisoned)
    with pytest.raises(
        TrainingError,
        match=r"the loss is nan .* nothing of this step was applied. Its examples are those on lines [\d, ]*\b5\b",
    ):
        train_packed(tiny_model, tmp_path, record)


@pytest.mark.slow
def test_out_of_memory_tries_the_next_smaller_plan_once(
    tiny_model: Path, tmp_path: Path, record: dict, monkeypatch: pytest.MonkeyPatch
):
    import torch

    from noesis.core.errors import TrainingError
    from noesis.training.engine.model import Engine

    original, seen = Engine.loss, []

    def short_of_memory(self, packed, divisor, anchors=None):
        seen.append(self.setup.gradient_checkpointing)
        if self.setup.gradient_checkpointing == "none":
            raise torch.cuda.OutOfMemoryError("out of memory")
        return original(self, packed, divisor, anchors=None)

    monkeypatch.setattr(Engine, "loss", short_of_memory)
    result = train_packed(tiny_model, tmp_path, record)
    assert seen[0] == "none" and set(seen[1:]) == {"full"}
    assert result.smaller_plan.setup.gradient_checkpointing == "full"
    assert result.to_json()["smaller_plan"]["setup"]["gradient_checkpointing"] == "full"
    assert result.to_json()["out_of_memory_once"] is True
    monkeypatch.setattr(Engine, "loss", lambda *_: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError("out of memory")))
    with pytest.raises(TrainingError, match="per_device_train_batch_size: 1 and gradient_accumulation_steps: 8"):
        train_packed(tiny_model, tmp_path / "again", record)


@pytest.mark.slow
def test_two_processes_train_what_one_trains(
    tiny_model: Path, tmp_path: Path, record: dict, monkeypatch: pytest.MonkeyPatch
):
    """DistributedDataParallel over two processes on the CPU: the adapter is that of one process within rounding."""
    from safetensors.torch import load_file

    from helpers.tiny_runs import rows_of, small
    from helpers.training_jobs import sft_job
    from noesis.training.trainer import choose_backend, train

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = small(
        **{
            "training.packing": True,
            "lora.lora_dropout": 0.0,
            "lora.quantization": {"load_in_4bit": False, "bnb_4bit_compute_dtype": "float32"},
        }
    )
    train_packed(
        tiny_model,
        tmp_path / "one",
        record,
        **{
            "training.num_train_epochs": 1,
            "lora.lora_dropout": 0.0,
            "lora.quantization": config.lora.quantization.model_dump(),
        },
    )
    job = sft_job(tiny_model, tmp_path / "two", rows_of(tiny_model, 20, record), config)
    job = replace(job, plan=replace(job.plan, setup=replace(job.plan.setup, gpus=2)))
    assert job.plan.setup.precision == "fp32"
    assert choose_backend(job).name == "torchrun"
    assert train(job).steps == 3
    one, two = (
        load_file(tmp_path / name / "checkpoints" / "epoch_0" / "adapter_model.safetensors") for name in ("one", "two")
    )
    assert set(one) == set(two)
    for name, weights in one.items():
        assert float((weights - two[name]).norm()) <= 2e-3 * float(weights.norm()) + 1e-6, name


def unsloth_job(tiny_shape: Path, folder: Path, record: dict):
    """A job that is planned for Unsloth on a GPU."""
    from helpers.tiny_runs import rows_of, small
    from helpers.training_jobs import sft_job
    from noesis.core.device import Device
    from noesis.planning.draft import draft_plan
    from noesis.planning.model_shapes import read_shape
    from noesis.training.job import count_workload

    examples, config = rows_of(tiny_shape, 8, record), small(**{"training.engine": "unsloth"})
    gpu = Device("cuda", "NVIDIA H100", 80 * 10**9, 8, True, True, 1)
    plan = draft_plan(config, "tiny", read_shape(tiny_shape), count_workload(examples), gpu)
    return sft_job(tiny_shape, folder, examples, config, plan=plan)


def test_unsloth_without_its_environment_is_one_message(
    tiny_shape: Path, tmp_path: Path, record: dict, monkeypatch: pytest.MonkeyPatch
):
    import sys

    from noesis.core.errors import TrainingError
    from noesis.training.backends.unsloth import PYTHON, Unsloth

    job = unsloth_job(tiny_shape, tmp_path, record)
    assert Unsloth().refusal_reason(job) is None
    for value, message in (
        (None, "needs an environment of its own"),
        ("/no/such/python", "can't be run"),
        (sys.executable, "has no package unsloth"),
    ):
        monkeypatch.delenv(PYTHON, raising=False)
        if value:
            monkeypatch.setenv(PYTHON, value)
        with pytest.raises(TrainingError, match=message):
            Unsloth().train(job)


def test_unsloths_worker_takes_the_package_of_its_environment_and_not_the_module_of_that_name(
    tiny_shape: Path, tmp_path: Path, record: dict, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    import sys

    from noesis.core.errors import TrainingError
    from noesis.training.backends.unsloth import PYTHON, Unsloth

    (tmp_path / "unsloth.py").write_text("raise SystemExit('the environment\\'s own')", encoding="utf-8")
    monkeypatch.setenv(PYTHON, sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(TrainingError, match="ended with code 1"):
        Unsloth().train(unsloth_job(tiny_shape, tmp_path, record))
    assert "the environment's own" in "".join(capfd.readouterr())
