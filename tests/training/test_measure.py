"""`noesis plan --measure`: a row's share of a step that was trained, kept by machine, model and versions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from helpers.planning import CPU, LORA_MODULES, SMOL, WORK, settings
from helpers.tiny_runs import PLAIN, rows_of, small
from helpers.training_jobs import sft_job
from noesis.core.files import write_jsonl
from noesis.planning import speed
from noesis.planning.draft import draft_plan
from noesis.planning.gpus import rented_gpu
from noesis.planning.setup import Setup
from noesis.planning.speed import MeasuredRow, measured_row, store_measured_row
from noesis.planning.workload import Workload
from noesis.training.job import TrainJob

ROW = MeasuredRow(Setup("noesis", "nf4", "bfloat16", "none", False, 0, 8, 1, "adamw", 0), 512, 4.0, "2026-11-27")
ADAPTER = SMOL.adapter_weights(64, LORA_MODULES)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(speed, "cache_folder", lambda: tmp_path / "cache")


def test_a_plan_takes_what_was_measured_for_this_model_and_machine_alone():
    computed = draft_plan(settings(), "smollm2", SMOL, WORK, CPU)
    store_measured_row(ROW, SMOL, ADAPTER, CPU)
    plan = draft_plan(settings(), "smollm2", SMOL, WORK, CPU)
    assert plan.tokens_per_s == 128.0 != computed.tokens_per_s
    assert any("measured here on 2026-11-27" in reason for reason in plan.reasons)
    assert any("--measure" in reason for reason in computed.reasons)
    assert measured_row(SMOL, ADAPTER, replace(CPU, name="another"), "noesis") is None
    assert measured_row(replace(SMOL, layers=31), ADAPTER, CPU, "noesis") is None
    rented = draft_plan(settings(), "smollm2", SMOL, WORK, rented_gpu("H100"), rented=True)
    assert not any("speed:" in reason for reason in rented.reasons)


def test_on_a_gpu_one_ratio_corrects_every_setup():
    here = rented_gpu("H100")
    computed = draft_plan(settings(), "smollm2", SMOL, WORK, here)
    setup = computed.setup
    twice = 2 * speed.row_seconds(SMOL, ADAPTER, setup, speed_gpu(), 4096)
    store_measured_row(MeasuredRow(setup, 4096, twice, "2026-11-27"), SMOL, ADAPTER, here)
    plan = draft_plan(settings(), "smollm2", SMOL, WORK, here)
    assert plan.setup == setup
    assert plan.tokens_per_s == pytest.approx(computed.tokens_per_s / 2, rel=1e-3)


def speed_gpu():
    from noesis.planning.gpus import gpus

    return gpus()["H100"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"setup": 1, "tokens": 2, "seconds": 3, "date": ""}', "null"])
def test_a_damaged_file_counts_as_none(text: str, tmp_path: Path):
    store_measured_row(ROW, SMOL, ADAPTER, CPU)
    (file,) = (tmp_path / "cache" / "measured").iterdir()
    file.write_text(text)
    assert measured_row(SMOL, ADAPTER, CPU, "noesis") is None


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_an_impossible_figure_counts_as_none(seconds: float):
    store_measured_row(replace(ROW, seconds=seconds), SMOL, ADAPTER, CPU)
    assert measured_row(SMOL, ADAPTER, CPU, "noesis") is None


@pytest.mark.slow
@pytest.mark.parametrize("path", ["engine", "transformers"])
def test_a_few_steps_are_trained_and_nothing_of_them_is_kept(
    path: str, tiny_model: Path, tmp_path: Path, record: dict, monkeypatch: pytest.MonkeyPatch
):
    from noesis.training import measure

    places = []
    real = measure.tempfile.TemporaryDirectory
    monkeypatch.setattr(
        measure.tempfile, "TemporaryDirectory", lambda **how: places.append(real(dir=tmp_path, **how)) or places[-1]
    )
    config = small(**(PLAIN if path == "transformers" else {}))
    job = sft_job(tiny_model, tmp_path / "job", rows_of(tiny_model, 4, record), config)
    found = measure.measure_row(tiny_model, config, job.plan, CPU)
    assert 0 < found.seconds < 60
    assert found.tokens == min(measure.CPU_TOKENS, job.plan.tokens_per_epoch // job.plan.rows)
    assert found.setup.sequences_per_step == 1
    assert len(places) == 1
    assert list(tmp_path.glob("noesis-measure-*")) == []


@pytest.mark.parametrize(("pack_length", "tokens", "packed"), [(4096, 3600, 1), (2048, 1800, 2)])
def test_a_row_is_its_share_of_a_step(
    pack_length: int, tokens: int, packed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """On a GPU: 8 sequences of 450 tokens a step, a second a step after the first four."""
    from noesis.training import measure, trainer

    def train(job: TrainJob) -> None:
        rest = {"epoch": 1.0, "loss": 1.0, "lr": 1e-4, "grad_norm": 1.0, "peak_memory_bytes": 1, "usd": 0.0}
        lines = [{"step": n, "tokens": 3600 * n, "tokens_per_s": 3600 * n / (n + 4)} | rest for n in range(1, 13)]
        write_jsonl(job.metrics, lines)

    monkeypatch.setattr(trainer, "train", train)
    plan = draft_plan(settings(), "smollm2", SMOL, Workload((450,) * 16, 100), rented_gpu("H100"))
    plan = replace(plan, setup=replace(plan.setup, pack_length=pack_length))
    found = measure.measure_row(tmp_path, settings(), plan, rented_gpu("H100"))
    assert (found.tokens, found.seconds) == (tokens, pytest.approx(1.0 / packed))
