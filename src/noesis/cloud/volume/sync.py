"""Work on a run on the container's own disk, and publish it to the volume, each file or folder atomically.

Writing every step to a volume would wait for the network, and the last writer of a file wins. So the run is copied from
the volume and worked on locally, and a thread publishes what is complete (an epoch's adapter, a saved state) as soon as
it appears, and the manifest and metrics once a minute. The manifest comes last, so it never names a missing file.
Page: https://modal.com/docs/guide/volumes
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from noesis.cloud.volume.layout import guard_volume
from noesis.cloud.volume.writer import SupersededError, Writer
from noesis.core.console import say
from noesis.core.files import copy_file, copy_folder, make_folder, new_folder, sweep
from noesis.core.i18n import _
from noesis.core.rooted import guard, make_link, remove
from noesis.run.archive import RUN_FILES

HEAVY = ("merged", "gguf")  # linked instead of copied where a stage only reads them
CHECK_S = 2.0  # between two checks for something new and complete
PUBLISH_S = 60.0  # between two publications of manifest and metrics

Mark = tuple[tuple[str, int, int], ...]  # name, size and time of each file in a folder


class VolumeSync:
    """The run at `volume`, and its working copy at `local`.

    Args:
        commit: makes what was written to the volume visible to other containers.
    """

    def __init__(self, volume: Path, local: Path, commit: Callable[[], None]) -> None:
        self.volume, self.local, self.commit = volume, local, commit
        self._published: dict[str, Mark] = {}
        self._lock = threading.Lock()

    def bring(self, *, link: tuple[str, ...] = HEAVY) -> None:
        """Copy the run from the volume; folders in `link` are linked, so writes to them go straight to the volume."""
        guard_volume(self.volume)
        remove(self.local)
        make_folder(self.local)
        guard(self.local)
        for name in RUN_FILES:
            source, target = self.volume / name, self.local / name
            if source.is_dir() and name in link:
                make_link(target, source)
            elif source.is_dir():
                sweep(source)  # what a killed container left half-copied
                copy_folder(source, target)
            elif source.is_file():
                copy_file(source, target)
        self._published = {name: change_mark(path) for name, path in self._units()}

    def publish(self) -> list[str]:
        """Copy to the volume what is new or changed, delete saved states that are gone here, and commit.

        Returns:
            the names of what was copied.
        """
        with self._lock:
            units = dict(self._units())
            done = []
            for name, path in units.items():
                now = change_mark(path)
                if self._published.get(name) != now and self._copy(name, path):
                    self._published[name] = now
                    done.append(name)
            gone = [name for name in self._published if "/resume/checkpoint-" in name and name not in units]
            for name in gone:
                remove(self.volume / name)
                del self._published[name]
            if done or gone:
                self.commit()
            return done

    def is_due(self) -> bool:
        """Whether there is a complete adapter or state that the volume does not have."""
        return any(
            name not in self._published
            for name, path in self._units()
            if path.is_dir() and not name.startswith("tribunal")
        )

    def _units(self) -> Iterator[tuple[str, Path]]:
        """What is published as a unit: a checkpoint or merged model as a folder, other files alone; manifest last."""
        for name in sorted(RUN_FILES, key=lambda n: (n == "manifest.json", n)):
            path = self.local / name
            if path.is_symlink():
                continue
            if name == "checkpoints":
                units = _checkpoint_units(path)
            elif name == "merged":
                units = [p for p in sorted(path.glob("[!.]*")) if p.is_dir()]
            elif path.is_dir():
                units = _visible_files(path)
            else:
                units = [path] if path.is_file() else []
            yield from ((unit.relative_to(self.local).as_posix(), unit) for unit in units)

    def _copy(self, name: str, path: Path) -> bool:
        """Copy to the volume atomically; False if it disappeared meanwhile (a state that was rotated out)."""
        target = self.volume / name
        try:
            if path.is_dir():
                with new_folder(target) as part:
                    copy_folder(path, part)
            else:
                copy_file(path, target)
        except FileNotFoundError:
            if path.exists():
                raise
            return False
        return True


def _checkpoint_units(folder: Path) -> list[Path]:
    """Each adapter and saved state (also of a first part of training) as a folder, then the other files."""
    folders = [p for kind in ("epoch_[0-9]*", "checkpoint-[0-9]*") for p in sorted(folder.rglob(kind)) if p.is_dir()]
    files = [p for p in _visible_files(folder, hidden=(".", "torn-")) if not set(p.parents) & set(folders)]
    return [*folders, *files]


def _visible_files(folder: Path, *, hidden: tuple[str, ...] = (".",)) -> list[Path]:
    """The files below `folder`, but none whose path has a part that starts with one of `hidden`."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return [p for p in files if not any(part.startswith(hidden) for part in p.relative_to(folder).parts)]


def change_mark(path: Path) -> Mark:
    """Names, sizes and times of the files at `path`: it changes when one of them does."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    found = []
    for file in files:
        try:
            known = file.stat()
        except FileNotFoundError:
            continue  # just being replaced or rotated out; the next check sees the result
        found.append((file.relative_to(path).as_posix(), known.st_size, known.st_mtime_ns))
    return tuple(found)


def _interrupt_main_thread() -> None:
    """As Ctrl-C: a real signal, which also ends a wait for another process or for the network."""
    if (main := threading.main_thread().ident) is not None:
        signal.pthread_kill(main, signal.SIGINT)


@contextmanager
def publishing(
    sync: VolumeSync, writer: Writer | None = None, *, check_s: float = CHECK_S, publish_s: float = PUBLISH_S
) -> Iterator[None]:
    """Publish during the block, and once more at its end, however it ends.

    What can't be published is tried again until the writer's heartbeat has run out: then nothing that the block does
    would be kept, and it is interrupted. So it is where a newer container has come.

    Raises:
        SupersededError: a newer container continues the run.
        RunError: the volume could not be written for too long.
    """
    done = threading.Event()
    stopped: list[Exception] = []

    def work() -> None:
        last = time.monotonic() - publish_s  # publish at once, so that `noesis cloud watch` sees the start
        while not done.wait(check_s):
            if not sync.is_due() and time.monotonic() - last < publish_s:
                continue
            try:
                if writer is not None:
                    writer.beat()  # first, since a newer container may have taken over meanwhile
                sync.publish()
            except Exception as error:  # whatever it is, it must not end this thread in silence
                if isinstance(error, SupersededError) or (writer is not None and writer.clock() > writer.until):
                    stopped.append(error)
                    if not done.is_set():
                        _interrupt_main_thread()
                    return
                say(
                    _(
                        "  could not publish to the volume, will try again: {name}: {error}",
                        name=type(error).__name__,
                        error=error,
                    )
                )
            last = time.monotonic()

    thread = threading.Thread(target=work, name="publisher", daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if stopped:
            raise stopped[0] from None
        raise
    finally:
        done.set()
        thread.join()
        if writer is None:
            sync.publish()
        elif writer.may_publish():
            try:
                sync.publish()
            finally:
                writer.leave()
