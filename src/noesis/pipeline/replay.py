"""`noesis replay RUN`: train it again from its manifest, in a directory of its own, and compare the adapters' hashes.

The result is bit-identical on the same CPU type with the same number of threads and the same library versions. The
manifest names them, and what differs on this machine is reported first.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path

from noesis.core.config import Config
from noesis.core.console import command
from noesis.core.device import detect
from noesis.core.errors import RunError, UsageError
from noesis.core.files import copy_folder, files_in, sha256_file
from noesis.core.i18n import _
from noesis.core.libraries import library_versions
from noesis.pipeline.results import RunResults
from noesis.pipeline.resume_fork import resume
from noesis.pipeline.session import reopen_run
from noesis.pipeline.stages.train import run_train
from noesis.planning.plan import Plan
from noesis.run.directory import Run, load_run, open_run
from noesis.run.lock import locked
from noesis.run.manifest import Json


@dataclass(frozen=True)
class Replay:
    """The outcome of a replay.

    Attributes:
        path: of the run that was made.
        expected, found: sha256 of the run's adapter and of the replay's.
        differs: what was not as it was in the original training, in words.
    """

    path: Path
    expected: str
    found: str
    differs: list[str]

    @property
    def identical(self) -> bool:
        return self.expected == self.found


def environment_differences(run: Run) -> list[str]:
    """What is not as it was when `run` was trained: device, threads, versions."""
    plan, train, manifest = RunResults(run).executed_plan, RunResults(run).train, run.manifest
    now, device = library_versions(), detect()
    found = [
        _("{what} then, {here} here", what=" ".join((name, version)), here=now.get(name) or _("missing"))
        for name, version in manifest.libraries.items()
        if now.get(name) != version
    ]
    if (trained_on := plan.device.name if plan else "unknown device") != device.name:
        found.append(_("{what} then, {here} here", what=trained_on, here=device.name))
    if manifest.python != platform.python_version():
        found.append(
            _(
                "Python {python} then, {python_version} here",
                python=manifest.python,
                python_version=platform.python_version(),
            )
        )
    threads, then = os.environ.get("OMP_NUM_THREADS"), train.threads if train else None
    if threads is not None and threads != str(then):
        found.append(_("{then} threads then, {threads} here (OMP_NUM_THREADS)", then=then, threads=threads))
    return found


def replay(path: Path, target: Path | None = None) -> Replay:
    """Train the run at `path` again.

    Args:
        target: where; default: `.replay/` next to the run. It is not deleted, so that both can be compared.

    Raises:
        RunError: it is not trained to its end, or epochs were added in the middle of its training.
    """
    run = load_run(path)
    if not run.is_done("train"):
        raise RunError(
            _(
                "{path} is not trained to its end, or its files have changed: "
                "there is nothing to compare with ({command})",
                path=path,
                command=command("status", path),
            )
        )
    history = run.manifest.history
    if any(not extension.finished for extension in history):
        raise RunError(
            _("{path} was given more epochs before it was finished: such a run can't be made again", path=path)
        )
    expected = sha256_file(run.epochs()[-1] / "adapter_model.safetensors")
    place = target or path.parent / ".replay" / f"{path.resolve().name}-{expected[:8]}"
    if place.resolve().is_relative_to(path.resolve()):
        raise UsageError(_("--out {place} is the run itself or a folder in it: name another folder", place=place))
    config = run.config()
    with locked(place):
        for epochs in [extension.epochs for extension in history] + [config.training.num_train_epochs]:
            training = config.training.model_copy(update={"num_train_epochs": epochs})
            last = _train(run, place, config.model_copy(update={"training": training}))
    found = sha256_file(last.epochs()[-1] / "adapter_model.safetensors")
    return Replay(place, expected, found, environment_differences(run))


def _plan(run: Run, epochs: int) -> Plan:
    """The plan that the run was trained by: a new one might compute in another order."""
    plan = RunResults(run).executed_plan
    if plan is None:
        raise RunError(
            _("{path} was planned by an early version of Noesis: such a run can't be made again", path=run.path)
        )
    if run.config().training.on_pairs:
        return plan
    return replace(plan, epochs=epochs, steps=plan.steps // plan.epochs * epochs)


def _train(run: Run, place: Path, config: Config) -> Run:
    """One of the trainings that the run is made of, on copies of its data."""
    identity = replace(run.identity, config_sha256=config.digest())
    old = load_run(place) if (place / "manifest.json").is_file() else None
    if old is not None and old.identity != identity and old.is_done("train"):
        resume(place, identity, config)
    new = open_run(place, identity, config)
    if run.parent is not None:
        copy_folder(run.parent, place / "parent")
        new.set_parent(run.manifest.parent)

    def copy() -> Json:
        copy_folder(run.data, new.data)
        return run.result("export") or {}

    new.perform("export", copy, lambda: files_in(new.data))
    s = replace(reopen_run(place), run=new)
    if s.model.revision != identity.revision:
        raise RunError(
            _(
                "the base model here is {revision}, the run's {identity_revision}: "
                "replaying would train on another one",
                revision=s.model.revision,
                identity_revision=identity.revision,
            )
        )
    new.perform("plan", lambda: _plan(run, config.training.num_train_epochs).to_json(), list)
    run_train(s)
    return new
