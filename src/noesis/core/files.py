"""Atomic file writes, hashes and checks of the disk.

A file is written under a temporary name next to its target, flushed to the disk, then renamed: a full disk, a read-only
folder or a killed process leaves the old file as it was.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from noesis.core.console import command, size
from noesis.core.distribution import EXTRA_OF
from noesis.core.errors import MissingExtra, NoesisError, UnsafePathError, UsageError
from noesis.core.i18n import _, in_english, retold
from noesis.core.machine.folders import as_named, in_the_way, variable_of
from noesis.core.rooted import NO_FILE, guarded_root, move, open_file, open_folder, open_plain, remove, require_plain

NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def atomic(path: Path, mode: str = "w", *, permissions: int = 0o666) -> Iterator[IO[Any]]:
    """Open `path` for writing (`"w"` UTF-8 text or `"wb"`); it gets its name only if the block succeeds.

    Args:
        permissions: of the file, less what the umask takes.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open_folder(path.parent, make=True):
        remove(part)
        handle = open_file(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, permissions)
    try:
        with open(handle, mode, encoding=None if "b" in mode else "utf-8", newline=None if "b" in mode else "\n") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        move(part, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        remove(part)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut (on POSIX; elsewhere there is nothing to do).

    Network file systems that keep no folders of their own refuse that: there it is their affair.
    """
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flush every file below a folder, and the folders themselves, to the disk.

    The files get the permissions that any new file gets here: some libraries write what only its owner may read.
    """
    usual = folder.stat().st_mode & 0o666  # a new folder obeys the umask
    for parent, _folders, names in os.walk(folder):
        for name in names:
            file = Path(parent) / name
            file.chmod(stat.S_IMODE(file.stat().st_mode) | usual)
            sync_file(file)
        sync_folder(Path(parent))


def sync_file(file: Path) -> None:
    """Flush a file that other code wrote to the disk."""
    handle = os.open(file, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_folder(part: Path, target: Path) -> None:
    """Rename the flushed folder `part` to `target`, replacing an older one.

    If the process is killed in between, there is no folder called `target`, but never an incomplete one.
    """
    old = target.with_name(f".{target.name}.old.part")
    if target.exists() or target.is_symlink():
        remove(old)
        move(target, old)
    move(part, target)
    sync_folder(target.parent)
    remove(old)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written below `folder`; no other process may be writing there."""
    for part in folder.rglob(".*.part"):
        remove(part)


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically."""
    with atomic(path) as f:
        f.write(text)


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as indented JSON, keys in the given order. NaN and infinity are refused."""
    write_text(path, json.dumps(in_english(value), ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object per line, atomically."""
    with atomic(path) as f:
        for row in rows:
            f.write(json.dumps(in_english(row), ensure_ascii=False, allow_nan=False) + "\n")


def require_output(path: Path, option: str, *, inputs: Iterable[Path] = (), starts: bytes = b"") -> None:
    """Refuse to write a file where something is that the user may want to keep.

    Args:
        option: how the file was named, for the message.
        inputs: files that are read, and folders that nothing may be added to.
        starts: how every file of this kind starts; a file of another kind is not replaced.

    Raises:
        UsageError: it is no plain file (a folder, a pipe, a device), an input, inside such a folder, or a file of
            another kind.
    """
    place, named = path.resolve(), {"option": option, "path": path}
    if place.exists() and not place.is_file():  # a pipe is not even opened: that would wait for its other end
        kind = _("a folder") if place.is_dir() else _("a pipe, a device or a socket")
        raise UsageError(_("{option} {path} is {kind}: name a file", **named, kind=kind))
    for item in inputs:
        inside = item.is_dir() and place.is_relative_to(item.resolve())
        if inside or (place.exists() and item.exists() and place.samefile(item)):
            told = _("{option} {path} is among what is read ({item}): name a file elsewhere", **named, item=item)
            raise UsageError(told)
    if place.exists():
        with open(place, "rb") as f:
            if (start := f.read(len(starts))) and start != starts:
                told = _("{option} {path} exists and is of another kind: name another file, or remove it", **named)
                raise UsageError(told)


def append_line(path: Path, line: str) -> None:
    """Append `line` and a line break to a text file, which is made if it is not there.

    Raises:
        UnsafePathError: below a guarded folder, it is a link, no plain file, or has a second name somewhere.
    """
    with open_folder(path.parent, make=True):
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)  # no waiting for a pipe's reader
        with open(open_file(path, flags), "a", encoding="utf-8", newline="\n") as f:
            found = os.fstat(f.fileno())
            if guarded_root(path) and not (stat.S_ISREG(found.st_mode) and found.st_nlink == 1):
                told = _("{path} is not a file of its own (another name leads to it): remove it", path=path)
                raise UnsafePathError(told)
            f.write(line + "\n")


def make_folder(path: Path) -> None:
    """Create a folder and those above it, unless they are there."""
    with open_folder(path, make=True):
        pass


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A free name next to `target`, for code that opens files by name; the file becomes `target` if the block succeeds.

    An older `target` stays until then.
    """
    part = target.with_name(f".{target.name}.part")
    with open_folder(target.parent, make=True):
        remove(part)
    try:
        yield part
        sync_file(part)
        move(part, target)
    except BaseException:
        remove(part)
        raise
    sync_folder(target.parent)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """An empty folder next to `target`, which it replaces, flushed to the disk, if the block succeeds."""
    part = target.with_name(f".{target.name}.part")
    with open_folder(target.parent, make=True):
        remove(part)
        make_folder(part)
    try:
        yield part
        sync_tree(part)
        replace_folder(part, target)
    except BaseException:
        remove(part)
        raise


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """An empty hidden folder in `parent` for files that are not yet good for use; it is removed at the end."""
    folder = parent / f".{name}.part"
    remove(folder)
    make_folder(folder)
    try:
        yield folder
    finally:
        remove(folder)


def read_text(path: Path, *, errors: str = "strict", most: int = 64 << 20) -> str:
    """The text of a file in UTF-8, opened as by `open_plain`.

    Args:
        most: bytes that are read.

    Raises:
        UnicodeDecodeError: it is not UTF-8. UnsafePathError: as `open_plain`.
    """
    with open_plain(path) as f:
        return f.read(most).decode(errors=errors)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file atomically, with its time.

    Raises:
        NoesisError: there is not enough space on the disk.
    """
    with open_plain(source) as f:
        found = os.fstat(f.fileno())
        require_space(target.absolute().parent, found.st_size, target.name)
        with atomic(target, "wb") as out:
            shutil.copyfileobj(f, out, 1 << 20)
            if os.utime in os.supports_fd:
                out.flush()
                os.utime(out.fileno(), ns=(found.st_atime_ns, found.st_mtime_ns))


def copy_folder(source: Path, target: Path) -> None:
    """Copy every file below `source` to the same place below `target`, each atomically and with its time.

    Raises:
        UnsafePathError: something below `source` is neither a plain file nor a folder.
        NoesisError: there is not enough space on the disk.
    """
    require_plain(source)
    for parent, _folders, names in os.walk(source):
        place = target / Path(parent).relative_to(source)
        make_folder(place)
        for name in sorted(names):
            copy_file(Path(parent) / name, place / name)


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes; opened as by `open_plain`."""
    with open_plain(path) as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hexadecimal SHA-256 of a value's canonical JSON (sorted keys, no spaces): equal content has equal hashes."""
    value = in_english(value)
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def files_in(folder: Path, suffix: str = "", *, below: bool = False) -> list[Path]:
    """The files in a folder that are data, sorted; none where there is no such folder.

    Hidden files (`.#x.jsonl` of an editor, `._x.jsonl` of a Mac) and folders are none, whatever their names end in; a
    link is what it leads to. A link that leads nowhere is listed, so that reading it names what is missing.

    Args:
        suffix: how the names end, in small or capital letters; "" for any.
        below: also look into the folders below that are not hidden.

    Raises:
        UsageError: a pipe, a socket or a device has such a name: reading it might never end, and passing it over would
            hide that its content is missing.
    """
    found = []
    for file in folder.glob("**/*" if below else "*"):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if hidden or not file.name.lower().endswith(suffix) or file.is_dir():
            continue
        if file.is_file() or _leads_nowhere(file):
            found.append(file)
        elif suffix and file.exists():
            raise UsageError(_("{path} {what}", path=file, what=_(NO_FILE)))
    return sorted(found)


def _leads_nowhere(file: Path) -> bool:
    return file.is_symlink() and not file.exists()


def require_space(folder: Path, needed: float, what: str) -> None:
    """Refuse to start writing what the disk can't hold.

    Args:
        needed: bytes; 5 % more must be free.
        what: what would be written, for the message.

    Raises:
        NoesisError: naming both amounts.
    """
    with open_folder(folder, make=True):
        free = shutil.disk_usage(folder).free
    if free < needed * 1.05:
        sizes = {"needed": size(needed), "free": size(free)}
        lacks = _("{what} needs {needed} and {path} has {free} free", what=what, path=folder, **sizes)
        make_room = _("make room with  {command}, or choose another folder with --run", command=command("clean"))
        raise NoesisError(_("{what}: {remedy}", what=lacks, remedy=make_room))


LOCAL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)  # of the disk, not of a network


