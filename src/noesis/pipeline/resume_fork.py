"""`--resume`: the same run continues, perhaps with more epochs. `--fork`: a new run starts from another's adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from noesis.core.config import Config
from noesis.core.errors import RunError, UsageError
from noesis.core.files import copy_file, new_folder, sha256_file
from noesis.core.i18n import _
from noesis.pipeline.results import RunResults
from noesis.run.directory import Run, load_run
from noesis.run.manifest import Identity, Parent
from noesis.training.state.checkpoint import saved

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
EPOCHS = "training.num_train_epochs"


def resume(path: Path, identity: Identity, config: Config) -> None:
    """Let the run at `path` continue with these settings: they may ask for more epochs, and for nothing else.

    Raises:
        UsageError: there is no run.
        RunError: it is another run; the message names what differs.
    """
    run = load_run(path)
    if reasons := _why_not_resumable(run, identity, config):
        raise RunError(
            _(
                "{path} can't continue: {reasons}. "
                "Without --resume it is archived and a new run starts; --fork {path} --run DIR starts from its adapter",
                path=path,
                reasons="; ".join(reasons),
            )
        )
    if run.identity.config_sha256 != identity.config_sha256:
        run.extend(identity, config)


def _why_not_resumable(run: Run, identity: Identity, config: Config) -> list[str]:
    old, epochs, done = run.config(), config.training.epochs, RunResults(run).train
    trained = done.epochs if done else 0
    reasons = [
        _("{key}: {was} there, {asked} asked for", key=key, was=was, asked=asked)
        for key, was, asked in _differences(old, config)
        if key != EPOCHS or config.training.on_pairs
    ]
    reasons += [_("another {name}", name=name) for name in run.identity.differences(identity) if name != "config"]
    reasons += run.manifest.library_differences(always=epochs != old.training.epochs)
    if done and epochs > trained and not saved(run.checkpoints / "resume"):
        reasons.append(_("it was too short to save a state with its adapter, so epochs can't be added"))
    if epochs < trained:
        reasons.append(
            _(
                "{key}: {trained} are trained already, {epochs} asked for",
                key=EPOCHS,
                trained=trained,
                epochs=epochs,
            )
        )
    return reasons


def parent_of(path: Path, own: Path) -> Parent:
    """What a fork of the run at `path` records of it.

    Args:
        own: the fork's directory.

    Raises:
        UsageError: both are the same directory.
        RunError: nothing was trained there.
    """
    if path.resolve() == own.resolve():
        raise UsageError(
            _("--fork {path}: the new run needs a directory of its own; name one with --run DIR", path=path)
        )
    run = load_run(path)
    adapter, trained = run.adapter(), RunResults(run).train
    return Parent(
        run=run.path.resolve().name,
        adapter=adapter.name,
        adapter_sha256=sha256_file(adapter / ADAPTER_FILES[0]),
        steps=trained.steps if trained else None,
        identity=run.identity,
    )


def adopt(run: Run, path: Path, parent: Parent) -> None:
    """Copy the parent's adapter into the new run, which needs nothing of the parent from then on."""
    target = run.path / "parent"
    if not target.is_dir():
        adapter = load_run(path).adapter()
        with new_folder(target) as part:
            for name in ADAPTER_FILES:
                copy_file(adapter / name, part / name)
    run.set_parent(parent)


def _differences(old: Config, new: Config) -> list[tuple[str, str, str]]:
    """Settings that decide the adapter and differ: (dotted key, old value, new value), values as JSON."""
    a, b = _flat(old.deciding()), _flat(new.deciding())
    return [
        (key, json.dumps(a.get(key)), json.dumps(b.get(key)))
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {f"{prefix}{key}": inner}
    return found
