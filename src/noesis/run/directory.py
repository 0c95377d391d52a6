"""The run directory: manifest, stages, lock. Every file in it is written whole or not at all.

runs/<name>/manifest.json   what this run is made of, and the state of every stage
runs/<name>/config.json     the resolved configuration
runs/.archive/<name>-<id>   where a run goes, whole, when another configuration takes its name

A stage is `done` when its outputs are on the disk with the hashes that its entry lists, and not before.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from noesis import __version__
from noesis.core.config import Config
from noesis.core.console import command, say
from noesis.core.errors import CapError, RunError, UsageError
from noesis.core.files import sha256_file, sweep, sync_file, utc_now, write_json
from noesis.core.libraries import library_versions
from noesis.run.archive import RUN_FILES, archive, finish_archiving
from noesis.run.ledger import StageMeter, total, unrecorded_cost
from noesis.run.manifest import digest, foreign_libraries, identity_differences, read_manifest
from noesis.run.stages import NEEDS, STAGES


class Run:
    """One run directory. Make one with `open_run`, read one with `load_run`."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.usd_per_s = 0.0  # of this machine
        self.metering: float | None = None  # since when on the monotonic clock a stage of this process is at work

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

    def epochs(self) -> list[Path]:
        """The adapters of the finished epochs, in order.

        Raises:
            RunError: nothing was trained yet.
        """
        folders = sorted(self.checkpoints.glob("epoch_[0-9]*"), key=lambda p: int(p.name.removeprefix("epoch_")))
        whole = [p for p in folders if (p / "adapter_model.safetensors").is_file()]
        if not whole:
            raise RunError(f"{self.path} holds no trained adapter: run  {command('train', '--run', self.path)}  first")
        return whole

    def adapter(self) -> Path:
        """The adapter that the stage `choose` settled on; before it, that of the last finished epoch.

        Raises:
            RunError: nothing was trained yet.
        """
        epochs, chosen = self.epochs(), self.manifest["stages"].get("choose", {})
        named = chosen["result"]["adapter"] if chosen.get("status") == "done" else None
        return next((p for p in epochs if p.name == named), epochs[-1])

    # --- stages
    def is_done(self, stage: str) -> bool:
        """Whether `stage` ran to its end and its outputs are still those that it left."""
        entry = self.manifest["stages"].get(stage, {})
        return entry.get("status") == "done" and not self.changed(stage)

    def changed(self, stage: str, *, thoroughly: bool = False) -> list[str]:
        """What is wrong with the outputs of a stage: `name: missing` or `name: changed`.

        Args:
            thoroughly: hash every file; otherwise one whose size and time are as recorded is taken for unchanged.
        """
        wrong = []
        for name, output in self.manifest["stages"].get(stage, {}).get("outputs", {}).items():
            file = self.path / name
            if not file.is_file():
                wrong.append(f"{name}: missing")
                continue
            found = file.stat()
            known = not thoroughly and found.st_mtime_ns == output.get("mtime_ns")
            if found.st_size != output["bytes"] or not (known or sha256_file(file) == output["sha256"]):
                wrong.append(f"{name}: changed")
        return wrong

    def inputs(self, stage: str) -> dict[str, str]:
        """What a stage reads: of each stage before it the hash of its outputs, or of its result where it leaves no file."""
        return {
            name: digest(self.manifest["stages"][name])
            for name in NEEDS.get(stage, ())
            if "result" in self.manifest["stages"].get(name, {})
        }

    def perform(
        self, stage: str, work: Callable[[], dict[str, Any]], outputs: Callable[[], list[Path]], *, again: bool = False
    ) -> dict[str, Any]:
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
            float(self.manifest["stages"].get(stage, {}).get("seconds", 0))
            if self.manifest["stages"].get(stage, {}).get("status") == "interrupted"
            else 0.0
        )
        started = time.monotonic()
        entry: dict[str, Any] = {
            "status": "running",
            "started": utc_now(),
            "seconds": before,
            "inputs": self.inputs(stage),
            "outputs": {},
        }
        self.manifest["stages"][stage] = entry
        self.record_cost(unrecorded_cost(self.path, self.manifest.get("ledger", [])))
        sweep(self.path)
        self.save()
        meter = StageMeter(self.path, stage, entry["started"], self.usd_per_s)
        self.metering = meter.began
        try:
            result = work()
            files = {
                str(p.relative_to(self.path).as_posix()): self._recorded(p)
                for p in sorted(outputs())
                if not p.name.startswith(".")
            }
        except BaseException as error:
            # a stop at the cap is no failure: the stage goes on when more was agreed
            status = "failed" if isinstance(error, Exception) and not isinstance(error, CapError) else "interrupted"
            entry.update(status=status, seconds=round(before + time.monotonic() - started, 2))
            self.record_cost(meter.stop("capped" if isinstance(error, CapError) else status))
            self.save()
            raise
        entry.update(status="done", seconds=round(before + time.monotonic() - started, 2), outputs=files, result=result)
        self.record_cost(meter.stop("done"))
        self.save()
        return result

    def _recorded(self, file: Path) -> dict[str, Any]:
        """A file's entry, once it is on the disk."""
        sync_file(file)
        found = file.stat()
        return {"bytes": found.st_size, "sha256": sha256_file(file), "mtime_ns": found.st_mtime_ns}

    def spent(self) -> tuple[float, float]:
        """(USD, seconds) in the ledger, with those of a process that was killed."""
        ledger = self.manifest.get("ledger", [])
        killed = unrecorded_cost(self.path, ledger)
        return total(ledger if killed is None or self.metering is not None else [*ledger, killed])

    def record_cost(self, entry: dict[str, Any] | None) -> None:
        """Add an entry to the ledger; `cost_usd` and `worked_seconds` are its sums."""
        self.metering = None
        ledger = self.manifest.setdefault("ledger", [])
        if entry is not None:
            ledger.append(entry)
        self.manifest["cost_usd"], self.manifest["worked_seconds"] = total(ledger)

    def result(self, stage: str) -> dict[str, Any] | None:
        """What a finished stage reported, None if it has not run."""
        entry = self.manifest["stages"].get(stage, {})
        return dict(entry["result"]) if entry.get("status") in ("done", "stale") and "result" in entry else None

    def verdict(self) -> dict[str, Any]:
        """The court's last word: of the trial, where there was one, else the empty bench's; {"verdict", "reason", …}."""
        for stage in ("trial", "judge"):
            if (found := self.result(stage)) is not None and "court" in found:
                return dict(found["court"])
        return {"verdict": "UNDECIDED", "reason": "not judged"}

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
            raise RunError(
                f"{self.path} is in use by {who}: wait for it to end, or use another folder with --run"
            ) from None
        try:
            holder.write_text(f"process {os.getpid()} on {platform.node()} since {utc_now()}", encoding="utf-8")
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()


