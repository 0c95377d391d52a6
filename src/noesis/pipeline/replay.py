"""`noesis replay RUN`: train it again from its manifest, in a directory of its own, and compare the adapters' hashes.

The same bits are promised on the same processor type with the same number of threads and the same versions; the manifest names them,
and what differs here is said first.
"""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from noesis.core.config import Config
from noesis.core.console import command
from noesis.core.device import detect
from noesis.core.errors import RunError
from noesis.core.files import sha256_file
from noesis.core.libraries import library_versions
from noesis.pipeline.resume_fork import resume
from noesis.pipeline.session import reopen_run
from noesis.pipeline.stages.train import run_train
from noesis.planning.plan import Plan
from noesis.run.directory import Run, load_run, open_run


@dataclass(frozen=True)
class Replay:
    """What came out."""

    path: Path  # of the run that was made
    expected: str  # sha256 of the adapter
    found: str
    differs: list[str]  # in the surroundings

    @property
    def identical(self) -> bool:
        return self.expected == self.found


def surroundings(run: Run) -> list[str]:
    """What is not as it was when `run` was trained: processor, threads, versions."""
    plan, train, device = run.result("plan") or {}, run.result("train") or {}, detect()
    then, now = dict(run.manifest.get("libraries", {})), library_versions()
    found = [
        f"{name} {version} then, {now.get(name, 'missing')} here"
        for name, version in then.items()
        if now.get(name) != version
    ]
    if plan.get("device", {}).get("name") != device.name:
        found.append(f"{plan.get('device', {}).get('name')} then, {device.name} here")
    if run.manifest.get("python") != platform.python_version():
        found.append(f"Python {run.manifest.get('python')} then, {platform.python_version()} here")
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is not None and threads != str(train.get("threads")):
        found.append(f"{train.get('threads')} threads then, {threads} here (OMP_NUM_THREADS)")
    return found


def replay(path: Path, target: Path | None = None) -> Replay:
    """Train the run at `path` again.

    Args:
        target: where; default: beside it, in `.replay/`. It is kept, for comparing.

    Raises:
        RunError: it is not trained to its end, or grew by epochs in the middle of an epoch.
    """
    run = load_run(path)
    if not run.is_done("train"):
        raise RunError(
            f"{path} is not trained to its end, or its files changed: there is nothing to compare with ({command('status', path)})"
        )
    history = run.manifest.get("history", [])
    if any(not entry["finished"] for entry in history):
        raise RunError(f"{path} was given more epochs while it was not finished: such a run can't be made again")
    expected = sha256_file(run.epochs()[-1] / "adapter_model.safetensors")
    place = target or path.parent / ".replay" / f"{path.resolve().name}-{expected[:8]}"
    config = run.config()
    with Run(place, {}).locked():
        for epochs in [entry["epochs"] for entry in history] + [config.training.num_train_epochs]:
            last = _train(
                run,
                place,
                config.model_copy(update={"training": config.training.model_copy(update={"num_train_epochs": epochs})}),
            )
    return Replay(place, expected, sha256_file(last.epochs()[-1] / "adapter_model.safetensors"), surroundings(run))


def _plan(run: Run, epochs: int) -> dict[str, Any]:
    """The run's own plan: made anew it might compute in another order."""
    plan = Plan.from_json(run.manifest["stages"]["plan"]["result"])
    if run.config().training.method != "sft":
        return plan.as_json()
    return replace(plan, epochs=epochs, steps=plan.steps // plan.epochs * epochs).as_json()


def _train(run: Run, place: Path, config: Config) -> Run:
    """One of the trainings that the run is made of, on copies of its data."""
    identity: dict[str, Any] = run.manifest["identity"] | {"config_sha256": config.digest()}
    old = load_run(place) if (place / "manifest.json").is_file() else None
    if old is not None and old.manifest["identity"] != identity and old.is_done("train"):
        resume(place, identity, config)
    new = open_run(place, identity, config)
    if "parent" in run.manifest:
        shutil.copytree(run.path / "parent", place / "parent", dirs_exist_ok=True)
        new.manifest["parent"] = run.manifest["parent"]

    def copy() -> dict[str, Any]:
        shutil.copytree(run.data, new.data, dirs_exist_ok=True)
        return dict(run.manifest["stages"]["export"]["result"])

    new.perform("export", copy, lambda: sorted(new.data.iterdir()))
    s = replace(reopen_run(place), run=new)
    if s.model.revision != identity["revision"]:
        raise RunError(
            f"the base model here is {s.model.revision}, the run's {identity['revision']}: replaying would train on another one"
        )
    new.perform("plan", lambda: _plan(run, config.training.num_train_epochs), list)
    run_train(s)
    return new
