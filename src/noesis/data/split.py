"""Which examples are held out: the same for the same ids, seed and count, whatever the order of files.

At least one in each category where the count allows, the rest as near to proportional in difficulty as it can be. An id is held
out in all its languages; rows with the same prompt or the same answer stay on one side.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from typing import Any

from noesis.data.text import normalised
from noesis.errors import DataError

REFERENCE_SIZE = 124  # `data.eval_examples` is meant for this many; other sizes keep the proportion


def split(records: list[dict[str, Any]], *, eval_examples: int, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Part `records` into (train, held out), each sorted by category, id, language.

    Args:
        eval_examples: ids held out of 124; for n ids, round(n × eval_examples / 124), at least 1.

    Raises:
        DataError: fewer than two groups of examples, so nothing could be held out.
    """
    groups = _groups(records)
    if len(groups) < 2:
        raise DataError(f"{len(groups)} example(s): at least two different ones are needed, one to train on and one to hold out")
    ids = sum(len({r["id"] for r in group}) for group in groups)
    wanted = min(max(1, round(ids * eval_examples / REFERENCE_SIZE)), len(groups) - 1)
    held = _choose(groups, wanted, seed)
    order = sorted(records, key=lambda r: (r["category"], r["id"], r.get("language", "pt")))
    return [r for r in order if r["id"] not in held], [r for r in order if r["id"] in held]


def _groups(records: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Records that must stay together: same id, same prompt or same answer (union-find over those keys)."""
    parent = list(range(len(records)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    owner: dict[tuple[str, str], int] = {}
    for index, record in enumerate(records):
        turns = " ".join(turn["content"] for turn in record.get("turns") or [])
        keys = (("id", record["id"]), ("prompt", normalised(turns + record["prompt"])), ("answer", normalised(record["response_revised"])))
        for key in keys:
            parent[root(index)] = root(owner.setdefault(key, index))
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for index, record in enumerate(records):
        groups[root(index)].append(record)
    return list(groups.values())


def _choose(groups: list[list[dict[str, Any]]], wanted: int, seed: int) -> set[str]:
    """Ids of the groups to hold out: categories by largest remainder (one each first), difficulties balanced greedily."""
    groups = sorted(groups, key=lambda g: _rank(seed, min(r["id"] for r in g)))
    pools: dict[str, list[list[dict[str, Any]]]] = defaultdict(list)
    for group in groups:
        pools[group[0]["category"]].append(group)
    quota = _quotas({name: len(pool) for name, pool in pools.items()}, wanted, seed)
    share = {level: count / len(groups) for level, count in Counter(g[0]["difficulty"] for g in groups).items()}
    taken: Counter[str] = Counter()
    held: set[str] = set()
    for name in sorted(pools, key=lambda n: _rank(seed, n)):
        for _ in range(quota[name]):
            pool = pools[name]
            best = max(range(len(pool)), key=lambda i: (share[pool[i][0]["difficulty"]] * wanted - taken[pool[i][0]["difficulty"]], -i))
            group = pool.pop(best)
            taken[group[0]["difficulty"]] += 1
            held.update(r["id"] for r in group)
    return held


def _quotas(sizes: dict[str, int], wanted: int, seed: int) -> dict[str, int]:
    """How many of each category: one each while they last, then in proportion; a category is never held out whole."""
    total = sum(sizes.values())
    room = {name: max(count - 1, 0) for name, count in sizes.items()}
    quota = dict.fromkeys(sizes, 0)
    for _ in range(wanted):
        open_names = [n for n in sizes if quota[n] < room[n]] or [n for n in sizes if quota[n] < sizes[n]]
        name = max(open_names, key=lambda n: (quota[n] == 0, sizes[n] / total * wanted - quota[n], _rank(seed, n)))
        quota[name] += 1
    return quota


def _rank(seed: int, text: str) -> str:
    """A reproducible shuffle key."""
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()
