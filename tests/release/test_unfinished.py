"""`noesis gguf` that is stopped goes on by file and by part of the certificate, and believes nobody else's journal."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from noesis.core.errors import ParityError
from noesis.core.files import sha256_file, write_text
from noesis.llm.clients import machine_key
from noesis.release.parity.certificate import AnswerAgreement, Comparison, Divergence
from noesis.release.parity.tolerances import TOLERANCES
from noesis.release.parity.unfinished import JOURNAL, unfinished

FIGURES = Comparison(Divergence(1e-6, 1e-5, 1.0, 1e-3), AnswerAgreement(1, 1, 1, 1.0), TOLERANCES["f16"], True)


class Stopped(Exception):
    """What stops the work."""


def work(folder: Path, made_from: str = "it", *, stop: bool = False) -> list[str]:
    """Write and measure two files; what was done this time."""
    done: list[str] = []

    def write(kind: str, file: Path) -> None:
        done.append(f"write {kind}")
        file.write_bytes(f"GGUF {kind}".encode())

    with unfinished(folder, made_from) as begun:
        for kind in ("f16", "q8_0"):
            begun.file(kind, f"m-{kind}.gguf", lambda file, kind=kind: write(kind, file))
        for kind in ("f16", "q8_0"):
            if kind not in begun.parts:
                done.append(f"measure {kind}")
                begun.keep(kind, FIGURES)
            if stop:
                raise Stopped
    return done


@pytest.fixture
def stopped(tmp_path: Path, quiet_cache: Path) -> Path:
    """The folder of work that stopped when the first file was measured."""
    with pytest.raises(Stopped):
        work(tmp_path / "unfinished", stop=True)
    return tmp_path / "unfinished"


ALL = ["write f16", "write q8_0", "measure f16", "measure q8_0"]


def test_it_goes_on_with_what_is_finished_and_leaves_nothing(stopped: Path):
    assert work(stopped) == ["measure q8_0"]
    assert not stopped.exists()


def test_another_model_or_version_starts_anew(stopped: Path):
    assert work(stopped, "another model") == ALL


def test_a_changed_file_is_written_and_measured_again(stopped: Path):
    (stopped / "m-f16.gguf").write_bytes(b"GGUF cut sho")
    assert work(stopped) == ["write f16", "measure f16", "measure q8_0"]


def test_figures_that_this_machine_did_not_write_are_not_believed(stopped: Path, monkeypatch: pytest.MonkeyPatch):
    hashes = {f"m-{kind}.gguf": sha256_file(stopped / f"m-{kind}.gguf") for kind in ("f16", "q8_0")}
    planted = {"files": hashes, "where": "cpu", "parts": {kind: FIGURES.to_json() for kind in ("f16", "q8_0")}}
    with monkeypatch.context() as stranger:
        stranger.setattr(machine_key, "_key", lambda _folder: b"a stranger's key")
        write_text(stopped / JOURNAL, machine_key.sealed("it", json.dumps(planted)))
    assert work(stopped) == ALL


def test_nothing_is_kept_of_files_out_of_tolerance(tmp_path: Path, quiet_cache: Path):
    with pytest.raises(ParityError), unfinished(tmp_path / "unfinished", "it") as begun:
        begun.keep("f16", FIGURES)
        raise ParityError("out of tolerance")
    assert not (tmp_path / "unfinished").exists()


# Kills itself at the n-th call of `what`; each call leaves a line in `log`.
DRIVER = """
import os, signal, sys
from pathlib import Path
from noesis.cli import run_command
from noesis.release.gguf import writer
from noesis.release.parity.unfinished import Unfinished

log, what, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
calls = 0

def watched(name, function):
    def call(*args, **named):
        global calls
        result = function(*args, **named)
        told = named.get("kind") or args[1]
        if name != "quantise":
            with log.open("a") as f:
                f.write(f"{name} {told}\\n")
        calls += name == what
        if name == what and calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

writer.write_gguf = watched("write", writer.write_gguf)
writer.quantise = watched("quantise", writer.quantise)
Unfinished.keep = watched("measure", Unfinished.keep)
sys.exit(run_command(["gguf", "model", "--quant", "f16,q8_0"]))
"""


@pytest.mark.slow
def test_a_killed_conversion_writes_and_measures_nothing_twice(tiny_merged: Path, tmp_path: Path, quiet_cache: Path):
    shutil.copytree(tiny_merged, tmp_path / "model")

    def attempt(what: str, count: int) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", DRIVER, str(tmp_path / "log"), what, str(count)]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    tensors = 20  # of the tiny model at least: so the kill is in the middle of the second file
    assert attempt("quantise", tensors + 10).returncode == -9
    assert (tmp_path / "log").read_text().splitlines() == ["write f16"]
    assert attempt("measure", 1).returncode == -9
    assert not list(tmp_path.glob("*.gguf"))
    last = attempt("none", 1)
    assert last.returncode == 0, last.stderr
    assert (tmp_path / "log").read_text().splitlines() == ["write f16", "write q8_0", "measure f16", "measure q8_0"]
    certificate = json.loads((tmp_path / "model-f16.parity.json").read_text(encoding="utf-8"))
    for kind, found in certificate["files"].items():
        assert found["passed"]
        assert found["sha256"] == sha256_file(tmp_path / f"model-{kind}.gguf")
    assert sorted(p.name for p in tmp_path.glob(".*")) == []