def open_run(
    path: Path, identity: dict[str, Any], config: Config, *, fresh: bool = False, archive_to: Path | None = None
) -> Run:
    """The run at `path` if it has this identity, else a new one; another run that lies there is archived whole.

    Args:
        identity: what decides the adapter: hashes of configuration, data and constitution, base model and revision.
        archive_to: where an old run goes; default `.archive/` beside `path` (on a volume, whose root is the run, a folder in it).
    """
    finish_archiving(path)
    old = read_manifest(path)
    if old is not None and old["identity"] == identity and not fresh and not foreign_libraries(old):
        return Run(path, old)
    if old is not None or any((path / name).exists() for name in RUN_FILES):
        moved = archive(path, old, archive_to or path.parent / ".archive")
        why = "it held no manifest"
        if old is not None:
            why = (
                ", ".join(
                    [f"another {name}" for name in identity_differences(old["identity"], identity)]
                    + foreign_libraries(old)
                )
                or "asked for with --fresh"
            )
        say(f"  the old run was moved to {moved} ({why})")
    manifest = {
        "noesis": __version__,
        "created": utc_now(),
        "output_name": config.training.output_name,
        "identity": identity,
        "libraries": library_versions(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cost_usd": 0.0,
        "ledger": [],
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
    finish_archiving(path)
    manifest = read_manifest(path)
    if manifest is None:
        raise UsageError(
            f"no run in {path}: {path / 'manifest.json'} is missing; make one with  {command('train', '--run', path)}  or  {command('demo')}"
        )
    return Run(path, manifest)
