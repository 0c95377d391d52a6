"""A training of several processes that is stopped, or whose command is killed: all end, and the same job goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from noesis.training.job import TrainJob

pytestmark = pytest.mark.full  # a minute

TRAINS = """
import json, signal, sys
from noesis.core.signals import Terminated, raise_terminated
from noesis.training.job import TrainJob
from noesis.training.trainer import train
signal.signal(signal.SIGTERM, raise_terminated)
try:
    train(TrainJob.from_json(json.load(open(sys.argv[1]))))
except Terminated:
    sys.exit(143)
"""


def job_of_two(tiny_model: Path, place: Path, record: dict) -> TrainJob:
    from helpers.tiny_runs import rows_of, small
    from helpers.training_jobs import sft_job

    quantization = {"load_in_4bit": False, "bnb_4bit_compute_dtype": "float32"}
    fields = {"training.num_train_epochs": 4, "lora.lora_dropout": 0.0, "lora.quantization": quantization}
    job = sft_job(tiny_model, place, rows_of(tiny_model, 20, record), small(**{"training.packing": True, **fields}))
    return replace(job, plan=replace(job.plan, setup=replace(job.plan.setup, gpus=2)))


def start(job: TrainJob, place: Path) -> subprocess.Popen[str]:
    place.mkdir(exist_ok=True)
    (place / "job.json").write_text(json.dumps(job.to_json()), encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(place)}
    command = [sys.executable, "-c", TRAINS, str(place / "job.json")]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def processes(place: Path) -> list[str]:
    """Those of torchrun: its jobs lie in the place."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "noesis.training.worker" in line and str(place) in line:
            found.append(line)
    return found


def until(true: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)


def trained(job: TrainJob) -> int:
    """Steps that its metrics have."""
    return len(job.metrics.read_text(encoding="utf-8").splitlines()) if job.metrics.is_file() else 0


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_a_stop_saves_the_step_and_a_kill_of_the_command_leaves_no_process(
    tiny_model: Path, tmp_path: Path, record: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    from noesis.training.trainer import train

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    whole, job = (job_of_two(tiny_model, tmp_path / name, record) for name in ("whole", "stopped"))
    assert train(whole).steps == 12

    process = start(job, tmp_path / "stopped")
    until(lambda: trained(job) >= 2, "two steps")
    process.terminate()
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 143, said
    assert processes(tmp_path / "stopped") == [] and "Traceback" not in said, said
    stopped_at = trained(job)
    assert 2 <= stopped_at < 12

    process = start(job, tmp_path / "stopped")
    until(lambda: trained(job) > stopped_at, "a step more")
    process.kill()
    process.communicate(timeout=60)
    until(lambda: not processes(tmp_path / "stopped"), "the end of its processes")
    assert trained(job) < 12

    assert train(job).steps == 12
    one, two = (load_file(each.checkpoints / "epoch_3" / "adapter_model.safetensors") for each in (whole, job))
    for name, weights in one.items():
        assert float((weights - two[name]).norm()) <= 1e-5 * float(weights.norm()) + 1e-7, name
