"""Training on several machines, which are processes here: the first hands out its job, and all of them train it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from noesis.core.errors import TrainingError
from noesis.training.backends import nodes as backend
from noesis.training.backends.nodes import follow, leading
from noesis.training.distributed import NODES, Nodes

FOLLOWS = """
import json, sys
from noesis.training.backends.nodes import follow
from noesis.training.distributed import Nodes
brought = []
jobs = follow(Nodes(1, 2, "127.0.0.1", tuple(json.loads(sys.argv[1]))), lambda job: brought.append(job.checkpoints.name))
print("FOLLOWED", jobs, *brought)
"""


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


def follower(ports: tuple[int, int]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FOLLOWS, json.dumps(ports)]
    return subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_torchrun_is_told_where_its_processes_meet() -> None:
    assert Nodes().arguments(8) == ["--standalone", "--nproc-per-node", "8"]
    words = " ".join(Nodes(1, 2, "fd00::1").arguments(16))
    assert words == "--nnodes 2 --node-rank 1 --master-addr fd00::1 --master-port 29500 --nproc-per-node 8"


def test_a_machine_knows_its_place_and_so_do_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NODES, raising=False)
    assert Nodes.here() == Nodes()
    monkeypatch.setenv(NODES, "")
    Nodes(1, 2, "fd00::1").enter()
    assert Nodes.here() == Nodes(1, 2, "fd00::1")


@pytest.mark.slow
def test_where_the_first_machine_never_comes_the_others_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "WAITS_S", 1.0)
    with pytest.raises(TrainingError, match="machine 1 of 2 can't be reached"):
        follow(Nodes(1, 2, "127.0.0.1", free_ports()), lambda job: pytest.fail("there is no job"))
    assert NODES not in os.environ


@pytest.mark.slow
def test_where_nothing_is_left_to_train_the_others_leave() -> None:
    ports = free_ports()
    process = follower(ports)
    with leading(Nodes(0, 2, "127.0.0.1", ports)):
        pass
    assert process.communicate(timeout=60)[0].splitlines()[-1] == "FOLLOWED 0"


@pytest.mark.slow
def test_two_machines_train_what_one_trains(
    tiny_model: Path, tmp_path: Path, record: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torchrun's rendezvous between two hosts, each with a process on the CPU: the adapter is that of one host."""
    from safetensors.torch import load_file

    from helpers.tiny_runs import rows_of, small
    from helpers.training_jobs import sft_job
    from noesis.training.trainer import train

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    quantization = {"load_in_4bit": False, "bnb_4bit_compute_dtype": "float32"}
    config = small(**{"training.packing": True, "lora.lora_dropout": 0.0, "lora.quantization": quantization})
    rows = rows_of(tiny_model, 20, record)
    job = sft_job(tiny_model, tmp_path / "one", rows, config)
    job = replace(job, plan=replace(job.plan, setup=replace(job.plan.setup, gpus=2)))
    assert train(job).steps == 3
    ports = free_ports()
    process = follower(ports)
    two = replace(job, checkpoints=tmp_path / "two" / "checkpoints", metrics=tmp_path / "two" / "metrics.jsonl")
    with leading(Nodes(0, 2, "127.0.0.1", ports)):
        assert train(two).steps == 3
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and said.splitlines()[-1] == "FOLLOWED 1 checkpoints", said
    assert "machine 2 of 2: 1 GPUs" in said
    weights = [load_file(each.checkpoints / "epoch_0" / "adapter_model.safetensors") for each in (job, two)]
    assert set(weights[0]) == set(weights[1])
    for name, tensor in weights[0].items():
        assert float((tensor - weights[1][name]).norm()) <= 1e-5 * float(tensor.norm()) + 1e-7, name
