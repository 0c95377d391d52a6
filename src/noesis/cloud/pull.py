"""`noesis cloud pull RUN`: copy the run from the volume, each file checked against its hash in the manifest.

If it is interrupted, the same command continues: files that are here with the right hash are not copied again.
"""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from noesis.cloud.volume.layout import ARCHIVE, SUMMARY
from noesis.cloud.volume.remote import RemoteFile, RemoteFiles, manifest_of, safe_name
from noesis.core.console import Progress, command, say, size
from noesis.core.errors import RunError
from noesis.core.files import atomic, require_space, sha256_file, sweep
from noesis.core.i18n import _, ngettext
from noesis.core.jsonl import parse_object
from noesis.run.archive import RUN_FILES
from noesis.run.contents import runs_code, strays
from noesis.run.directory import SETTINGS
from noesis.run.folder import guard_run
from noesis.run.lock import held
from noesis.run.manifest import Manifest, OutputFile
from noesis.run.manifest_file import parse_manifest, read_manifest

STATE = "checkpoints/resume/"  # the trainer's state: only needed to continue the training
NOT_HERE = ("demo.json", "tribunal/replies.sqlite*")  # of no use on another machine, and under no hash


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
    listed = _listed_files(manifest, base)
    hashes = {name: file.sha256 for name, file in listed.items()}
    if manifest.settings_sha256 is not None:
        hashes[SETTINGS] = manifest.settings_sha256
    guard_run(target)
    found = [file for top in (*RUN_FILES, SUMMARY) for file in remote.files("/" + base + top)]
    wanted = {name: file for file in found if _is_wanted(name := file.path.removeprefix(base), state=state)}
    _require_accounted(wanted, listed, manifest, base)
    here = {name for name, file in wanted.items() if _is_here(target / name, file, hashes.get(name))}
    missing = {name: file for name, file in wanted.items() if name not in here}
    total = sum(file.size for file in missing.values())
    _refuse_another_run(target, manifest, wanted, here, wanted.keys() - hashes.keys())
    with held(target) if (target / "manifest.json").is_file() else nullcontext():  # a run that others may work on
        sweep(target)
        require_space(target, total, _("the run"))
        say(
            _(
                "  {missing} files, {total} to copy; {here} are already here → {target}",
                missing=len(missing),
                total=size(total),
                here=len(here),
                target=target,
            )
        )
        with Progress(_("pull"), total, "B") as progress:
            for name in sorted(missing, key=lambda n: (n == "manifest.json", n)):  # last: a folder with it is complete
                _copy(remote, missing[name], target, name, hashes.get(name), progress, manifest)
    absent = sorted(name for name in hashes if _is_wanted(name, state=state) and not (target / name).is_file())
    if absent:
        raise RunError(
            _(
                "the volume lacks {count} files that the manifest names, for example {example}: see  {command}",
                count=len(absent),
                example=absent[0],
                command=command("cloud", "watch"),
            )
        )
    return PullResult(len(missing), total, len(here), str(target))


def _listed_files(manifest: Manifest, base: str) -> dict[str, OutputFile]:
    """Each file that the manifest names.

    Raises:
        RunError: a name leads out of the run, or is of no part of a run.
    """
    files = {safe_name(name): file for stage in manifest.stages.values() for name, file in stage.outputs.items()}
    if any(name.split("/")[0] not in RUN_FILES for name in files):
        raise RunError(_("/{base}manifest.json on the volume names files that are no part of a run", base=base))
    return files


def _require_accounted(
    wanted: dict[str, RemoteFile], listed: dict[str, OutputFile], manifest: Manifest, base: str
) -> None:
    """Check the volume's listing against the manifest before anything is copied.

    Raises:
        RunError: a file should have a hash in the manifest and has none, or another size than there.
    """
    if unknown := strays(wanted, manifest) or runs_code(wanted, None):
        example = base + unknown[0]
        raise RunError(
            ngettext(
                "{count:,} file on the volume, for example /{name}, has no hash in the manifest, so nothing was "
                "copied: remove what no stage has left with  modal volume rm VOLUME FILE",
                "{count:,} files on the volume, for example /{name}, have no hash in the manifest, so nothing was "
                "copied: remove what no stage has left with  modal volume rm VOLUME FILE",
                len(unknown),
                name=example,
            )
        )
    for name, file in wanted.items():
        if name in listed and file.size != listed[name].bytes:
            raise RunError(
                _(
                    "/{path} has {size} bytes and the manifest says {bytes}: it may be being "
                    "written; try again when  {command}  says done",
                    path=file.path,
                    size=file.size,
                    bytes=listed[name].bytes,
                    command=command("cloud", "watch"),
                )
            )


def _is_wanted(name: str, *, state: bool) -> bool:
    parts = name.split("/")
    left_out = any(part.startswith(".") for part in parts) or any(fnmatchcase(name, pattern) for pattern in NOT_HERE)
    return (parts[0] in RUN_FILES or name == SUMMARY) and not left_out and (state or not name.startswith(STATE))


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
        raise RunError(
            _("{target} holds another run: pull to another folder, for example  {other}", target=target, other=other)
        )
    if found is not None and {entry.id for entry in found.ledger} - {entry.id for entry in manifest.ledger}:
        raise RunError(
            _(
                "in {target} work was done that the volume does not know, and its manifest would be replaced: "
                "pull to another folder, for example  {other}",
                target=target,
                other=other,
            )
        )
    for file in sorted(target.rglob("*")) if found is None else ():
        name = file.relative_to(target).as_posix()
        copied = name in here or (name in unhashed and file.stat().st_size == wanted[name].size)
        if file.is_file() and not copied and not (file.name.startswith(".") and file.name.endswith(".part")):
            raise RunError(
                _(
                    "{target} holds {name}, which is not of this run: nothing was copied; "
                    "pull to a new or empty folder, for example  {other}",
                    target=target,
                    name=name,
                    other=other,
                )
            )


def _copy(
    remote: RemoteFiles,
    source: RemoteFile,
    target: Path,
    name: str,
    sha256: str | None,
    progress: Progress,
    manifest: Manifest,
) -> None:
    """Copy one file; it gets its name only if it is what the volume's listing and the manifest say.

    Raises:
        RunError: it is longer or shorter, has another hash, or is a manifest that has changed meanwhile.
    """
    digest, left, whole = hashlib.sha256(), source.size, b""
    again = _("it may be being written; try again when  {command}  says done", command=command("cloud", "watch"))
    with atomic(target / name, "wb") as f:
        for chunk in remote.chunks("/" + source.path):
            left -= len(chunk)
            if left < 0:
                break
            f.write(chunk)
            digest.update(chunk)
            progress.advance(len(chunk))
            if name == "manifest.json":
                whole += chunk
        if left:
            raise RunError(
                _("/{path} is longer than {size} bytes: {again}", path=source.path, size=source.size, again=again)
                if left < 0
                else _("/{path} is shorter than {size} bytes: {again}", path=source.path, size=source.size, again=again)
            )
        if sha256 is not None and digest.hexdigest() != sha256:
            raise RunError(
                _("/{path} is not what the manifest says (its hash differs): {again}", path=source.path, again=again)
            )
        if name == "manifest.json" and not _is_same(whole, manifest):
            raise RunError(
                _("/{path} has changed since the files were copied by it: {again}", path=source.path, again=again)
            )


def _is_same(content: bytes, manifest: Manifest) -> bool:
    try:
        return parse_manifest(parse_object(content)) == manifest
    except (ValueError, RunError):
        return False
