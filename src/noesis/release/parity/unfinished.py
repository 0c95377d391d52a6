"""What an interrupted `noesis gguf` had finished: files by their hashes, and the figures of each part measured.

Both wait in a folder beside the place of the files, with a journal under this machine's seal for exactly what they were
made from. A journal of another model, of other versions or by somebody else is none, and a file that is not as the
journal says is written again, so that nobody can plant figures in a run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from noesis import __version__
from noesis.core.console import say, size
from noesis.core.errors import ParityError, UnsafePathError
from noesis.core.files import make_folder, read_text, sha256_file, sync_file, write_text
from noesis.core.i18n import _
from noesis.core.libraries import library_versions
from noesis.core.rooted import remove
from noesis.llm.clients.machine_key import sealed, unsealed
from noesis.release.parity.certificate import Comparison

JOURNAL = "journal"


@dataclass
class Figures:
    """Figures of the parts of a certificate that are measured."""

    parts: dict[str, Comparison] = field(default_factory=dict)
    where: str = ""  # what computed the reference: `cpu`, or a GPU's name

    def keep(self, part: str, comparison: Comparison) -> None:
        """Add a part's figures."""
        self.parts[part] = comparison


@dataclass
class Unfinished(Figures):
    """The folder of an unfinished `noesis gguf`."""

    folder: Path = field(kw_only=True)
    made_from: str = field(kw_only=True)  # SHA-256 of what files and figures follow from
    hashes: dict[str, str] = field(default_factory=dict)  # of finished files: name → SHA-256

    def file(self, part: str, name: str, write: Callable[[Path], Any]) -> Path:
        """The file `name`, written unless it is there as it was left.

        Args:
            part: of the certificate, whose figures don't hold for a new file.
        """
        file = self.folder / name
        if file.is_file() and self.hashes.get(name) == sha256_file(file):
            say(_("  {name}: already written, {size}", name=name, size=size(file.stat().st_size)))
            return file
        remove(file)
        self.parts.pop(part, None)
        write(file)
        sync_file(file)
        self.hashes[name] = sha256_file(file)
        self._save()
        say(f"  {name}: {size(file.stat().st_size)}")
        return file

    def keep(self, part: str, comparison: Comparison) -> None:
        super().keep(part, comparison)
        self._save()

    def _save(self) -> None:
        parts = {part: comparison.to_json() for part, comparison in self.parts.items()}
        text = json.dumps({"files": self.hashes, "where": self.where, "parts": parts})
        write_text(self.folder / JOURNAL, sealed(self.made_from, text))


def made_by() -> list[Any]:
    """What writes and measures: other versions make files anew."""
    return [__version__, library_versions()]


@contextmanager
def unfinished(folder: Path, made_from: str) -> Iterator[Unfinished]:
    """What is in `folder`, empty where it was left by other work. It is removed once the block has decided: when it
    succeeds, or finds a file out of tolerance; whatever else stops it leaves what is finished."""
    journal = _read(folder / JOURNAL, made_from)
    if journal is None:
        remove(folder)
        make_folder(folder)
        journal = {"files": {}, "where": "", "parts": {}}
    parts = {part: Comparison.from_json(found) for part, found in journal["parts"].items()}
    work = Unfinished(parts, journal["where"], folder=folder, made_from=made_from, hashes=journal["files"])
    try:
        yield work
    except ParityError:
        remove(folder)
        raise
    except BaseException:
        if work.hashes:
            say(_("  what is finished waits in {folder}: the same command goes on with it", folder=folder))
        raise
    remove(folder)


def _read(file: Path, made_from: str) -> Any:
    if file.parent.is_symlink():
        return None  # what is in its place is not ours
    try:
        text = unsealed(made_from, read_text(file))
    except (OSError, UnicodeDecodeError, UnsafePathError):
        return None
    return None if text is None else json.loads(text)