def explain_os_error(error: OSError) -> NoesisError:
    """An error of the operating system as one message with a remedy."""
    path = as_named(Path(error.filename)) if isinstance(error.filename, str) and error.filename else None
    where, why = f" ({path})" if path else "", retold(error.strerror or str(error))
    cache = variable_of(path) if path else None
    in_cache = _("set {cache} to a folder that you may write", cache=cache) if cache else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        clean = command("clean")
        again = _("free some with  {clean}  and run the same command again; nothing finished is lost", clean=clean)
        return NoesisError(_("no space left on the disk{where}: {again}", where=where, again=again))
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = in_cache or _("choose another folder with --run, or change its permissions")
        told = _("not allowed to read or write{where}: {why}; {remedy}", where=where, why=why, remedy=remedy)
        return NoesisError(told)
    if path and (found := in_the_way(path, error.errno)):
        told = _("{found}: move it away, and run the same command again; nothing finished is lost", found=found)
        return NoesisError(told)
    if error.errno == errno.ENAMETOOLONG:
        return NoesisError(_("a name is too long for the file system{where}: choose a shorter one", where=where[:300]))
    if in_cache:
        return NoesisError(f"{why}{where}: {in_cache}")
    if error.errno == errno.ENOENT and not error.filename and not _has_working_directory():
        return NoesisError(_("the working directory was removed: change to one that exists, for example  cd"))
    if error.errno == errno.EMFILE:
        return NoesisError(_("too many files are open{where}: allow more with  ulimit -n 1024", where=where))
    if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
        told = _(
            "the file system can't do what is needed here, which is mostly file locks{where}: {why}; "
            "use a folder on a local disk",
            where=where,
            why=why,
        )
        return NoesisError(told)
    return NoesisError(f"{why}{where}")


def _has_working_directory() -> bool:
    try:
        return bool(os.getcwd())
    except OSError:
        return False


def explain_error(error: Exception) -> NoesisError | None:
    """Any foreseeable failure as one message with an exit code; None for a bug, which needs its traceback."""
    if isinstance(error, NoesisError):
        return error
    if isinstance(error, OSError):
        return explain_os_error(error)
    if isinstance(error, ModuleNotFoundError) and (package := (error.name or "").partition(".")[0]) in EXTRA_OF:
        return MissingExtra(package, EXTRA_OF[package])
    if isinstance(error, MemoryError):
        return NoesisError(_("out of memory: choose a smaller --model, or lower max_length in training_config.yaml"))
    if "os error 28" in str(error):  # safetensors wraps the operating system's error in a class of its own
        return explain_os_error(OSError(errno.ENOSPC, "No space left on device"))
    return None


def utc_now() -> str:
    """The current time in UTC as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
