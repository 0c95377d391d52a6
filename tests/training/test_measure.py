"""`noesis plan --measure`: a row's time from two shortened models, kept by machine, model and versions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from helpers.planning import CPU, LORA_MODULES, SMOL, WORK, settings
from helpers.tiny_runs import PLAIN, rows_of, small
from helpers.training_jobs import sft_job
from noesis.planning import speed
from noesis.planning.draft import draft_plan
from noesis.planning.gpus import rented_gpu
from noesis.planning.model_shapes import read_shape
from noesis.planning.setup import Setup
from noesis.planning.speed import MeasuredRow, measured_row, store_measured_row

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
def test_the_time_of_the_whole_model_follows_from_two_shortened_ones(
    path: str, tiny_model: Path, tmp_path: Path, record: dict, monkeypatch: pytest.MonkeyPatch
):
    from noesis.training import measure

    config = small(**(PLAIN if path == "transformers" else {}))
    job = sft_job(tiny_model, tmp_path, rows_of(tiny_model, 4, record), config)
    found = measure.measure_row(tiny_model, config, job.plan, CPU, layers=read_shape(tiny_model).layers)
    assert found.seconds > 0
    assert 8 <= found.tokens <= measure.CPU_TOKENS + 64
    monkeypatch.setattr(measure, "_seconds", lambda job, row, layers, progress: 3.0 + 0.5 * layers)
    assert measure.measure_row(tiny_model, config, job.plan, CPU, layers=32).seconds == pytest.approx(3.0 + 0.5 * 32)
    assert measure.measure_row(tiny_model, config, job.plan, CPU, layers=1).seconds == pytest.approx(3.5)
