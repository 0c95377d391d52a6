"""A secret of this machine's user, by which Noesis knows again what it wrote into a folder that others may have filled.

It is `machine.key` in the cache folder; whoever removes it disowns what was sealed with it, and loses nothing else.
"""

from __future__ import annotations

import hmac
import secrets
from functools import cache
from pathlib import Path

from filelock import FileLock

from noesis.core.console import say
from noesis.core.files import atomic, make_folder
from noesis.core.i18n import _
from noesis.core.machine.folders import cache_folder

BYTES = 32
LONGEST_WRITE_S = 10.0


def make_machine_key() -> None:
    """Make the secret now, where several machines are about to share one cache folder."""
    _key(cache_folder())


def sealed(name: str, text: str) -> str:
    """`text` with a seal that only this machine can make for `name`."""
    return f"{_seal(name, text)} {text}"


def unsealed(name: str, stored: str) -> str | None:
    """The text in `stored`; None if this machine did not seal it for `name`."""
    seal, _, text = stored.partition(" ")
    try:
        return text if hmac.compare_digest(seal.encode(), _seal(name, text).encode()) else None
    except UnicodeEncodeError:  # half a character, which is in no text of ours
        return None


def _seal(name: str, text: str) -> str:
    return hmac.new(_key(cache_folder()), f"{name} {text}".encode(), "sha256").hexdigest()


@cache
def _key(folder: Path) -> bytes:
    """The secret; made when it is first needed. Where it can't be kept, it holds for this process alone."""
    file = folder / "machine.key"
    try:
        make_folder(folder)
        with FileLock(folder / ".machine.key.lock", timeout=LONGEST_WRITE_S):
            if not file.is_file() or file.stat().st_size != BYTES:
                with atomic(file, "wb", permissions=0o600) as f:
                    f.write(secrets.token_bytes(BYTES))
            return file.read_bytes()
    except OSError as error:  # filelock's Timeout is one
        say(
            _(
                "  {file} can't be used ({strerror}): what is stored now is not believed by later commands",
                file=file,
                strerror=error.strerror or error,
            )
        )
        return secrets.token_bytes(BYTES)
