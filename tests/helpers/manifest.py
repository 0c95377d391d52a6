"""manifest.json edited from outside, as nothing in the product may do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from noesis.core.files import sha256_json
from noesis.run.manifest import Identity, Manifest, StageRecord


@contextmanager
def edited_manifest(run: Path) -> Iterator[dict[str, Any]]:
    """The manifest as JSON, to be changed in place; it is written back at the end."""
    file = run / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    yield manifest
    file.write_text(json.dumps(manifest), encoding="utf-8")


def as_version_0_1_0(run: Path) -> None:
    """Rewrite the manifest in format 1, as version 0.1.0 wrote it: another digest of what a stage read, no derived files."""
    with edited_manifest(run) as manifest:
        del manifest["format"]
        stages = manifest["stages"]
        for record in stages.values():
            for output in record["outputs"].values():
                output.pop("derived", None)
        for record in stages.values():
            record["inputs"] = {name: _format_1_digest(stages[name]) for name in record["inputs"]}


def _format_1_digest(record: dict[str, Any]) -> str:
    return sha256_json({name: output["sha256"] for name, output in record["outputs"].items()} or record["result"])


def write_manifest(run: Path, *, output_name: str = "x", base_model: str = "someone/else", stages: Any = None) -> None:
    """A manifest of a run that no stage of ours has made; `stages`: name → record as JSON."""
    run.mkdir(parents=True, exist_ok=True)
    records = {name: StageRecord.from_json(record) for name, record in (stages or {}).items()}
    identity = Identity("c", "d", "k", base_model, "r")
    manifest = Manifest("0.1.0", "2026-01-01T00:00:00Z", output_name, identity, {}, "3.11", "Linux", stages=records)
    (run / "manifest.json").write_text(json.dumps(manifest.to_json()), encoding="utf-8")
