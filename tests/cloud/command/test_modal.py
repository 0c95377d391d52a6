"""Training in the cloud through the real `modal` command, against the control plane of tests/modal_local, with a tiny Llama: what is missing,
what stops it, what resumes it.

The model is downloaded under the name of the default, meta-llama/Llama-3.1-8B-Instruct, from a Hub on loopback.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time

import pytest

from helpers.modal_guide import LLAMA, RUN, VOLUME, steps_taken, wait
from helpers.modal_local.patches import OUT_OF_MEMORY, patch

pytestmark = pytest.mark.slow


def test_doctor_says_what_to_type(make_cloud) -> None:
    cloud = make_cloud(ready=False)
    said = cloud.noesis("doctor", code=1, MODAL_TOKEN_ID="")
    assert "modal token new" in said
    assert f"modal volume create {VOLUME}" in cloud.noesis("doctor", code=1)
    cloud.plane.volume(VOLUME)
    said = cloud.noesis("doctor", code=1, HF_TOKEN="hf_not_yet", **cloud.hub)
    assert "modal secret create huggingface-token HF_TOKEN=" in said
    assert f"modal volume put {VOLUME} data/training/exports /dataset" in said
    assert f"accept it at https://huggingface.co/{LLAMA}" in said


def test_what_is_missing_is_said_with_what_to_type(make_cloud) -> None:
    cloud = make_cloud(ready=False)
    said = cloud.run(code=1, env={"MODAL_TOKEN_ID": ""})
    assert "modal token new" in said
    assert "modal secret create huggingface-token HF_TOKEN=" in cloud.run(code=2)
    cloud.plane.secret("huggingface-token", HF_TOKEN="hf_not_yet")
    said = cloud.run(code=2)
    assert "Dataset not found" in said
    assert "modal volume put noesis-training-data data/training/exports /dataset" in said
    shutil.copytree(cloud.clone / "data" / "training" / "exports", cloud.volume / "dataset")
    said = cloud.run(code=1, env={"NOESIS_LANG": "pt"})
    assert f"baixando {LLAMA}, se ainda não está no volume" in said  # the container's own words
    assert "Model not found" in said
    assert f"https://huggingface.co/{LLAMA}" in said
    train = cloud.volume / "dataset" / "train.jsonl"
    train.write_bytes(train.read_bytes().replace(b"a", b"e", 1))
    said = cloud.run(code=1)
    assert "dataset on the volume is not complete" in said
    assert "--force" in said
    assert not (cloud.volume / "checkpoints").exists()


def test_too_little_memory_names_the_two_keys(make_cloud) -> None:
    cloud = make_cloud()
    cloud.plane.extra_files["/root/sitecustomize.py"] = patch("noesis.training.backends.run_trainer", OUT_OF_MEMORY)
    said = cloud.run("--epochs", "1", code=1)
    assert "per_device_train_batch_size: 1" in said
    assert "gradient_accumulation_steps: 8" in said
    assert len(cloud.plane.tasks_of("train")) == 1  # an error that comes again is not paid for again


@pytest.mark.full  # two minutes; its parts are in tests/cloud
@pytest.mark.timing
def test_ctrl_c_then_the_cap_then_more_money_and_it_goes_on(make_cloud) -> None:
    cloud = make_cloud()
    cloud.plane.extra_files["/root/sitecustomize.py"] = patch(
        "noesis.cloud.volume.lease", "module.LEAVING_S = 3.0"
    )  # the next command waits so long
    first = cloud.plane.start(*RUN, "--epochs", "2", cwd=cloud.clone, env=cloud.env)
    wait(lambda: any(steps_taken(t) for t in cloud.plane.tasks_of("train")), 300)
    os.kill(first.pid, signal.SIGINT)
    first.communicate(timeout=300)
    wait(lambda: not any(t.alive for t in cloud.plane.tasks.values()), 300)
    assert not (cloud.volume / "report.html").exists()
    rows = len((cloud.volume / "metrics.jsonl").read_text().splitlines())  # what was done by then
    time.sleep(2)
    said = cloud.run("--epochs", "2", "--max-usd", "0.0000001", code=5)
    assert "--max-usd" in said
    assert not cloud.plane.tasks_of("judge")
    said = cloud.run("--epochs", "2", "--max-usd", "30")
    steps = [json.loads(line)["step"] for line in (cloud.volume / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert rows >= 1
    assert (cloud.volume / "report.html").is_file()
    assert not (cloud.volume / "runs").exists()  # nothing was begun again
    assert "was preempted" in said


def test_dry_run_starts_nothing(make_cloud) -> None:
    cloud = make_cloud()
    said = cloud.run("--dry-run")
    assert re.search(r"cost +\d+\.\d\d USD", said)
    assert "L40S" in said
    assert "noesis cloud plan" in said
    assert not cloud.plane.tasks
    assert not cloud.plane.functions.functions
    assert not cloud.plane.mounts.images  # nothing was built
    assert not (cloud.volume / "manifest.json").exists()


@pytest.mark.full
def test_the_embedded_model_trains_through_the_cloud(make_cloud) -> None:
    cloud = make_cloud()
    said = cloud.run("--model", "smollm2", "--epochs", "1", "--max-examples", "16", seconds=1500)
    assert "noesis-philosopher-v1-f16.gguf" in said
    judged = json.loads((cloud.volume / "tribunal" / "summary.json").read_text())
    before, after = (judged["preference"][who]["held_out_loss"] for who in ("base", "tuned"))
    assert after < before
    assert (cloud.volume / "merged" / "noesis-philosopher-v1" / "model.safetensors").stat().st_size > 100e6
