"""The data set on the volume: is it there, is it whole, is it the one that was exported here? Each answer says what to type."""

from __future__ import annotations

import json
from pathlib import Path

from noesis.core.console import say
from noesis.core.errors import DataError, UsageError
from noesis.core.files import sha256_file

PARTS = ("train", "eval")


def exported_hashes(exports: Path) -> dict[str, str] | None:
    """SHA-256 of each part as it lies here; None where nothing was exported here.

    Raises:
        DataError: a file is not the one that `statistics.json` beside it describes.
    """
    files = {part: exports / f"{part}.jsonl" for part in PARTS}
    if not all(file.is_file() for file in files.values()):
        return None
    found = {part: sha256_file(file) for part, file in files.items()}
    described = _described(exports / "statistics.json")
    for part, digest in found.items():
        if described and described.get(part) != digest:
            raise DataError(
                f"{files[part]} was changed since its export (statistics.json describes another): type  python scripts/export_for_modal.py"
            )
    return found


def put_command(volume: str, *, force: bool = False) -> str:
    """How the data set gets onto the volume."""
    return f"modal volume put {volume} data/training/exports /dataset" + (" --force" if force else "")


def require_upload(dataset: Path, uploaded: dict[str, str] | None, volume: str) -> None:
    """Refuse a data set that is missing, torn, or another one than was exported where the command was typed.

    Args:
        dataset: its folder on the mounted volume.
        uploaded: `exported_hashes` of the machine where the command was typed.

    Raises:
        UsageError: there is none.
        DataError: it is not what it should be.
    """
    if not (dataset / "train.jsonl").is_file():
        if (dataset / "exports" / "train.jsonl").is_file():
            raise UsageError(
                f"Dataset not found: it lies in /dataset/exports of the volume {volume}, one folder too deep: type  {put_command(volume)}"
            )
        raise UsageError(
            f"Dataset not found: the volume {volume} has no /dataset/train.jsonl: type  {put_command(volume)}"
        )
    if not (dataset / "eval.jsonl").is_file():
        raise UsageError(
            f"Dataset not found: the volume {volume} has no /dataset/eval.jsonl: type  {put_command(volume, force=True)}"
        )
    found = {part: sha256_file(dataset / f"{part}.jsonl") for part in PARTS}
    described = _described(dataset / "statistics.json")
    if described is None:
        say("  /dataset/statistics.json is not on the volume: whether the upload is whole can't be told")
    for part, digest in found.items():
        if described is not None and described.get(part) != digest:
            raise DataError(
                f"the data set on the volume is not whole: /dataset/{part}.jsonl is not the file that its statistics.json describes: "
                f"type  {put_command(volume, force=True)}"
            )
    if uploaded is not None and uploaded != found:
        raise DataError(
            f"the data set on the volume is not the one that was exported here ({len(_different(uploaded, found))} of 2 files differ): "
            f"type  {put_command(volume, force=True)}  and run the same command again"
        )


def _different(a: dict[str, str], b: dict[str, str]) -> list[str]:
    return [part for part in PARTS if a.get(part) != b.get(part)]


def _described(statistics: Path) -> dict[str, str] | None:
    """The hashes in a `statistics.json`; None without one. One that can't be read describes nothing that matches."""
    if not statistics.is_file():
        return None
    try:
        raw = json.loads(statistics.read_text(encoding="utf-8"))
        return {part: str(raw[part]["sha256"]) for part in PARTS}
    except (ValueError, KeyError, TypeError):
        return {}
