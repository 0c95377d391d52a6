"""`noesis cloud pull RUN`: copy the run from the volume, each file checked against its hash in the manifest.

If it is interrupted, the same command continues: files that are here with the right hash are not copied again.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

from noesis.cloud.volume.layout import ARCHIVE, SUMMARY
from noesis.cloud.volume.remote import RemoteFile, RemoteFiles, manifest_of, safe_name
from noesis.core.console import Progress, command, say, size
from noesis.core.errors import RunError
from noesis.core.files import atomic, require_space, sha256_file, sweep
from noesis.run.archive import RUN_FILES
from noesis.run.folder import guard_run
from noesis.run.manifest import Manifest
from noesis.run.manifest_file import read_manifest

STATE = "checkpoints/resume/"  # the trainer's state: only needed to continue the training


@dataclass(frozen=True)
class PullResult:
    """What was copied; `already_here` files were not, since their hash was right."""

    files: int
    bytes: int
    already_here: int
    run: str

    def to_json(self) -> dict[str, str | int]:
        return asdict(self)


def pull(remote: RemoteFiles, target: Path, *, state: bool = False, archived: str | None = None) -> PullResult:
    """Copy the run to `target`.

    Args:
        state: with the trainer's state, 12 bytes for each weight of the adapter.
        archived: the name of an older run, in /runs of the volume.

    Raises:
        RunError: there is no run, a name leads out of `target`, or a file is not what the manifest says.
    """
    base = f"{ARCHIVE}/{safe_name(archived)}/" if archived else ""
    manifest = manifest_of(remote, base)
    hashes = _safe_hashes(manifest, base)
    guard_run(target)
    found = [file for top in (*RUN_FILES, SUMMARY) for file in remote.files("/" + base + top)]
    wanted = {name: file for file in found if _is_wanted(name := file.path.removeprefix(base), state=state)}
    here = {name for name, file in wanted.items() if _is_here(target / name, file, hashes.get(name))}
    missing = {name: file for name, file in wanted.items() if name not in here}
    total = sum(file.size for file in missing.values())
    _refuse_another_run(target, manifest, wanted, here, wanted.keys() - hashes.keys())
    sweep(target)
    require_space(target, total, "the run")
    say(f"  {len(missing)} files, {size(total)} to copy; {len(here)} are already here → {target}")
    with Progress("pull", total, "B") as progress:
        for name in sorted(missing, key=lambda n: (n == "manifest.json", n)):  # last: a folder with it is complete
            _copy(remote, base + name, target, name, hashes.get(name), progress)
    absent = sorted(name for name in hashes if _is_wanted(name, state=state) and not (target / name).is_file())
    if absent:
        raise RunError(
            f"the volume lacks {len(absent)} files that the manifest names, for example {absent[0]}: "
            f"see  {command('cloud', 'watch')}"
        )
    return PullResult(len(missing), total, len(here), str(target))


def _safe_hashes(manifest: Manifest, base: str) -> dict[str, str]:
    """SHA-256 of each file that the manifest names.

    Raises:
        RunError: a name leads out of the run, or is of no part of a run.
    """
    hashes = {
        safe_name(name): file.sha256 for stage in manifest.stages.values() for name, file in stage.outputs.items()
    }
    if any(name.split("/")[0] not in RUN_FILES for name in hashes):
        raise RunError(f"/{base}manifest.json on the volume names files that are no part of a run")
    return hashes


def _is_wanted(name: str, *, state: bool) -> bool:
    parts = name.split("/")
    hidden = any(part.startswith(".") for part in parts)
    return (parts[0] in RUN_FILES or name == SUMMARY) and not hidden and (state or not name.startswith(STATE))


def _is_here(file: Path, remote: RemoteFile, sha256: str | None) -> bool:
    """Whether a file was copied before; one without a hash in the manifest is copied again."""
    return sha256 is not None and file.is_file() and file.stat().st_size == remote.size and sha256_file(file) == sha256


def _refuse_another_run(
    target: Path, manifest: Manifest, wanted: dict[str, RemoteFile], here: set[str], unhashed: set[str]
) -> None:
    """Raise RunError if `target` holds anything but this run or a part of it that was copied before.

    Args:
        wanted: the run's files; here: those that are in `target` with the right hash.
        unhashed: names of those that have no hash in the manifest.
    """
    other = command("cloud", "pull", target.with_name(f"{target.name}-2"))
    found = read_manifest(target)
    if found is not None and (found.identity, found.created) != (manifest.identity, manifest.created):
        raise RunError(f"{target} holds another run: pull to another folder, for example  {other}")
    for file in sorted(target.rglob("*")) if found is None else ():
        name = file.relative_to(target).as_posix()
        copied = name in here or (name in unhashed and file.stat().st_size == wanted[name].size)
        if file.is_file() and not copied and not (file.name.startswith(".") and file.name.endswith(".part")):
            raise RunError(
                f"{target} holds {name}, which is not of this run: nothing was copied; "
                f"pull to a new or empty folder, for example  {other}"
            )


def _copy(remote: RemoteFiles, source: str, target: Path, name: str, sha256: str | None, progress: Progress) -> None:
    digest = hashlib.sha256()
    with atomic(target / name, "wb") as f:
        for chunk in remote.chunks("/" + source):
            f.write(chunk)
            digest.update(chunk)
            progress.advance(len(chunk))
        if sha256 is not None and digest.hexdigest() != sha256:
            raise RunError(
                f"/{source} is not what the manifest says (its hash differs): it may be being written; "
                f"try again when  {command('cloud', 'watch')}  says done"
            )
