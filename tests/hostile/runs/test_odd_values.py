"""Values of another type in a run's files: every command ends in one message, or does its work; no traceback."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.command import noesis
from helpers.project import ROOT
from hostile.runs.finished_run import rehashed
from noesis.core.errors import DataError
from noesis.core.jsonl import MAX_RUN_FILE, read_objects
from noesis.pipeline.verify.evidence import Evidence
from noesis.run.metrics import read_metrics

HUGE, DEEP = "§huge§", "§deep§"
RAW = {HUGE: "1" + "0" * 400, DEEP: "[" * 100_000 + "]" * 100_000}
MANIFEST = "manifest.json"


def change(run: Path, file: str, path: tuple[Any, ...], value: Any) -> None:
    """Put `value` at `path` of a JSON file, or of the first line of a JSONL file; what listed its hash lists the new one."""
    first, *rest = (
        (run / file).read_text(encoding="utf-8").split("\n")
        if file.endswith("l")
        else [(run / file).read_text(encoding="utf-8")]
    )
    found = json.loads(first)
    reduce(lambda inner, key: inner[key], path[:-1], found)[path[-1]] = value
    text = json.dumps(found)
    for name, raw in RAW.items():
        text = text.replace(json.dumps(name), raw)
    (run / file).write_text("\n".join([text, *rest]), encoding="utf-8")
    if file != MANIFEST:
        with rehashed(run):
            pass


RESULT = ("stages", "trial", "result")
ODD: dict[str, tuple[str, str, tuple[Any, ...], Any]] = {
    "a version of half a character": ("report", MANIFEST, ("noesis",), "\ud800"),
    "a number that no float holds": ("status", MANIFEST, ("cost_usd",), HUGE),
    "a hundred thousand brackets": ("status", MANIFEST, ("python",), DEEP),
    "a file of more bytes than there are": (
        "report", MANIFEST, ("stages", "report", "outputs", "report.html", "bytes"), 10**29),
    "a plan without memory": ("report", MANIFEST, ("stages", "plan", "result", "memory"), None),
    "a plan whose stages are a text": ("report", MANIFEST, ("stages", "plan", "result", "stages"), "/etc"),
    "a margin that is an object": (
        "report", MANIFEST, ("stages", "judge", "result", "preference", "by_example", 0, "base_margin"), {}),
    "an interval of objects": ("report", MANIFEST, (*RESULT, "difference", "all", "sophia", "interval_95"), [{}, {}]),
    "an interval beyond all floats": (
        "verify", MANIFEST, (*RESULT, "models", "tuned", "all", "pass_rate", "interval_95", 1), HUGE),
    "a mean that is a text": ("judge", MANIFEST, (*RESULT, "models", "tuned", "all", "sophia", "interval_95", 1), "x"),
    "models that are a number": ("judge", MANIFEST, (*RESULT, "models"), 1e308),
    "memory that is a text": ("report", MANIFEST, ("stages", "train", "result", "peak_memory_bytes"), "a\nb"),
    "a verdict that is a list": ("judge", MANIFEST, ("stages", "judge", "result", "court", "verdict"), []),
    "a merge that is a list": ("merge", MANIFEST, ("stages", "merge", "result"), [1]),
    "turns that are a text": ("report", "tribunal/answers.jsonl", ("turns",), "x"),
    "vetoes that are none": ("report", "tribunal/verdicts.jsonl", ("opinion",), {"mean": {}}),
    "a step that is an object": ("report", "metrics.jsonl", ("step",), {}),
    "a step that is a text": ("report", "metrics.jsonl", ("step",), "/etc"),
    "a loss that is null": ("report", "metrics.jsonl", ("loss",), None),
    "a score that no float holds": ("verify", "tribunal/checkpoints/base.json", ("scores", "revised", 0, 1), 10**29),
    "settings of half a character": ("report", "config.json", ("training", "output_name"), "\ud800"),
    "settings with a key more": ("report", "config.json", ("evil",), 1),
}  # fmt: skip


@pytest.mark.parametrize(("command", "file", "path", "value"), [pytest.param(*v, id=k) for k, v in ODD.items()])
def test_an_odd_value_ends_in_one_message(
    run: Path, finished: Path, command: str, file: str, path: tuple[Any, ...], value: Any
):
    change(run, file, path, value)
    found = noesis(command, run, cwd=finished / "project")  # raises what has no message
    assert found.returncode in ((0, 1, 4) if command in ("verify", "report") else (1,))
    assert found.returncode == 0 or found.stderr.count("\n") <= 1


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, id=f"a stage named {n[:9]!r}") for n in ("trial\nreport  done", "\x1b[2Jreport", "x" * 9999)],
)
def test_a_stage_s_name_stays_on_its_line(run: Path, finished: Path, name: str):
    change(run, MANIFEST, ("stages", name), {"status": "done", "result": {}})
    lines = noesis("status", run).stdout.split("\n")
    assert sum(line.startswith(("  report ", "report ")) for line in lines) == 1
    assert not any("\x1b" in line for line in lines)


def folder(place: Path) -> None:
    place.mkdir()


def pipe(place: Path) -> None:
    os.mkfifo(place)


def to_itself(place: Path) -> None:
    place.symlink_to(place)


@pytest.mark.skipif(os.name != "posix", reason="pipes are POSIX's")
@pytest.mark.parametrize("put", [folder, pipe, to_itself], ids=["a folder", "a pipe", "a link to itself"])
@pytest.mark.parametrize(
    "name",
    [".meter", ".holder", ".lock", ".manifest.lock", MANIFEST, "config.json", "metrics.jsonl", "report.html",
     "tribunal/verdicts.jsonl", "tribunal/checkpoints/base.json", "data/constitution.yaml", "gguf/parity.json",
     "tribunal/replies.sqlite"],
)  # fmt: skip
def test_anything_in_place_of_a_file_ends_in_one_message(
    run: Path, finished: Path, name: str, put: Callable[[Path], None]
):
    (run / name).unlink(missing_ok=True)
    put(run / name)
    for command in ("status", "report", "verify", "judge"):
        found = noesis(command, run, cwd=finished / "project")
        assert found.returncode in (0, 1, 2, 4)
        assert "Traceback" not in found.stderr


@pytest.mark.skipif(os.name != "posix", reason="pipes are POSIX's")
@pytest.mark.parametrize("put", [folder, pipe, to_itself], ids=["a folder", "a pipe", "a link to itself"])
def test_what_is_put_there_after_a_run_was_opened_is_not_waited_for(run: Path, put: Callable[[Path], None]):
    from noesis.core.errors import UnsafePathError
    from noesis.pipeline.verify.evidence import Evidence
    from noesis.run.directory import load_run

    evidence = Evidence(load_run(run))
    for read, name in ((evidence.json_of, "summary.json"), (evidence.rows, "answers.jsonl")):
        (run / "tribunal" / name).unlink()
        put(run / "tribunal" / name)
        with pytest.raises(UnsafePathError):
            read("tribunal", name)


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(read_metrics, id="metrics of four gigabytes"),
        pytest.param(lambda file: read_objects(file, most=MAX_RUN_FILE), id="verdicts of four gigabytes"),
        pytest.param(
            lambda file: Evidence(SimpleNamespace(path=file.parent), None).rows(file.name),
            id="answers of four gigabytes",
        ),
    ],
)
def test_records_far_larger_than_a_run_writes_are_not_read(tmp_path: Path, read: Callable[[Path], object]):
    file = tmp_path / "records.jsonl"
    with open(file, "wb") as f:
        f.truncate(4_000_000_000)  # which takes no room
    with pytest.raises(DataError, match=r"records\.jsonl has 4\.0 GB, and no run writes more than .*: it was not read"):
        read(file)


def test_every_reader_of_a_run_s_records_has_that_limit():
    folders = ("pipeline/verify", "pipeline/stages", "run")
    calls = [
        line.strip()
        for folder in folders
        for file in (ROOT / "src" / "noesis" / folder).rglob("*.py")
        for line in file.read_text(encoding="utf-8").split("\n")
        if "read_objects(" in line or "iter_intact_objects(" in line or "iter_objects(" in line
    ]
    assert calls
    assert [line for line in calls if "most=MAX_RUN_FILE" not in line] == []
