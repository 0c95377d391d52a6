"""Reading manifest.json: format 1 (without the key `format`) is brought to format 2; format 3 only records more.

Format 1 hashed a stage's files, or its result where it had none. The model card was among the files of `merge` although
a later trial rewrote it, and after running out of memory `train` replaced the plan that it had read. What such a run
recorded of its inputs is accepted, so that a run that was valid in that version is valid here.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from noesis.core.errors import RunError
from noesis.core.files import sha256_json
from noesis.core.i18n import _
from noesis.core.jsonl import read_json_file
from noesis.run.manifest import FORMAT, Json, Manifest, StageRecord
from noesis.run.stages import is_derived


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of the run at `path`, None if there is none.

    Raises:
        RunError: it is damaged, or no manifest, or was written by a newer Noesis.
    """
    file = path / "manifest.json"
    try:
        value = read_json_file(file, constants=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        why = _("move {path} away, or name another folder with --run", path=path)
        raise RunError(_("{file} is damaged ({error}): {why}", file=file, error=error, why=why)) from None
    try:
        return parse_manifest(value)
    except RunError as error:
        raise RunError(f"{file} {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        why = _("move {path} away, or choose another folder with --run", path=path)
        raise RunError(_("{file} is not a manifest of Noesis: {why}", file=file, why=why)) from None


def parse_manifest(value: Json) -> Manifest:
    """A manifest of any format.

    Raises:
        RunError: it was written by a newer Noesis, or by none.
        KeyError, TypeError, ValueError, AttributeError, OverflowError: it is not a manifest.
    """
    written = value.get("format", 1)
    if type(written) is not int or written < 1:
        raise RunError(
            _(
                "has format {written}, which no version of Noesis writes: restore the file, or don't trust it",
                written=repr(written)[:40],
            )
        )
    if written > FORMAT:
        raise RunError(
            _(
                "has format {written}; this version of Noesis reads up to {format}: update Noesis",
                written=written,
                format=FORMAT,
            )
        )
    manifest = Manifest.from_json(value)
    return _from_format_1(manifest) if written < 2 else manifest


def _from_format_1(old: Manifest) -> Manifest:
    stages = {name: _with_derived(name, record) for name, record in old.stages.items()}
    return replace(
        old,
        stages={
            name: replace(
                record,
                inputs={
                    other: stages[other].digest() if _was_read(old, name, other, read) else read
                    for other, read in record.inputs.items()
                },
            )
            for name, record in stages.items()
        },
    )


def _with_derived(stage: str, record: StageRecord) -> StageRecord:
    outputs = {name: replace(file, derived=is_derived(stage, name)) for name, file in record.outputs.items()}
    return replace(record, outputs=outputs)


def _was_read(old: Manifest, reader: str, stage: str, read: str) -> bool:
    """Whether `reader` recorded the format-1 digest of `stage`, or that was changed in one of the two known ways."""
    record = old.stages.get(stage)
    if record is None:
        return False
    if read == _format_1_digest(record):
        return True
    own = old.stages[reader]
    card_was_rewritten = stage == "merge" and "trial" in old.stages
    plan_was_replaced = stage == "plan" and bool((own.result or {}).get("out_of_memory_once"))
    return (card_was_rewritten or plan_was_replaced) and record.started <= own.started


def _format_1_digest(record: StageRecord) -> str:
    return sha256_json({name: output.sha256 for name, output in record.outputs.items()} or record.result)
