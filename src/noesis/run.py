"""The run directory: manifest, stages, lock. Every file in it is written whole or not at all.

runs/<name>/manifest.json   what this run is made of, and the state of every stage
runs/<name>/config.json     the resolved configuration
runs/.archive/<name>-<id>   where a run goes, whole, when another configuration takes its name
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from noesis import __version__
from noesis.config import Config
from noesis.console import say
from noesis.errors import RunError, UsageError
from noesis.files import sha256_file, sha256_json, write_json

STAGES = ("export", "plan", "train", "judge", "merge", "gguf", "trial", "report")  # a trial makes no earlier stage stale
OWN = ("manifest.json", "config.json", "demo.json", "data", "checkpoints", "metrics.jsonl", "tribunal", "merged", "gguf", "report.html")
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "tokenizers", "safetensors", "gguf", "xllamacpp", "numpy")


class Run:
    """One run directory. Make one with `open_run`, read one with `load_run`."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    # --- where things are
    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tribunal(self) -> Path:
        return self.path / "tribunal"

    @property
    def merged(self) -> Path:
        return self.path / "merged" / str(self.manifest["output_name"])

    @property
    def gguf(self) -> Path:
        return self.path / "gguf"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def config(self) -> Config:
        """The resolved configuration that this run was made with."""
        return Config.model_validate_json((self.path / "config.json").read_text(encoding="utf-8"))

    def adapter(self) -> Path:
        """The adapter of the last finished epoch.

        Raises:
            RunError: nothing was trained yet.
        """
        epochs = sorted(self.checkpoints.glob("epoch_[0-9]*"), key=lambda p: int(p.name.removeprefix("epoch_")))
        whole = [p for p in epochs if (p / "adapter_model.safetensors").is_file()]
        if not whole:
            raise RunError(f"{self.path} holds no trained adapter: run  noesis train --run {self.path}  first")
        return whole[-1]

    # --- stages
    def is_done(self, stage: str) -> bool:
        """Whether `stage` ran to its end and its outputs are still there, with the sizes recorded."""
        entry = self.manifest["stages"].get(stage, {})
        return entry.get("status") == "done" and all(
            (self.path / name).is_file() and (self.path / name).stat().st_size == output["bytes"] for name, output in entry["outputs"].items()
        )

    def perform(self, stage: str, work: Callable[[], dict[str, Any]], outputs: Callable[[], list[Path]], *, again: bool = False) -> dict[str, Any]:
        """Run a stage unless it is done; record its result, time and outputs. Later stages are marked stale.

        Args:
            work: does it and returns what the manifest should say of it (plain JSON).
            outputs: the files that it left, asked for afterwards.
        """
        if self.is_done(stage) and not again:
            say("  already done")
            return dict(self.manifest["stages"][stage]["result"])
        for later in STAGES[STAGES.index(stage) + 1 :] if stage in STAGES else ():
            if later in self.manifest["stages"]:
                self.manifest["stages"][later]["status"] = "stale"
        before = (
            float(self.manifest["stages"].get(stage, {}).get("seconds", 0)) if self.manifest["stages"].get(stage, {}).get("status") == "interrupted" else 0.0
        )
        started = time.monotonic()
        entry: dict[str, Any] = {"status": "running", "started": now(), "seconds": before, "outputs": {}}
        self.manifest["stages"][stage] = entry
        self.save()
        try:
            result = work()
        except BaseException as error:
            entry.update(status="failed" if isinstance(error, Exception) else "interrupted", seconds=round(before + time.monotonic() - started, 2))
            self.save()
            raise
        files = {str(p.relative_to(self.path).as_posix()): {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in sorted(outputs())}
        entry.update(status="done", seconds=round(before + time.monotonic() - started, 2), outputs=files, result=result)
        self.save()
        return result

    def result(self, stage: str) -> dict[str, Any] | None:
        """What a finished stage reported, None if it has not run."""
        entry = self.manifest["stages"].get(stage, {})
        return dict(entry["result"]) if entry.get("status") in ("done", "stale") and "result" in entry else None

    def save(self) -> None:
        """Write the manifest."""
        write_json(self.path / "manifest.json", self.manifest)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run directory; a second process is refused and told who holds it. A dead holder's lock is free.

        Raises:
            RunError: another process is at work here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock, holder = FileLock(self.path / ".lock", timeout=0), self.path / ".holder"
        try:
            lock.acquire()
        except Timeout:
            who = holder.read_text(encoding="utf-8") if holder.is_file() else "another process"
            raise RunError(f"{self.path} is in use by {who}: wait for it to end, or use another folder with --run") from None
        try:
            holder.write_text(f"process {os.getpid()} on {platform.node()} since {now()}", encoding="utf-8")
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()


def open_run(path: Path, identity: dict[str, Any], config: Config, *, fresh: bool = False, archive_to: Path | None = None) -> Run:
    """The run at `path` if it has this identity, else a new one; another run that lies there is archived whole.

    Args:
        identity: what decides the adapter: hashes of configuration, data and constitution, base model and revision.
        archive_to: where an old run goes; default `.archive/` beside `path` (on a volume, whose root is the run, a folder in it).
    """
    old = _read_manifest(path)
    if old is not None and old["identity"] == identity and not fresh:
        return Run(path, old)
    if old is not None or any((path / name).exists() for name in OWN):
        moved = archive(path, old, archive_to or path.parent / ".archive")
        why = "it held no manifest" if old is None else ", ".join(_differences(old, identity)) or "asked for with --fresh"
        say(f"  the old run was moved to {moved} ({why})")
    manifest = {
        "noesis": __version__,
        "created": now(),
        "output_name": config.training.output_name,
        "identity": identity,
        "libraries": library_versions(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cost_usd": 0.0,
        "stages": {},
    }
    run = Run(path, manifest)
    write_json(path / "config.json", config.model_dump(mode="json"))
    run.save()
    return run


def load_run(path: Path) -> Run:
    """An existing run.

    Raises:
        UsageError: there is none at `path`.
    """
    manifest = _read_manifest(path)
    if manifest is None:
        raise UsageError(f"no run in {path}: {path / 'manifest.json'} is missing; make one with  noesis train --run {path}  or  noesis demo")
    return Run(path, manifest)


def archive(path: Path, manifest: dict[str, Any] | None, folder: Path) -> Path:
    """Move what belongs to the run at `path` into a folder of its own under `folder`; nothing is deleted."""
    target = folder / f"{path.name or 'run'}-{sha256_json([manifest, time.time_ns()])[:8]}"
    target.mkdir(parents=True)
    for name in OWN:
        if (path / name).exists():
            shutil.move(str(path / name), target / name)
    return target


def _read_manifest(path: Path) -> dict[str, Any] | None:
    file = path / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise RunError(f"{file} is damaged (not JSON): move {path} away, or start anew with --fresh") from None
    if not isinstance(manifest, dict) or not {"identity", "stages", "output_name"} <= manifest.keys():
        raise RunError(f"{file} is not a manifest of Noesis: move {path} away, or choose another folder with --run")
    return manifest


def _differences(old: dict[str, Any], identity: dict[str, Any]) -> list[str]:
    names = [key.removesuffix("_sha256") for key in identity if old["identity"].get(key) != identity[key]]
    return [f"another {name.replace('_', ' ')}" for name in names]


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that a result depends on."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def now() -> str:
    """The time as ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
