"""Check the dataset on the volume: it is there, complete, and the one that was exported. Errors say what to type."""

from __future__ import annotations

from pathlib import Path

from noesis.cloud.request import export_command
from noesis.core.console import say, shell_command
from noesis.core.errors import DataError, UsageError
from noesis.core.files import sha256_file
from noesis.core.i18n import _
from noesis.core.jsonl import read_json_file

PARTS = ("train", "eval")


def exported_hashes(exports: Path) -> dict[str, str] | None:
    """SHA-256 of each exported part on this machine; None if nothing was exported here.

    Raises:
        DataError: a file is not the one that `statistics.json` next to it describes.
    """
    files = {part: exports / f"{part}.jsonl" for part in PARTS}
    if not all(file.is_file() for file in files.values()):
        return None
    found = {part: sha256_file(file) for part, file in files.items()}
    described = _described(exports / "statistics.json")
    for part, digest in found.items():
        if described and described.get(part) != digest:
            raise DataError(
                _(
                    "{files} was changed since its export (statistics.json describes another file): "
                    "export again with  {export_command}",
                    files=files[part],
                    export_command=export_command(),
                )
            )
    return found


def put_command(volume: str, *, force: bool = False) -> str:
    """The command that uploads the dataset."""
    words = ("modal", "volume", "put", volume, "data/training/exports", "/dataset")
    return shell_command(*words, *(["--force"] if force else []))


def require_upload(dataset: Path, uploaded: dict[str, str] | None, volume: str) -> None:
    """Refuse a dataset that is missing, incomplete, or not the one exported where the command was typed.

    Args:
        dataset: its folder on the mounted volume.
        uploaded: `exported_hashes` of the machine where the command was typed; None if nothing was exported there.

    Raises:
        UsageError: there is no dataset.
        DataError: a file differs from its statistics.json or from the export.
    """
    if not (dataset / "train.jsonl").is_file():
        if (dataset / "exports" / "train.jsonl").is_file():
            raise UsageError(
                _(
                    "Dataset not found: on the volume {volume} it is in /dataset/exports, one folder too deep: "
                    "type  {put_command}",
                    volume=volume,
                    put_command=put_command(volume),
                )
            )
        raise UsageError(
            _(
                "Dataset not found: the volume {volume} has no /dataset/train.jsonl: type  {put_command}",
                volume=volume,
                put_command=put_command(volume),
            )
        )
    if not (dataset / "eval.jsonl").is_file():
        raise UsageError(
            _(
                "Dataset not found: the volume {volume} has no /dataset/eval.jsonl: type  {put_command}",
                volume=volume,
                put_command=put_command(volume, force=True),
            )
        )
    found = {part: sha256_file(dataset / f"{part}.jsonl") for part in PARTS}
    described = _described(dataset / "statistics.json")
    if described is None:
        say(_("  /dataset/statistics.json is not on the volume: the upload can't be checked for completeness"))
    for part, digest in found.items():
        if described is not None and described.get(part) != digest:
            raise DataError(
                _(
                    "the dataset on the volume is not complete: /dataset/{part}.jsonl is not the file that its "
                    "statistics.json describes: "
                    "type  {put_command}",
                    part=part,
                    put_command=put_command(volume, force=True),
                )
            )
    if uploaded is not None and uploaded != found:
        different = sum(uploaded.get(part) != found[part] for part in PARTS)
        raise DataError(
            _(
                "the dataset on the volume is not the one that was exported here ({different} of 2 files differ): "
                "type  {put_command}  and run the same command again",
                different=different,
                put_command=put_command(volume, force=True),
            )
        )


def _described(statistics: Path) -> dict[str, str] | None:
    """The hashes in a `statistics.json`; None if there is no such file, {} (which matches nothing) if it is broken."""
    if not statistics.is_file():
        return None
    try:
        raw = read_json_file(statistics, constants=False)
        return {part: str(raw[part]["sha256"]) for part in PARTS}
    except (ValueError, KeyError, TypeError):
        return {}
