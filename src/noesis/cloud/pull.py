"""`noesis cloud pull RUN`: the run directory from the volume, each file checked against the manifest's hash; broken off, it goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from noesis.cloud.volume.remote import Entry, RemoteFiles, read_text, safe_name
from noesis.core.console import Progress, say, size
from noesis.core.errors import RunError
from noesis.core.files import require_space, sha256_file, sync_folder
from noesis.run.archive import RUN_FILES

NEVER = ("checkpoints/resume/",)  # the trainer's state: only for going on where it is
MORE = ("summary.txt",)


def pull(far: RemoteFiles, target: Path, *, state: bool = False, archived: str | None = None) -> dict[str, Any]:
    """Copy the run to `target`.

    Args:
        state: with the trainer's state, 12 bytes for each weight of the adapter.
        archived: the name of an older run, in /runs of the volume.

    Returns:
        how many files and bytes were copied, and how many lay here already.

    Raises:
        RunError: there is no run, a name leads out of `target`, or a file is not what the manifest says.
    """
    base = f"runs/{safe_name(archived)}/" if archived else ""
    manifest = _manifest(far, base)
    known = {name: entry for stage in manifest["stages"].values() for name, entry in stage.get("outputs", {}).items()}
    found = [entry for top in (*RUN_FILES, *MORE) for entry in far.files("/" + base + top)]
    wanted = {name: e for e in found if _belongs(name := e.path.removeprefix(base), state=state)}
    here = [name for name, e in wanted.items() if _is_here(target / name, e, known.get(name))]
    missing = {name: e for name, e in wanted.items() if name not in here}
    total = sum(e.size for e in missing.values())
    _refuse_another_run(target, manifest)
    require_space(target, total, "the run")
    say(f"  {len(missing)} files, {size(total)} to copy; {len(here)} lie here already → {target}")
    with Progress("pull", total, "B") as progress:
        # the manifest last: a folder with it is whole
        for name in sorted(missing, key=lambda n: (n == "manifest.json", n)):
            _copy(far, base + name, target, name, known.get(name), progress)
    absent = sorted(name for name in known if _belongs(name, state=state) and not (target / name).is_file())
    if absent:
        raise RunError(
            f"the volume lacks {len(absent)} files that the manifest names, for example {absent[0]}: see  noesis cloud watch"
        )
    return {"files": len(missing), "bytes": total, "already_here": len(here), "run": str(target)}


def _manifest(far: RemoteFiles, base: str) -> dict[str, Any]:
    text = read_text(far, "/" + base + "manifest.json")
    if text is None:
        raise RunError(
            f"there is no run in /{base} of the volume: type  modal run scripts/modal_train.py, or look with  modal volume ls"
        )
    try:
        manifest = json.loads(text)
        names = [safe_name(name) for stage in manifest["stages"].values() for name in stage.get("outputs", {})]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RunError(f"/{base}manifest.json on the volume is not a manifest of Noesis") from None
    if any(name.split("/")[0] not in RUN_FILES for name in names):
        raise RunError(f"/{base}manifest.json on the volume names files that are no part of a run")
    return dict(manifest)


def _belongs(name: str, *, state: bool) -> bool:
    top = name.split("/")[0]
    hidden = any(part.startswith(".") for part in name.split("/"))
    return (top in RUN_FILES or name in MORE) and not hidden and (state or not name.startswith(NEVER))


def _is_here(file: Path, entry: Entry, known: dict[str, Any] | None) -> bool:
    """Whether a file was copied before: by its hash; where the manifest has none it is copied again."""
    return (
        known is not None
        and file.is_file()
        and file.stat().st_size == entry.size
        and sha256_file(file) == known["sha256"]
    )


def _refuse_another_run(target: Path, manifest: dict[str, Any]) -> None:
    """A folder that holds another run is not mixed with this one."""
    file = target / "manifest.json"
    if file.is_file():
        here = json.loads(file.read_text(encoding="utf-8"))
        if (here.get("identity"), here.get("created")) != (manifest.get("identity"), manifest.get("created")):
            raise RunError(
                f"{target} holds another run: name a folder of its own, for example  noesis cloud pull {target}-2"
            )


def _copy(
    far: RemoteFiles, source: str, target: Path, name: str, known: dict[str, Any] | None, progress: Progress
) -> None:
    file = target / name
    if not file.resolve().is_relative_to(target.resolve()):
        raise RunError(f"{file} leads out of {target} (a link lies there): remove it, or pull to another folder")
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    digest = hashlib.sha256()
    try:
        with open(part, "wb") as f:
            for chunk in far.chunks("/" + source):
                f.write(chunk)
                digest.update(chunk)
                progress.advance(len(chunk))
            f.flush()
            os.fsync(f.fileno())
        if known is not None and digest.hexdigest() != known["sha256"]:
            raise RunError(
                f"/{source} is not what the manifest says (its hash differs): it may be being written; try again when  noesis cloud watch  says done"
            )
        os.replace(part, file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)
