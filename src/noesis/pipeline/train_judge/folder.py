"""The folder that a judge is trained in: one request, one process at a time, and what it has cost so far.

DIR/request.json    what was asked for; another request in the same folder is refused
DIR/ledger.jsonl    seconds and USD of each process, for the caps
DIR/pairs.jsonl     what is trained on
DIR/checkpoints/, metrics.jsonl, states/    as far as training has come
DIR/judge/          the reward model, once it is made
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noesis.core.config import BudgetSection
from noesis.core.console import command
from noesis.core.errors import CapError, RunError, UsageError
from noesis.core.files import append_line, make_folder, sweep, utc_now, write_json
from noesis.core.i18n import _
from noesis.core.jsonl import read_json_file, read_objects
from noesis.core.rooted import guard
from noesis.planning.budget import Budget, budget_of
from noesis.run.ledger import LedgerEntry, StageMeter, total, unrecorded_cost
from noesis.run.lock import held

REQUEST, LEDGER, PAIRS, JUDGE = "request.json", "ledger.jsonl", "pairs.jsonl", "judge"
OWN = (".lock", ".holder", ".meter")


@dataclass(frozen=True)
class JudgeWork:
    """An open folder, and what is left of the caps."""

    path: Path
    budget: Budget

    @property
    def judge(self) -> Path:
        return self.path / JUDGE


@contextmanager
def open_work(path: Path, request: dict[str, Any], section: BudgetSection, usd_per_s: float) -> Iterator[JudgeWork]:
    """The folder at `path`, for this request alone. What the block takes is booked, however it ends.

    Raises:
        UsageError: it holds something else. RunError: it was made for another request, or another process works there.
        UnsafePathError: it holds a link.
    """
    guard(path)
    file = path / REQUEST
    if path.exists() and not file.is_file() and (other := _others(path)):
        raise UsageError(
            _(
                "{path} holds {other} and no judge's training: name a new or empty folder with --run",
                path=path,
                other=other[0],
            )
        )
    make_folder(path)
    with held(path):
        sweep(path)
        _require_same(file, request)
        ledger = _read_ledger(path)
        if (lost := unrecorded_cost(path, ledger)) is not None:
            _book(path, lost)
            ledger.append(lost)
        usd, seconds = total(ledger)
        meter = StageMeter(path, "train-judge", utc_now(), usd_per_s)
        ended = "failed"
        try:
            yield JudgeWork(path, budget_of(section, usd_per_s=usd_per_s, spent_usd=usd, spent_seconds=seconds))
            ended = "done"
        except CapError:
            ended = "capped"
            raise
        except KeyboardInterrupt:
            ended = "interrupted"
            raise
        finally:
            _book(path, meter.stop(ended))


def _others(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir() if item.name not in OWN and not item.name.endswith(".part"))


def _require_same(file: Path, request: dict[str, Any]) -> None:
    if not file.is_file():
        write_json(file, request)
        return
    try:
        old = read_json_file(file, constants=False)
    except ValueError:
        old = None
    if not isinstance(old, dict):
        raise RunError(_("{file} is damaged: name another folder with --run", file=file))
    if wrong := [name for name in sorted(old.keys() | request.keys()) if old.get(name) != request.get(name)]:
        raise RunError(
            _(
                "{parent} holds the training of a judge with another {wrong}: repeat that command to go "
                "on with it, or name another folder:  {command}",
                parent=file.parent,
                wrong=", ".join(wrong),
                command=command("tribunal", "train-judge", "--run", "DIR"),
            )
        )


def _read_ledger(path: Path) -> list[LedgerEntry]:
    file = path / LEDGER
    try:
        return [LedgerEntry.from_json(row) for row in read_objects(file)] if file.is_file() else []
    except (KeyError, TypeError, ValueError):
        raise RunError(
            _("{file} is damaged, so the caps can't be kept: name another folder with --run", file=file)
        ) from None


def _book(path: Path, entry: LedgerEntry) -> None:
    append_line(path / LEDGER, json.dumps(entry.to_json()))
