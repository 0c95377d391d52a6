"""Long work over many rows that resumes after a kill: results in shards, replies in a cache, one fixed plan.

    DIR/plan.json        what was requested; work with another plan in the same folder is refused
    DIR/replies.sqlite   every reply as it came, so that nothing is paid for twice
    DIR/shards/00000.jsonl …   results of SHARD rows each, written whole when the last of them is done

Results depend on rows and seeds, not on the order in which they finish.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from noesis.core.console import Progress
from noesis.core.errors import RunError, UsageError
from noesis.core.files import make_folder, sweep, write_json, write_jsonl
from noesis.core.i18n import _
from noesis.core.jsonl import jsonl_files, read_objects
from noesis.core.rooted import guard
from noesis.dataset.source_files import is_hand_written

SHARD = 32  # rows
PLAN, INSTRUCTIONS = "plan.json", "instructions.jsonl"  # the second is written for people, without a model and a plan
WITHOUT_PLAN = (INSTRUCTIONS, ".lock")  # what may be in a folder that has no plan
Result = dict[str, Any]  # of one row, as JSON; the commands have types for theirs


@dataclass(frozen=True)
class RowResult:
    """A row that was made, or the reason why it was not.

    failures: problems of the replies that could not be used; None where they are not counted
    """

    id: str
    row: dict[str, Any] | None = None
    reason: str | None = None
    failures: tuple[str, ...] | None = None

    @classmethod
    def from_json(cls, raw: Result) -> RowResult:
        failures = raw.get("failures")
        return cls(raw["id"], raw["row"], raw["reason"], None if failures is None else tuple(failures))

    def to_json(self) -> Result:
        row: Result = {"row": self.row, "id": self.id, "reason": self.reason}
        return row if self.failures is None else row | {"failures": list(self.failures)}

    @staticmethod
    def is_unanswered(raw: Result) -> bool:
        """Whether a stored result is worth another try, since the model did not answer."""
        return str(raw["reason"]).startswith("unanswered")


@dataclass
class WorkFolder:
    """A folder of long work. done: results of finished shards, by row key."""

    path: Path
    plan: dict[str, Any]
    done: dict[str, Result] = field(default_factory=dict)

    @property
    def replies(self) -> Path:
        return self.path / "replies.sqlite"

    def shard(self, number: int) -> Path:
        return self.path / "shards" / f"{number:05d}.jsonl"


@contextmanager
def open_folder(path: Path, plan: dict[str, Any]) -> Iterator[WorkFolder]:
    """The folder at `path`, for this plan alone, and for one process at a time.

    Raises:
        UsageError: it is among the hand-written examples.
        RunError: it contains work with another plan, or another process uses it.
    """
    require_work_folder(path)
    make_folder(path)
    with _locked(path):
        sweep(path)
        file = path / PLAN
        if (old := _read_plan(file)) is not None:
            if wrong := [name for name in sorted(old.keys() | plan.keys()) if old.get(name) != plan.get(name)]:
                raise RunError(
                    _(
                        "{path} contains work with another {wrong}: repeat that command to resume it, "
                        "or name another folder with --out",
                        path=path,
                        wrong=", ".join(wrong),
                    )
                )
        else:
            write_json(file, plan)
        folder = WorkFolder(path, plan)
        for shard in jsonl_files(path / "shards"):
            for row in read_objects(shard):
                folder.done[row["key"]] = row
        yield folder


def require_work_folder(path: Path) -> None:
    """Refuse a folder with anything but generated work: what is in it would be replaced. Guards it.

    Raises:
        UsageError: it is among the hand-written examples, or holds something else.
        UnsafePathError: it holds a link.
    """
    if is_hand_written(path):
        raise UsageError(
            _(
                "--out {path} is among the hand-written examples: name another folder, such as data/generated/first",
                path=path,
            )
        )
    guard(path)
    if _read_plan(path / PLAN) is None and path.is_dir():
        other = sorted(item.name for item in path.iterdir() if not item.name.endswith(".part"))
        if other := [name for name in other if name not in WITHOUT_PLAN]:
            raise UsageError(
                _(
                    "--out {path} holds {other}, which no command of this kind made: name a new or empty folder",
                    path=path,
                    other=other[0],
                )
            )


def _read_plan(file: Path) -> dict[str, Any] | None:
    """The plan of the work in a folder; None if there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or "command" not in found:
        raise UsageError(
            _("{file} is not the plan of a command of this kind: name another folder with --out", file=file)
        )
    return found


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(
            _("another process uses {path}: wait for it, or name another folder with --out", path=path)
        ) from None
    try:
        yield
    finally:
        lock.release()


async def process_rows(
    folder: WorkFolder,
    keys: Sequence[str],
    make: Callable[[int], Awaitable[Result]],
    *,
    window: int,
    what: str,
    unit: str,
    again: Callable[[Result], bool] = lambda row: False,
    note: Callable[[], str] = lambda: "",
) -> list[Result]:
    """The result of every row, in order; those of finished shards are not made again.

    Args:
        keys: one for each row, all different.
        make: makes the row of this index; its result gets the row's key.
        window: rows in progress at once.
        again: whether a stored result should be made once more.
        note: gives a text for the end of the progress line.

    Raises:
        Whatever stops `make` (a cap, a dead endpoint). Rows in progress may end first; their replies are in the cache.
    """
    shards = [range(start, min(start + SHARD, len(keys))) for start in range(0, len(keys), SHARD)]
    results: dict[int, Result] = {
        i: folder.done[k] for i, k in enumerate(keys) if k in folder.done and not again(folder.done[k])
    }
    todo = iter([i for i in range(len(keys)) if i not in results])
    left = [sum(i not in results for i in shard) for shard in shards]
    ended: list[BaseException] = []
    with Progress(what, len(keys), unit) as progress:
        if results:
            progress.total -= len(results)
        progress.started = time.monotonic()

        async def worker() -> None:
            for i in todo:
                if ended:
                    return
                try:
                    results[i] = {"key": keys[i], **await make(i)}
                except BaseException as error:
                    ended.append(error)
                    raise
                progress.advance(1, note())
                number = i // SHARD
                left[number] -= 1
                if not left[number]:
                    write_jsonl(folder.shard(number), [results[k] for k in shards[number]])

        await asyncio.gather(*(worker() for _ in range(min(window, len(keys)) or 1)), return_exceptions=True)
    if ended:
        raise ended[0]
    return [results[i] for i in range(len(keys))]
