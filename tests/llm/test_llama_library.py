"""How many threads llama.cpp gets beside other programs, and that they sleep while they wait."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from noesis.core import device
from noesis.llm import llama_library
from noesis.llm.llama_library import IdleCores, load_llama_cpp, server_threads

Machine = Callable[..., IdleCores]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine whose cores are idle, or work for us, for `free` of each second."""

    def make(cores: int, free: float) -> IdleCores:
        clock = iter(range(100))
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(llama_library, "usable_threads", lambda: cores)
        monkeypatch.setattr("psutil.cpu_count", lambda logical: cores)
        monkeypatch.setattr(llama_library.time, "sleep", lambda _: None)
        monkeypatch.setattr(IdleCores, "_times", lambda _: ((now := next(clock)), now * free))
        return IdleCores()

    return make


@pytest.mark.parametrize(
    ("cores", "free", "threads"),
    [(16, 15.8, 16), (16, 10.9, 11), (16, 0.3, 8), (2, 1.1, 1), (1, 0.0, 1), (4, 9.0, 4)],
    ids=["a quiet machine", "a training on five cores", "all taken", "a browser", "one core", "two threads a core"],
)
def test_threads_are_as_many_as_idle_cores(machine: Machine, cores: int, free: float, threads: int):
    assert machine(cores, free).threads() == threads
    machine(cores, free)
    assert server_threads() == threads


def test_what_the_user_sets_is_obeyed(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    machine(16, 16.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert server_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "0")
    assert server_threads() == 1


def test_real_times_of_a_real_machine_give_a_number_of_threads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = IdleCores()
    assert 1 <= cores.threads() <= cores.most <= device.usable_threads()


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({"cpu.max": "nonsense"}, math.inf),
        ({}, math.inf),
    ],
)
def test_a_containers_share_of_the_processors_is_known(tmp_path: Path, files: dict[str, str], cpus: float):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert device._cpu_quota(tmp_path) == cpus


def test_loading_llama_cpp_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch):
    for chosen in (None, "active"):
        load_llama_cpp.cache_clear()
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        if chosen:
            monkeypatch.setenv("OMP_WAIT_POLICY", chosen)
        assert load_llama_cpp().__name__ == "xllamacpp"
        assert os.environ.get("OMP_WAIT_POLICY") == chosen
