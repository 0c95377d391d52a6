"""A stage over many prompts on many machines at once, in shards that survive the loss of any of them.

Shard i of n takes the items i, i + n, i + 2n, …, and leaves one file, written whole: `tribunal/shards/<name>-<key>/i-of-n.json`. What is there is
not done again; a shard that was lost is tried again, alone. The key is a hash of what decides the results, so that other items or settings
find nothing of this.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from noesis.core.console import say
from noesis.core.errors import RunError
from noesis.core.files import sha256_json, write_json

FOLDER = "tribunal/shards"
ROUNDS = 3  # that a shard gets, its first included

T = TypeVar("T")
Rows = list[Any]
# Runs a shard function for each index, on machines of its own: results or exceptions, in order (as `Function.map(…, return_exceptions=True)`).
Spread = Callable[[list[int]], Iterable[Any]]


@dataclass(frozen=True)
class Shards:
    """How a stage's items are split, and where the parts lie.

    key: what decides the results, as plain JSON
    """

    root: Path
    name: str
    key: Any
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise RunError(f"{self.count} shards: at least 1")

    @property
    def folder(self) -> Path:
        return self.root / FOLDER / f"{self.name}-{sha256_json([self.name, self.key])[:16]}"

    def file(self, index: int) -> Path:
        return self.folder / f"{index}-of-{self.count}.json"

    def mine(self, items: Sequence[T], index: int) -> list[T]:
        """The items of shard `index`."""
        return list(items[index :: self.count])

    def missing(self, items: Sequence[Any]) -> list[int]:
        """Shards that have items and no whole file."""
        return [i for i in range(self.count) if self.mine(items, i) and self.read(i, len(self.mine(items, i))) is None]

    def read(self, index: int, expected: int) -> Rows | None:
        """A shard's results; None where there are none, or not as many as items: a file of another attempt is not trusted."""
        try:
            found = json.loads(self.file(index).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return list(found) if isinstance(found, list) and len(found) == expected else None


def do_shard(
    shards: Shards, index: int, items: Sequence[T], work: Callable[[list[T]], Rows], commit: Callable[[], None]
) -> int:
    """What one machine does: its items' results into its file, unless they are there.

    Args:
        work: a result for each item, in order; plain JSON.

    Returns:
        how many results lie there.

    Raises:
        RunError: `work` gave another number of results.
    """
    own = shards.mine(items, index)
    if own and shards.read(index, len(own)) is None:
        results = work(own)
        if len(results) != len(own):
            raise RunError(f"shard {index} of {shards.name}: {len(results)} results for {len(own)} items")
        write_json(shards.file(index), results)
        commit()
    return len(own)


def map_shards(
    shards: Shards, items: Sequence[Any], spread: Spread, reload: Callable[[], None], *, rounds: int = ROUNDS
) -> Rows:
    """The results of all items, in their order; shards that are missing are spread over machines, those that were lost once more.

    Args:
        spread: runs shards elsewhere; one that fails must come back as an exception, not end the others.
        reload: shows here what the machines committed.

    Raises:
        RunError: a shard was lost every time; what the others did is kept for the next call.
    """
    why: dict[int, str] = {}
    for attempt in range(rounds):
        missing = shards.missing(items)
        if not missing:
            break
        if attempt:
            say(
                f"  {len(missing)} of {shards.count} shards of {shards.name} were lost ({'; '.join(sorted(set(why.values())))[:200]}): once more"
            )
        why = {
            index: f"{type(r).__name__}: {r}"
            for index, r in zip(missing, spread(missing), strict=True)
            if isinstance(r, BaseException)
        }
        reload()
    missing = shards.missing(items)
    if missing:
        words = "; ".join(f"{i}: {why.get(i, 'its file is missing or not whole')}" for i in missing[:5])
        raise RunError(
            f"{len(missing)} of {shards.count} shards of {shards.name} were lost {rounds} times ({words}); the others are kept, and the same command goes on"
        )
    return list(merged(shards, items))


def merged(shards: Shards, items: Sequence[Any]) -> Iterator[Any]:
    """Results in the order of the items."""
    parts = [shards.read(i, len(shards.mine(items, i))) or [] for i in range(shards.count)]
    for position in range(len(items)):
        yield parts[position % shards.count][position // shards.count]
