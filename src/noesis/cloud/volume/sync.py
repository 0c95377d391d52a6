"""A run worked on in a container: on its own fast disk, and published to the volume thing by thing, each of them whole.

A volume is no place to write steps to: writing waits for the network, and whoever commits a file last wins. So a run is brought from the
volume, worked on locally, and a thread publishes what is whole (an epoch's adapter, a saved state) as soon as it appears, with the
manifest and the metrics once a minute. Manifest last: it never names a file that is not there.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from noesis.core.console import say
from noesis.core.files import replace_folder, sweep
from noesis.run.archive import RUN_FILES

HEAVY = ("merged", "gguf")  # linked rather than copied where a stage only reads them
LOOK_S = 2.0  # between two looks for something whole and new
EVERY_S = 60.0  # between two publications of manifest and metrics

Mark = tuple[tuple[str, int, int], ...]  # of a file or folder: names, sizes, times


class VolumeSync:
    """The run at `volume` as it is worked on in `local`.

    Args:
        commit: makes what was written to the volume visible to others.
    """

    def __init__(self, volume: Path, local: Path, commit: Callable[[], None]) -> None:
        self.volume, self.local, self.commit = volume, local, commit
        self._published: dict[str, Mark] = {}
        self._lock = threading.Lock()

    def bring(self, *, link: tuple[str, ...] = HEAVY) -> None:
        """Copy the run from the volume; folders in `link` are linked, and writing to them goes straight to the volume."""
        shutil.rmtree(self.local, ignore_errors=True)
        self.local.mkdir(parents=True)
        for name in RUN_FILES:
            source, target = self.volume / name, self.local / name
            if source.is_dir() and name in link:
                target.symlink_to(source, target_is_directory=True)
            elif source.is_dir():
                sweep(source)  # what a container that was killed left half-copied
                shutil.copytree(source, target)
            elif source.is_file():
                shutil.copy2(source, target)
        self._published = {name: change_mark(path) for name, path in self._things()}

    def publish(self) -> list[str]:
        """Copy to the volume what is new or changed, drop saved states that are gone here, and commit.

        Returns:
            the names of what was copied.
        """
        with self._lock:
            things = dict(self._things())
            done = []
            for name, path in things.items():
                now = change_mark(path)
                if self._published.get(name) != now and self._copy(name, path):
                    self._published[name] = now
                    done.append(name)
            gone = [name for name in self._published if "/resume/checkpoint-" in name and name not in things]
            for name in gone:
                shutil.rmtree(self.volume / name, ignore_errors=True)
                del self._published[name]
            if done or gone:
                self.commit()
            return done

    def is_due(self) -> bool:
        """Whether an adapter or a state that the volume does not have lies here, whole."""
        return any(
            name not in self._published
            for name, path in self._things()
            if path.is_dir() and not name.startswith("tribunal")
        )

    def _things(self) -> Iterator[tuple[str, Path]]:
        """What is published as one: folders of checkpoints and merged models, else files; the manifest last."""
        for name in sorted(RUN_FILES, key=lambda n: (n == "manifest.json", n)):
            path = self.local / name
            if path.is_symlink():
                continue
            if name == "checkpoints":
                whole = [
                    p for kind in ("epoch_[0-9]*", "checkpoint-[0-9]*") for p in sorted(path.rglob(kind)) if p.is_dir()
                ]  # also of a first part
                plain = [
                    p
                    for p in sorted(path.rglob("*"))
                    if p.is_file() and not p.name.startswith(".") and not set(p.parents) & set(whole)
                ]
                beside = [
                    p for p in plain if not any(part.startswith((".", "torn-")) for part in p.relative_to(path).parts)
                ]
                yield from ((p.relative_to(self.local).as_posix(), p) for p in (*whole, *beside))
            elif name == "merged":
                yield from ((p.relative_to(self.local).as_posix(), p) for p in sorted(path.glob("[!.]*")) if p.is_dir())
            elif path.is_dir():
                files = (
                    p
                    for p in sorted(path.rglob("*"))
                    if p.is_file() and not any(part.startswith(".") for part in p.relative_to(path).parts)
                )
                yield from ((p.relative_to(self.local).as_posix(), p) for p in files)
            elif path.is_file():
                yield name, path

    def _copy(self, name: str, path: Path) -> bool:
        """Onto the volume under its name, whole; False where it went away meanwhile (a state that was rotated out)."""
        target = self.volume / name
        part = target.with_name(f".{target.name.removeprefix('.')}.part")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if path.is_dir():
                shutil.rmtree(part, ignore_errors=True)
                shutil.copytree(path, part)
                replace_folder(part, target)
            else:
                shutil.copy2(path, part)
                os.replace(part, target)
        except (FileNotFoundError, shutil.Error):
            shutil.rmtree(part, ignore_errors=True)
            if path.exists():
                raise
            return False
        return True


def change_mark(path: Path) -> Mark:
    """What tells one state of a file or folder from another, without reading it."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    found = []
    for file in files:
        try:
            known = file.stat()
        except FileNotFoundError:
            continue  # replaced or rotated away this moment: the next look sees what it became
        found.append((file.relative_to(path).as_posix(), known.st_size, known.st_mtime_ns))
    return tuple(found)


@contextmanager
def publishing(staging: VolumeSync, *, look_s: float = LOOK_S, every_s: float = EVERY_S) -> Iterator[None]:
    """Publish while the block works, and once more at its end, however it ends."""
    done = threading.Event()

    def work() -> None:
        last = time.monotonic() - every_s  # at once: whoever watches sees that it began
        while not done.wait(look_s):
            if staging.is_due() or time.monotonic() - last >= every_s:
                try:
                    staging.publish()
                except OSError as error:  # the volume's trouble must not end a training that goes well; the last publication reports it
                    say(f"  could not publish to the volume, will try again: {error}")
                last = time.monotonic()

    thread = threading.Thread(target=work, name="publisher", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        staging.publish()
