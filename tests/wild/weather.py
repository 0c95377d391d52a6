"""Runs commands on a small file system of its own that is full, read-only or locked, and prints what came of each.

    unshare --user --map-root-user --mount python -m wild.weather FINISHED FOLDER

`FINISHED` is a project with a finished run; a tmpfs is mounted on `FOLDER`, which nobody outside sees.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from helpers.command import noesis
from noesis.run.lock import held

SIZE = 24 << 20  # bytes of the tmpfs
COMMANDS: dict[str, tuple[str, ...]] = {
    "init": ("init", "{new}"),
    "data export": ("data", "export", "--language", "en", "--out", "{new}"),
    "data inspect": ("data", "inspect", "--html", "{new}"),
    "constitution prompts": ("constitution", "prompts", "--count", "3", "--out", "{new}"),
    "tribunal lock": ("tribunal", "lock"),
    "tribunal baselines": ("tribunal", "baselines"),
    "train": ("train", "--fresh", "--run", "{new}", "--model", "{model}"),
    "train again": ("train", "--fresh", "--run", "{run}", "--model", "{model}"),
    "judge": ("judge", "{run}", "--again"),
    "merge": ("merge", "{run}", "--again"),
    "gguf": ("gguf", "{run}", "--again"),
    "parity": ("parity", "{run}"),
    "report": ("report", "{run}"),
    "status": ("status", "{run}"),
    "verify": ("verify", "{run}"),
    "clean": ("clean", "--delete"),
}


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Not a byte is free."""
    with open(folder / "filler", "wb", buffering=0) as f, suppress(OSError):
        while True:
            f.write(bytes(1 << 16))
    with open(folder / "filler", "ab", buffering=0) as f, suppress(OSError):
        while True:
            f.write(b"0")
    yield
    (folder / "filler").unlink()


@contextmanager
def nearly_full(folder: Path) -> Iterator[None]:
    """There is room for what a command writes first, and not for the rest."""
    with full(folder):
        os.truncate(folder / "filler", (folder / "filler").stat().st_size - 12_288)
        yield


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
    yield
    subprocess.run(["mount", "-o", "remount,bind,rw", str(folder)], check=True)


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Another command works on the run."""
    with held(folder / "project" / "runs" / "run"):
        yield


WEATHERS = {"full": full, "nearly full": nearly_full, "read-only": read_only, "in use": in_use}


def contents(folder: Path) -> dict[str, str | None]:
    """What lies there, apart from locks and notes of who works."""
    notes = (".lock", ".manifest.lock", ".holder", ".meter", "filler")
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in notes)
    return {p.relative_to(folder).as_posix(): p.read_bytes().hex() for p in files}


def report(command: tuple[str, ...], folder: Path, finished: Path, weather: str) -> dict[str, object]:
    project = folder / "project"
    shutil.rmtree(project, ignore_errors=True)
    shutil.copytree(finished / "project", project, ignore=shutil.ignore_patterns(".git"))
    shutil.copytree(finished / "run", project / "runs" / "run")
    words = [w.format(new=folder / "new", run=project / "runs" / "run", model=finished / "shape") for w in command]
    shutil.rmtree(folder / "new", ignore_errors=True)
    (folder / "new").unlink(missing_ok=True) if (folder / "new").is_file() else None
    before = contents(project)
    with WEATHERS[weather](folder):
        try:
            found = noesis(*words, cwd=project)
            code, said = found.returncode, found.stderr
        except Exception as error:
            code, said = -1, f"{type(error).__name__}: {error}"
        after = contents(project)
    lost = sorted(name for name, text in before.items() if text not in after.values())  # it may have been moved
    parts = [name for name in after if ".part" in name]
    # where there is no room for the manifest of the run that takes its place, the old one lies in the archive
    whole = all(json.loads(file.read_text()) for file in (project / "runs").rglob("manifest.json"))
    return {"code": code, "said": said, "lost": lost, "parts": parts, "whole": whole}


def main() -> None:
    finished, folder = map(Path, sys.argv[1:])
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(folder)], check=True)
    for weather in WEATHERS:
        for name, command in COMMANDS.items():
            if weather in ("nearly full", "in use") and not any("{run}" in word for word in command):
                continue
            print(json.dumps([weather, name, report(command, folder, finished, weather)]), flush=True)


if __name__ == "__main__":
    main()
