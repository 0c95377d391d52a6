"""One process at a time works on a run directory."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from noesis.core.errors import RunError
from noesis.core.files import make_folder, read_text, utc_now, write_text
from noesis.core.i18n import _
from noesis.core.rooted import remove
from noesis.run.folder import require_run_folder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock the run directory `path`, which need not exist yet. The lock of a process that was killed is free.

    Raises:
        RunError: another process is working here; the message says which.
        UsageError, UnsafePathError: it is a folder to keep out of; see `require_run_folder`.
    """
    require_run_folder(path)
    make_folder(path)
    with held(path):
        yield


@contextmanager
def held(path: Path) -> Iterator[None]:
    """As `locked`, for any folder that is there.

    Raises:
        RunError: another process is working here.
    """
    lock, holder = FileLock(path / ".lock", timeout=0), path / ".holder"
    try:
        lock.acquire()
    except Timeout:
        who = read_text(holder, errors="replace", most=200) if holder.is_file() else _("another process")
        raise RunError(
            _("{path} is in use by {who}: wait for it to end, or use another folder with --run", path=path, who=who)
        ) from None
    try:
        write_text(
            holder,
            _(
                "process {getpid} on {node} since {utc_now}",
                getpid=os.getpid(),
                node=platform.node(),
                utc_now=utc_now(),
            ),
        )
        yield
    finally:
        remove(holder)
        lock.release()
