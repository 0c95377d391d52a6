"""The home and the cache folders of this machine, found alike by all commands and libraries; what is in the way."""

from __future__ import annotations

import contextlib
import errno
import getpass
import os
import re
from pathlib import Path

from noesis.core.errors import UsageError
from noesis.core.i18n import _

# obeyed by huggingface_hub; where one is set but empty, it would use the working directory
_FOLDERS = ("NOESIS_CACHE", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")


def home() -> Path | None:
    """The user's home; None where there is none: no HOME, and a user that the system does not know."""
    found = expanded("~")
    return found if found.is_absolute() else None


def expanded(name: str) -> Path:
    """A path with `~` and `~user` replaced; as it is where there is no such home."""
    return Path(os.path.expanduser(name))


def cache_folder() -> Path:
    """The folder of converted models, judges' replies, and other files that can be made again.

    `$NOESIS_CACHE`, else `noesis` in `$XDG_CACHE_HOME`, else `~/.cache/noesis`, also where the last alone is there.

    Raises:
        UsageError: none is named, and there is no home.
    """
    if named := os.environ.get("NOESIS_CACHE"):
        return expanded(named).absolute()
    at_home = home()
    usual = at_home / ".cache" / "noesis" if at_home else None
    base = Path(os.environ.get("XDG_CACHE_HOME") or "")
    if base.is_absolute() and not (usual and usual.is_dir() and not (base / "noesis").is_dir()):
        return base / "noesis"  # not where earlier versions, which looked at home alone, left what was paid for
    if usual is None:
        raise UsageError(
            _(
                "this user has no home folder to keep converted models in: set NOESIS_CACHE to a folder, "
                "for example  export NOESIS_CACHE=/tmp/noesis"
            )
        )
    return usual


def hub_folder() -> Path | None:
    """Where huggingface_hub keeps its snapshots, by its own rules, without importing it (0.3 s); None: nowhere."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if named is None:
        at_home = home()
        base = os.environ.get("XDG_CACHE_HOME") or (at_home and at_home / ".cache")
        huggingface = os.environ.get("HF_HOME") or (base and Path(base) / "huggingface")
        named = str(Path(huggingface) / "hub") if huggingface else None
    return expanded(os.path.expandvars(named)) if named else None


def variable_of(path: Path) -> str | None:
    """The environment variable that moves the cache that `path` is in, or is needed for; None: no cache."""
    with contextlib.suppress(UsageError):
        for folder, name in ((cache_folder(), "NOESIS_CACHE"), (hub_folder(), "HF_HOME")):
            if folder and (path.is_relative_to(folder) or folder.is_relative_to(path)):
                return name
    return None


def settle_folders() -> None:
    """Make libraries agree with this module; to be called before they are imported.

    A variable that is set but empty counts as not set. Without a home, what would go below it goes to the cache folder,
    instead of to a folder named `~` in the working directory.
    """
    for name in _FOLDERS:
        if os.environ.get(name) == "":
            del os.environ[name]
    if home() is None and (cache := os.environ.get("NOESIS_CACHE") or os.environ.get("XDG_CACHE_HOME")):
        os.environ.setdefault("HF_HOME", str(Path(cache).absolute() / "huggingface"))
        os.environ.setdefault("TRITON_HOME", str(Path(cache).absolute()))
    try:
        getpass.getuser()
    except (OSError, KeyError, ImportError):  # torch's compiler would ask for the name, and fail
        with contextlib.suppress(UsageError):
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "torchinductor"))


def as_named(path: Path) -> Path:
    """A file that is written under a temporary name, as it will be called."""
    hidden = re.fullmatch(r"\.(.{1,255}?)(?:\.\d{1,20})?\.part", path.name)
    return path.with_name(hidden[1]) if hidden else path


def in_the_way(path: Path, code: int | None) -> str | None:
    """What stands in the place of a file or a folder that is to be written or read, in words; None if nothing does.

    Args:
        code: the errno of the system's error.
    """
    if code == errno.ENOENT and path.is_symlink():
        return _("{path} is a symbolic link to something that is not there", path=path)
    if code in (errno.EISDIR, errno.ENOTEMPTY) or (code == errno.EEXIST and path.is_dir()):
        return _("{path} is a folder, and a file belongs there", path=path)
    if code in (errno.ENOTDIR, errno.EEXIST):
        places = (place for place in (*reversed(path.parents), path) if place.exists() and not place.is_dir())
        other = next(places, path)
        return _("{other} is a file, and a folder belongs there", other=other)
    if code == errno.ELOOP:
        return _("{path} is reached by a symbolic link that leads nowhere but to itself", path=path)
    if code == errno.ENXIO:
        return _("{path} is a pipe, a socket or a device, and a file belongs there", path=path)
    return None
