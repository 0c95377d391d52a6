"""Several seeds of one run: in the same passes as each alone, stopped and gone on, one after the other on a processor."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

SEEDS = (42, 43, 44)
ADAPTER = "epoch_1/adapter_model.safetensors"
SETTINGS = {
    "training.packing": True,
    "training.precision": "fp32",
    "lora.quantization.load_in_4bit": False,
    "lora.lora_dropout": 0.1,
    "training.num_train_epochs": 2,
    "training.save_every": "1 step",
}


def job_of(model: Path, folder: Path, record: dict, seed: int = SEEDS[0], **overrides: object):
    """SFT of 20 short examples: three steps an epoch."""
    from helpers.tiny_runs import rows_of, small
    from helpers.training_jobs import sft_job

    config = small(**SETTINGS | {"training.seed": seed} | overrides)
    return sft_job(model, folder, rows_of(model, 20, record), config)


def together(model: Path, folder: Path, record: dict, **overrides: object):
    """The job of all seeds at once, which a processor would train one after the other."""
    from noesis.training.job import OtherSeed
    from noesis.training.methods import seed_folder

    job = job_of(model, folder, record, **overrides)
    places = [seed_folder(job.checkpoints, seed) for seed in SEEDS[1:]]
    others = (OtherSeed(seed, place, place / "metrics.jsonl") for seed, place in zip(SEEDS[1:], places, strict=True))
    return replace(job, others=tuple(others))


def losses(file: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in file.read_text().splitlines()]


def stop_at_save(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Interrupt training right after its N-th save."""
    from noesis.training.state.resumable import Resumable

    original, calls = Resumable._save_checkpoint, []

    def save_and_stop(self, *args, **kwargs):
        original(self, *args, **kwargs)
        calls.append(self.state.global_step)
        if len(calls) == number:
            raise KeyboardInterrupt

    monkeypatch.setattr(Resumable, "_save_checkpoint", save_and_stop)


@pytest.mark.slow
@pytest.mark.parametrize(("checkpointing", "fork"), [("none", False), ("full", True)])
def test_each_seed_trains_as_it_would_alone(
    tiny_model: Path, tiny_adapter: Path, tmp_path: Path, record: dict, checkpointing: str, fork: bool
):
    from noesis.training.trainer import train

    overrides, parent = {"training.gradient_checkpointing": checkpointing}, tiny_adapter if fork else None
    job = together(tiny_model, tmp_path / "all", record, **overrides)
    found = train(replace(job, parent=parent))
    folders = [job.checkpoints, *(other.checkpoints for other in job.others)]
    metrics = [job.metrics, *(other.metrics for other in job.others)]
    for seed, folder, file in zip(SEEDS, folders, metrics, strict=True):
        alone = train(replace(job_of(tiny_model, tmp_path / str(seed), record, seed, **overrides), parent=parent))
        assert losses(file) == pytest.approx(losses(tmp_path / str(seed) / "metrics.jsonl"), rel=1e-5)
        result = found if seed == SEEDS[0] else found.seeds[str(seed)]
        assert result.steps == alone.steps
        assert result.tokens == alone.tokens
        assert result.final_loss == pytest.approx(alone.final_loss, rel=1e-5)
        assert (folder / ADAPTER).is_file()
    assert losses(metrics[0]) != pytest.approx(losses(metrics[1]), rel=1e-3)


@pytest.mark.slow
def test_seeds_that_were_stopped_end_with_the_same_adapters(
    tiny_model: Path, tmp_path: Path, record: dict, monkeypatch: pytest.MonkeyPatch
):
    from noesis.core.rooted import remove
    from noesis.training.trainer import train

    whole = together(tiny_model, tmp_path / "whole", record)
    train(whole)
    stopped = together(tiny_model, tmp_path / "stopped", record)
    stop_at_save(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        train(stopped)
    monkeypatch.undo()
    # killed between two seeds' saves: one of them is a state behind
    remove(stopped.others[1].checkpoints / "resume" / "checkpoint-2")
    train(stopped)
    for a, b in zip((whole, *whole.others), (stopped, *stopped.others), strict=True):
        assert (a.checkpoints / ADAPTER).read_bytes() == (b.checkpoints / ADAPTER).read_bytes()
        assert losses(a.metrics) == losses(b.metrics)


@pytest.mark.slow
def test_a_seed_goes_on_alone_from_what_the_shared_passes_saved(
    tiny_model: Path, tmp_path: Path, record: dict, monkeypatch: pytest.MonkeyPatch
):
    from noesis.training.trainer import train

    job = together(tiny_model, tmp_path / "all", record)
    stop_at_save(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        train(job)
    monkeypatch.undo()
    other = job.others[0]
    own = job.config.with_settings(training={"seed": other.seed})
    train(replace(job, config=own, checkpoints=other.checkpoints, metrics=other.metrics, others=()))
    train(job_of(tiny_model, tmp_path / "alone", record, other.seed))
    assert losses(other.metrics) == pytest.approx(losses(tmp_path / "alone" / "metrics.jsonl"), rel=1e-5)


@pytest.mark.slow
def test_on_a_processor_one_follows_the_other_and_none_is_trained_twice(
    tiny_model: Path, tmp_path: Path, record: dict, monkeypatch: pytest.MonkeyPatch
):
    from noesis.training import trainer
    from noesis.training.methods import remaining_cost, train_run, training_outputs

    job = job_of(tiny_model, tmp_path, record, **{"training.seeds": 3, "training.save_every": "auto"})
    assert job.plan.seeds == 3
    trained: list[int] = []
    original = trainer.train

    def counting(job):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(job.config.training.seed)
        return original(job)

    monkeypatch.setattr(trainer, "train", counting)
    with pytest.raises(KeyboardInterrupt):
        train_run(job)
    assert remaining_cost(job.plan, job.checkpoints)[1] == pytest.approx(2 / 3)
    monkeypatch.setattr(trainer, "train", lambda job: (trained.append(job.config.training.seed), original(job))[1])
    result = train_run(job)
    assert trained == [42, 43, 44]
    assert list(result.seeds) == ["43", "44"]
    assert {seed.final_loss for seed in result.seeds.values()} != {result.final_loss}
    assert train_run(job) == result and len(trained) == 3
    names = {file.relative_to(job.checkpoints).as_posix() for file in training_outputs(job.checkpoints)}
    assert {ADAPTER, f"seed_43/{ADAPTER}", f"seed_44/{ADAPTER}", "seed_44/metrics.jsonl"} <= names
