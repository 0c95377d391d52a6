"""Work on many prompts spread over several machines, in shards that survive the loss of any machine.

Shard i of n takes the items i, i + n, i + 2n, … and leaves one file, written atomically:
`tribunal/shards/<name>-<key>/i-of-n.json`. A file that is there is not made again; a lost shard is retried alone. The
key is a hash of what decides the results, so other items or settings never find these files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from noesis.cloud.volume.layout import SHARDS
from noesis.core.console import say
from noesis.core.errors import RunError
from noesis.core.files import read_text, sha256_json, write_json
from noesis.core.i18n import _, joined

ROUNDS = 3  # tries of each shard, the first included

T = TypeVar("T")
Rows = list[Any]
# Runs each shard on its own machine: results or exceptions, in order, as `Function.map(…, return_exceptions=True)`.
Spread = Callable[[list[int]], Iterable[Any]]


@dataclass(frozen=True)
class Shards:
    """How items are split, and where the shards' files are.

    key: what decides the results, as plain JSON
    """

    root: Path
    name: str
    key: Any
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise RunError(_("{count} shards: at least 1", count=self.count))

    @property
    def folder(self) -> Path:
        return self.root / SHARDS / f"{self.name}-{sha256_json([self.name, self.key])[:16]}"

    def file(self, index: int) -> Path:
        return self.folder / f"{index}-of-{self.count}.json"

    def items_of(self, items: Sequence[T], index: int) -> list[T]:
        """The items of shard `index`."""
        return list(items[index :: self.count])

    def missing(self, items: Sequence[Any]) -> list[int]:
        """Shards that have items and no valid file."""
        expected = [len(self.items_of(items, i)) for i in range(self.count)]
        return [i for i, count in enumerate(expected) if count and self.read(i, count) is None]

    def read(self, index: int, expected: int) -> Rows | None:
        """A shard's results; None if there are none, or their number is not `expected`."""
        try:
            found = json.loads(read_text(self.file(index)))
        except (FileNotFoundError, ValueError, RecursionError):
            return None
        return list(found) if isinstance(found, list) and len(found) == expected else None


def do_shard(
    shards: Shards, index: int, items: Sequence[T], work: Callable[[list[T]], Rows], commit: Callable[[], None]
) -> int:
    """What one machine does: write its items' results to its file, unless they are there.

    Args:
        work: a result for each item, in order; plain JSON.

    Returns:
        how many results the file holds.

    Raises:
        RunError: `work` returned a different number of results.
    """
    own = shards.items_of(items, index)
    if own and shards.read(index, len(own)) is None:
        results = work(own)
        if len(results) != len(own):
            raise RunError(
                _(
                    "shard {index} of {name}: {results} results for {own} items",
                    index=index,
                    name=shards.name,
                    results=len(results),
                    own=len(own),
                )
            )
        write_json(shards.file(index), results)
        commit()
    return len(own)


def map_shards(
    shards: Shards, items: Sequence[Any], spread: Spread, reload: Callable[[], None], *, rounds: int = ROUNDS
) -> Rows:
    """The results of all items, in their order. Missing shards are spread over machines; lost ones are retried.

    Args:
        spread: runs shards elsewhere; one that fails must come back as an exception, not stop the others.
        reload: shows here what the machines committed.

    Raises:
        RunError: a shard was lost every time; the others' results are kept for the next call.
    """
    why: dict[int, str] = {}
    for attempt in range(rounds):
        missing = shards.missing(items)
        if not missing:
            break
        if attempt:
            say(
                _(
                    "  {missing} of {count} shards of {name} were lost ({values}): retrying",
                    missing=len(missing),
                    count=shards.count,
                    name=shards.name,
                    values="; ".join(sorted(set(why.values())))[:200],
                )
            )
        why = {
            index: f"{type(r).__name__}: {r}"
            for index, r in zip(missing, spread(missing), strict=True)
            if isinstance(r, BaseException)
        }
        reload()
    missing = shards.missing(items)
    if missing:
        lost = _("its file is missing or incomplete")
        reasons = joined("; ", (joined(": ", (str(i), why.get(i, lost))) for i in missing[:5]))
        raise RunError(
            _(
                "{missing} of {count} shards of {name} were lost {rounds} times ({reasons}); "
                "the others are kept, and the same command continues",
                missing=len(missing),
                count=shards.count,
                name=shards.name,
                rounds=rounds,
                reasons=reasons,
            )
        )
    return list(results_in_order(shards, items))


def results_in_order(shards: Shards, items: Sequence[Any]) -> Iterator[Any]:
    """All shards' results, in the order of the items."""
    parts = [shards.read(i, len(shards.items_of(items, i))) or [] for i in range(shards.count)]
    for position in range(len(items)):
        yield parts[position % shards.count][position // shards.count]
