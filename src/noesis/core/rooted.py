"""Files below a folder that a stranger may have filled: opened, moved and deleted without following a link out of it.

A run directory, a volume or a model folder can hold symbolic links. Guard such a folder once (`guard`); from then on
every function here and in `files.py` reaches a path below it one component at a time, with `O_NOFOLLOW` and `dir_fd`,
and refuses a link by name. The guarded folder itself may be reached through links: its owner typed it.
https://cwe.mitre.org/data/definitions/59.html
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from noesis.core.errors import UnsafePathError

POSIX = os.name == "posix"
_guarded: set[Path] = set()


def guard(root: Path) -> Path:
    """Never follow a link below `root`, in this process. Returns `root`, absolute."""
    absolute = Path(os.path.abspath(root))
    _guarded.add(absolute)
    return absolute


def guarded_root(path: Path) -> Path | None:
    """The innermost guarded folder that holds `path`; None where there is none."""
    absolute = Path(os.path.abspath(path))
    return next((folder for folder in (absolute, *absolute.parents) if folder in _guarded), None)


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
            f"{name!r} is no name below {root}: nothing was read or written; don't trust where it comes from"
        )
    return root.joinpath(*parts)


@contextmanager
def open_folder(folder: Path, *, make: bool = False) -> Iterator[int | None]:
    """A descriptor of `folder`, for `dir_fd`; None where the system has none (Windows), after the same checks by name.

    Args:
        make: create what is missing.

    Raises:
        UnsafePathError: a component below the guarded folder is a link.
    """
    absolute = Path(os.path.abspath(folder))
    root = guarded_root(absolute)
    if not POSIX:
        if root is not None:
            _require_no_link(root, absolute)
        if make:
            absolute.mkdir(parents=True, exist_ok=True)
        yield None
        return
    if root is None:
        if make:
            absolute.mkdir(parents=True, exist_ok=True)
        handle = os.open(absolute, os.O_RDONLY | os.O_DIRECTORY)
    else:
        if make:
            root.mkdir(parents=True, exist_ok=True)
        handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for part in absolute.relative_to(root).parts:
                handle = _step(handle, part, absolute, make=make)
        except BaseException:
            os.close(handle)
            raise
    try:
        yield handle
    finally:
        os.close(handle)


def _step(handle: int, part: str, whole: Path, *, make: bool) -> int:
    """The descriptor one component further down; the old one is closed once it is had."""
    if make:
        with suppress(FileExistsError):
            os.mkdir(part, dir_fd=handle)
    try:
        following = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and stat.S_ISLNK(os.lstat(part, dir_fd=handle).st_mode):
            raise _link(whole, part) from None
        raise
    os.close(handle)
    return following


def open_file(path: Path, flags: int, mode: int = 0o666) -> int:
    """`os.open` that never follows a link below a guarded folder, neither the last component nor one before it."""
    with open_folder(path.parent) as folder:
        if guarded_root(path) is None:
            return os.open(path, flags, mode)
        try:
            if folder is None:
                _require_no_link(guarded_root(path) or path, path)
                return os.open(path, flags, mode)
            return os.open(path.name, flags | os.O_NOFOLLOW, mode, dir_fd=folder)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _link(path, path.name) from None
            raise


def move(source: Path, target: Path) -> None:
    """`os.replace`, both ends below their guarded folders. A link is moved as the link that it is."""
    with open_folder(source.parent) as old, open_folder(target.parent) as new:
        if old is None or new is None:
            os.replace(source, target)
        else:
            os.replace(source.name, target.name, src_dir_fd=old, dst_dir_fd=new)


def remove(path: Path) -> None:
    """Delete a file, a link (never what it points to), or a folder with all that is in it; nothing where nothing is."""
    try:
        with open_folder(path.parent) as folder:
            kind = os.lstat(path.name, dir_fd=folder).st_mode if folder is not None else os.lstat(path).st_mode
            if not stat.S_ISDIR(kind):
                os.unlink(path.name, dir_fd=folder) if folder is not None else os.unlink(path)
            elif folder is not None:
                shutil.rmtree(path.name, dir_fd=folder)  # opens each folder with O_NOFOLLOW
            else:
                shutil.rmtree(path)
    except FileNotFoundError:
        return


def _require_no_link(root: Path, path: Path) -> None:
    """The check by name, for systems without `dir_fd`."""
    for place in reversed([path, *path.parents]):
        if place != root and root in place.parents and place.is_symlink():
            raise _link(path, place.name)


def _link(path: Path, part: str) -> UnsafePathError:
    return UnsafePathError(
        f"{path}: {part} is a symbolic link, which Noesis does not follow in a folder that it works in; "
        "replace it by what it points to, or use another folder"
    )
