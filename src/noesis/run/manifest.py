"""manifest.json: what a run is made of, and the state of every stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from noesis.core.errors import RunError
from noesis.core.files import sha256_json
from noesis.core.libraries import library_versions


def digest(entry: dict[str, Any]) -> str:
    """What a stage left, in one hash: of its files, or of its result where there are none."""
    files = {name: output["sha256"] for name, output in entry.get("outputs", {}).items()}
    return sha256_json(files or entry.get("result"))


def foreign_libraries(manifest: dict[str, Any], *, always: bool = False) -> list[str]:
    """Libraries whose major version changed while training was under way (or `always`): what goes on would not be the same run."""
    if not always and manifest["stages"].get("train", {}).get("status", "done") == "done":
        return []
    here = library_versions()
    return [
        f"another {name}: {here[name]} instead of {old}"
        for name, old in manifest.get("libraries", {}).items()
        if name in here and _major(old) != _major(here[name])
    ]


def _major(version: str) -> list[str]:
    """`5.23.0` → 5; below 1.0 the second number counts."""
    parts = version.split(".")
    return parts[:2] if parts[0] == "0" else parts[:1]


def read_manifest(path: Path) -> dict[str, Any] | None:
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


def identity_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What two identities differ in, in words."""
    return [
        key.removesuffix("_sha256").replace("_", " ")
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
