"""The reply cache's file: opened if it is a cache of ours, else set aside, and a new one takes its place.

A run directory may come from a stranger, so the file may be a link to a database of the user's, hold triggers, or be
damaged; and it may be another user's, or one that other programs hold.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from pathlib import Path

from noesis.core.console import say
from noesis.core.files import make_folder
from noesis.core.i18n import _
from noesis.core.rooted import move

TABLES = (
    "CREATE TABLE replies (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE spending (id INTEGER PRIMARY KEY, usd REAL NOT NULL)",
)
LOCKED_S = 10.0  # how long another process may hold the file
MOST_BYTES = 16 << 20  # of an entry
UNWRITABLE = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
BESIDE = ("-wal", "-shm", "-journal")  # files that SQLite keeps with a database


class _NotOursError(Exception):
    """The file is not to be used, nor touched; the message says why."""


class _DamagedError(Exception):
    """The file is ours, but is no reply cache; the message says why."""


def open_database(path: Path) -> sqlite3.Connection:
    """The cache at `path`; one in memory, which is said, where there can be none."""
    try:
        make_folder(path.parent)
        try:
            return _open(path)
        except _DamagedError as error:
            aside = _set_aside(path)
            say(
                _(
                    "  the reply cache {path} {error}: it is now {name}, and a new one begins",
                    path=path,
                    error=error,
                    name=aside.name,
                )
            )
            return _open(path)
    except (_NotOursError, _DamagedError, OSError, sqlite3.Error) as error:
        say(
            _(
                "  the reply cache {path} can't be used ({error}): replies stay in memory until the command ends",
                path=path,
                error=error,
            )
        )
        return _prepared(_connect(":memory:"))


def _open(path: Path) -> sqlite3.Connection:
    for file in (path, *(path.with_name(path.name + end) for end in BESIDE)):
        _require_own(file)
    try:
        return _prepared(_connect(path))
    except sqlite3.OperationalError as error:
        if _code(error) not in UNWRITABLE:
            raise
        return _prepared(_connect(f"{path.absolute().as_uri()}?immutable=1"), to_write=False)
    except sqlite3.DatabaseError as error:
        raise _DamagedError(_("is damaged ({error})", error=error)) from None


def _connect(name: Path | str) -> sqlite3.Connection:
    uri = isinstance(name, str) and name.startswith("file:")
    return sqlite3.connect(name, isolation_level=None, timeout=LOCKED_S, check_same_thread=False, uri=uri)


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _require_own(file: Path) -> None:
    """Raises _NotOursError unless `file` is a plain file of this user's under one name, or does not exist."""
    try:
        found = file.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(found.st_mode):
        raise _NotOursError(_("{name} is a symbolic link", name=file.name))
    if not stat.S_ISREG(found.st_mode):
        raise _NotOursError(_("{name} is not a file", name=file.name))
    if found.st_nlink > 1:
        raise _NotOursError(_("{name} has a second name elsewhere, a hard link", name=file.name))
    if os.name == "posix" and found.st_uid != os.geteuid():
        raise _NotOursError(
            _("{name} belongs to user {st_uid}; take it with chown, or remove it", name=file.name, st_uid=found.st_uid)
        )
    if os.name == "posix" and found.st_mode & stat.S_IWOTH:
        raise _NotOursError(_("everyone may write {name}; end that with chmod o-w, or remove it", name=file.name))


def _prepared(db: sqlite3.Connection, *, to_write: bool = True) -> sqlite3.Connection:
    """`db` with its tables, after a look at what it holds; it is closed if it can't be used.

    Raises:
        _DamagedError: it holds other things, such as triggers, or is inconsistent. sqlite3.Error: it can't be used.
    """
    try:
        db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MOST_BYTES)
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("PRAGMA cell_size_check = ON")
        held = {sql for (sql,) in db.execute("SELECT sql FROM sqlite_schema LIMIT 10")}
        if not held <= set(TABLES):
            raise _DamagedError(_("is no reply cache (it holds other tables)"))
        if (found := db.execute("PRAGMA quick_check(1)").fetchone()) != ("ok",):
            raise _DamagedError(_("is damaged ({found!r})", found=str(found[0])[:80]))
        if to_write:
            db.execute("PRAGMA journal_mode = WAL")
            # intact after a kill or a power cut, though a cut may lose the last few replies
            db.execute("PRAGMA synchronous = NORMAL")
        for table in TABLES:
            if table not in held:
                kind = "TABLE IF NOT EXISTS" if to_write else "TEMP TABLE"
                db.execute(table.replace("TABLE", kind, 1))
    except BaseException:
        db.close()
        raise
    return db


def _set_aside(path: Path) -> Path:
    """Rename a database with the files beside it; nothing is deleted."""
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    for end in ("", *BESIDE):
        if (file := path.with_name(path.name + end)).exists():
            move(file, aside.with_name(aside.name + end))
    return aside
