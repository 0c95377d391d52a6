"""Where a run comes from: `--resume` (the same run, perhaps with more epochs), `--fork` (a new run from another one's adapter)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from noesis.core.config import Config
from noesis.core.console import command
from noesis.core.errors import RunError, UsageError
from noesis.core.files import replace_folder, sha256_file, sync_tree, write_json
from noesis.run.directory import Run, load_run
from noesis.run.manifest import foreign_libraries, identity_differences
from noesis.training.state.checkpoint import saved

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
EPOCHS = "training.num_train_epochs"


def resume(path: Path, identity: dict[str, Any], config: Config) -> None:
    """Make the run at `path` one that goes on with these settings: they may ask for more epochs, and for nothing else.

    Raises:
        UsageError: there is no run.
        RunError: it is another run; the message names what differs.
    """
    run = load_run(path)
    old, epochs = run.config(), config.training.epochs
    wrong = [
        f"{key}: {was} there, {is_} asked for"
        for key, was, is_ in _differences(old, config)
        if key != EPOCHS or config.training.method != "sft"
    ]
    wrong += [
        f"another {name}" for name in identity_differences(run.manifest["identity"], identity) if name != "config"
    ]
    wrong += foreign_libraries(run.manifest, always=epochs != old.training.epochs)
    done = run.result("train")
    trained = int(done["epochs"]) if done else 0
    if done and epochs > trained and not saved(run.checkpoints / "resume"):
        wrong.append("it was too short to keep a state beside its adapter, so epochs can't be added")
    if epochs < trained:
        wrong.append(f"{EPOCHS}: {trained} are trained already, {epochs} asked for")
    if wrong:
        raise RunError(
            f"{path} can't go on like this: {'; '.join(wrong)}. "
            f"Without --resume it is archived and a new run starts; "
            f"{command('train', '--fork', path, '--run', 'DIR')} starts from its adapter"
        )
    if run.manifest["identity"]["config_sha256"] == identity["config_sha256"]:
        return
    history = run.manifest.setdefault("history", [])
    finished = done is not None and run.manifest["stages"]["train"]["status"] in ("done", "stale")
    history.append({"epochs": old.training.num_train_epochs, "finished": finished})
    for name in ("plan", "train", "judge", "merge", "gguf", "report"):
        if name in run.manifest["stages"]:
            run.manifest["stages"][name]["status"] = "stale"
    run.manifest["identity"] = identity
    run.save()
    write_json(path / "config.json", config.model_dump(mode="json"))


def parent_of(path: Path, own: Path) -> dict[str, Any]:
    """What a fork of the run at `path` records of it.

    Raises:
        UsageError: it is the fork's own directory.
    """
    if path.resolve() == own.resolve():
        raise UsageError(f"--fork {path}: the new run needs a directory of its own; name one with --run DIR")
    run = load_run(path)
    adapter = run.adapter()
    return {
        "run": run.path.resolve().name,
        "adapter": adapter.name,
        "adapter_sha256": sha256_file(adapter / ADAPTER_FILES[0]),
        "steps": (run.result("train") or {}).get("steps"),
        "identity": run.manifest["identity"],
    }


def adopt(run: Run, path: Path, parent: dict[str, Any]) -> None:
    """Copy the parent's adapter into the new run, which stands on its own from then on."""
    target = run.path / "parent"
    if not target.is_dir():
        part = run.path / ".parent.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for name in ADAPTER_FILES:
            shutil.copyfile(load_run(path).adapter() / name, part / name)
        sync_tree(part)
        replace_folder(part, target)
    if run.manifest.get("parent") != parent:
        run.manifest["parent"] = parent
        run.save()


def _differences(old: Config, new: Config) -> list[tuple[str, Any, Any]]:
    """Settings that decide the adapter and differ: (dotted key, there, here)."""
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
