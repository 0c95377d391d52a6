"""Files below a folder that a stranger may have filled: opened, moved and deleted without following a link out of it.

A run directory or a volume can hold symbolic links, pipes and devices. Guard such a folder once (`guard`): it is
refused if it holds one now, and from then on every function here and in `files.py` reaches a path below it one
component at a time, with `O_NOFOLLOW` and `dir_fd`, so that a link made later is not followed either. The guarded
folder itself may be reached through links: its owner typed it. https://cwe.mitre.org/data/definitions/59.html
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from noesis.core.errors import NoesisError, UnsafePathError
from noesis.core.i18n import N_, _

POSIX = os.name == "posix"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # of a model, and so of its folder and files
NO_FILE = N_("is a pipe, a socket or a device, and a file belongs there: move it away, or save its content to a file")
DEEPEST = 50  # folders in folders; a run needs six
_guarded: set[Path] = set()
_own_links: dict[Path, Path] = {}  # made by `make_link`: place → target


def guard(root: Path, *, parts: Collection[str] | None = None) -> None:
    """Never follow a link below `root`, in this process.

    Args:
        parts: what in `root` is looked through to the bottom; default: everything. All of `root` is guarded.

    Raises:
        UnsafePathError: it holds something that is neither a plain file nor a folder.
    """
    _guarded.add(Path(os.path.abspath(root)))
    require_plain(root, parts=parts)


def require_plain(root: Path, *, parts: Collection[str] | None = None) -> None:
    """Refuse a folder that holds a link, a pipe, a device or a socket. The arguments and error are those of `guard`."""
    left = [(root, 0)] if root.is_dir() else []
    while left:
        folder, depth = left.pop()
        if depth > DEEPEST:
            raise UnsafePathError(
                _(
                    "{root} holds folders in folders, {deepest} deep and more: nothing was read",
                    root=root,
                    deepest=DEEPEST,
                )
            )
        for name in os.listdir(folder):
            place = folder / name
            with suppress(FileNotFoundError):  # another process is working here
                kind = os.lstat(place).st_mode
                if stat.S_ISDIR(kind):
                    left += [(place, depth + 1)] if depth or parts is None or name in parts else []
                elif stat.S_ISLNK(kind) and Path(os.path.abspath(place)) not in _own_links:
                    raise _is_link(place, name)
                elif not (stat.S_ISREG(kind) or stat.S_ISLNK(kind)):
                    raise UnsafePathError(
                        _("{place} is neither a file nor a folder: remove it; nothing was read", place=place)
                    )


def make_link(place: Path, target: Path) -> None:
    """Make a link of our own from `place` to the folder `target`, the only kind that is followed."""
    with open_folder(place.parent, make=True) as folder:
        if folder is None:
            os.symlink(target, place, target_is_directory=True)
        else:
            os.symlink(os.path.abspath(target), place.name, dir_fd=folder)
    _own_links[Path(os.path.abspath(place))] = Path(os.path.abspath(target))


def _placed(path: Path) -> Path:
    """`path`, absolute, behind our own links."""
    absolute = Path(os.path.abspath(path))
    for place in absolute.parents:
        if place in _own_links:
            return _own_links[place] / absolute.relative_to(place)
    return absolute


def guarded_root(path: Path) -> Path | None:
    """The innermost guarded folder that holds `path`; None where there is none."""
    placed = _placed(path)
    return next((folder for folder in (placed, *placed.parents) if folder in _guarded), None)


def below(root: Path, name: str) -> Path:
    """The path of `name`, which a stranger chose, below `root`.

    Raises:
        UnsafePathError: it is empty, absolute, leaves `root`, or holds a NUL.
    """
    parts = name.replace("\\", "/").split("/")
    if (
        not name
        or "\0" in name
        or name.startswith(("/", "\\"))
        or ":" in parts[0]
        or any(p in ("", ".", "..") for p in parts)
    ):
        raise UnsafePathError(
            _(
                "{name!r} is no name below {root}: nothing was read or written; don't trust where it comes from",
                name=name,
                root=root,
            )
        )
    return root.joinpath(*parts)


def file_of_model(folder: Path, name: str) -> Path:
    """A file of a model folder. Links are usual there, but only to files beside it or in the Hub's own cache of it.

    Raises:
        UnsafePathError: it leads elsewhere.
    """
    home, file = folder.resolve(), (folder / name).resolve()
    repository = home.parent.parent  # of the Hub's cache: models--who--what/{snapshots/revision/,blobs/}
    in_cache = home.parent.name == "snapshots" and repository.name.startswith("models--")
    if not any(file.is_relative_to(place) for place in (home, *([repository / "blobs"] if in_cache else []))):
        raise UnsafePathError(
            _("{folder} is a link that leads out of the model's folder: nothing was copied", folder=folder / name)
        )
    return file


def is_name(name: object) -> bool:
    """Whether `name` may become part of a path."""
    return isinstance(name, str) and re.fullmatch(NAME, name) is not None


@contextmanager
def open_folder(folder: Path, *, make: bool = False) -> Iterator[int | None]:
    """A descriptor of `folder`, for `dir_fd`; None where the system has none (Windows), after the same checks by name.

    Args:
        make: create what is missing.

    Raises:
        UnsafePathError: a component below the guarded folder is a link.
    """
    placed = _placed(folder / "x").parent  # `folder` itself may be a link of our own
    root = guarded_root(placed)
    if not POSIX:
        _require_no_link(root, placed)
        if make:
            placed.mkdir(parents=True, exist_ok=True)
        yield None
        return
    start = root or placed
    if make:
        start.mkdir(parents=True, exist_ok=True)
    handle = os.open(start, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in placed.relative_to(start).parts:
            following = _step(handle, part, placed, make=make)
            os.close(handle)
            handle = following
        yield handle
    finally:
        os.close(handle)


def _step(handle: int, part: str, whole: Path, *, make: bool) -> int:
    """The descriptor one component further down."""
    if make:
        with suppress(FileExistsError):
            os.mkdir(part, dir_fd=handle)
    try:
        return os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and stat.S_ISLNK(os.lstat(part, dir_fd=handle).st_mode):
            raise _is_link(whole, part) from None
        error.filename = str(whole)
        raise


def open_file(path: Path, flags: int, mode: int = 0o666) -> int:
    """`os.open` that never follows a link below a guarded folder, neither the last component nor one before it."""
    root = guarded_root(path)
    with open_folder(path.parent) as folder:
        try:
            if folder is None:
                _require_no_link(root, path)
                return os.open(path, flags, mode)
            return os.open(path.name, flags | (os.O_NOFOLLOW if root else 0), mode, dir_fd=folder)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _is_link(path, path.name) from None
            error.filename = str(path)
            raise


def open_plain(path: Path) -> BufferedReader:
    """Open a file for reading; no pipe is waited for.

    Raises:
        NoesisError: it is a pipe, a socket or a device, or leads to one.
        UnsafePathError: it is a link, a pipe, a folder, or anything else, below a guarded folder.
    """
    if guarded_root(path) is None:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise NoesisError(_("{path} {what}", path=path, what=_(NO_FILE)))
        return open(path, "rb")
    handle = open_file(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UnsafePathError(_("{path} is no plain file: remove it, or restore the file; nothing was read", path=path))
    return open(handle, "rb")


def move(source: Path, target: Path) -> None:
    """`os.replace`, both ends below their guarded folders. A link is moved as the link that it is."""
    with open_folder(source.parent) as old, open_folder(target.parent) as new:
        try:
            if old is None or new is None:
                os.replace(source, target)
            else:
                os.replace(source.name, target.name, src_dir_fd=old, dst_dir_fd=new)
        except OSError as error:  # which names both, and without their folders
            named = source if isinstance(error, FileNotFoundError) else target
            raise OSError(error.errno, error.strerror, str(named)) from None


def remove(path: Path) -> None:
    """Delete a file, a link (never what it points to), or a folder with all that is in it; nothing where nothing is."""
    with suppress(FileNotFoundError), open_folder(path.parent) as folder:
        name = path if folder is None else path.name
        if not stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
            os.unlink(name, dir_fd=folder)
        else:
            shutil.rmtree(name, dir_fd=folder)  # with a descriptor, opens each folder with O_NOFOLLOW


def _require_no_link(root: Path | None, path: Path) -> None:
    """The check by name, for systems without `dir_fd`."""
    for place in reversed([path, *path.parents]):
        if root is not None and root in place.parents and place.is_symlink():
            raise _is_link(path, place.name)


def _is_link(path: Path, part: str) -> UnsafePathError:
    return UnsafePathError(
        _(
            "{path}: {part} is a symbolic link, which Noesis does not follow in a folder that it works in; "
            "replace it by what it points to, or use another folder",
            path=path,
            part=part,
        )
    )
