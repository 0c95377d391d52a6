"""The gate between training data and what judges ask: no question of the Tribunal, nor of its judges' benchmark, may be trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from noesis.core.errors import DataError
from noesis.dataset.checks.fingerprint import fingerprint
from noesis.dataset.checks.near_duplicates import NEAR, bands, mix
from noesis.dataset.checks.scan import Table
from noesis.dataset.jsonl import FileChunk, lines

SHOWN = 5


def refuse_known_questions(table: Table, files: list[Path], tribunal: Path) -> None:
    """Compare every training prompt with every question under `tribunal`, read alike or nearly so.

    Raises:
        DataError: the pairs, by file and line.
    """
    pairs = list(known_questions(table, files, tribunal))
    if pairs:
        more = f"\n  … and {len(pairs) - SHOWN:,} more" if len(pairs) > SHOWN else ""
        raise DataError(
            f"{len(pairs)} training prompt(s) are questions that the Tribunal asks, so its verdict would be worth nothing; take them out:\n  "
            + "\n  ".join(pairs[:SHOWN])
            + more
        )


def known_questions(table: Table, files: list[Path], tribunal: Path) -> Iterator[str]:
    """Pairs as text, `data.jsonl:3 (id) asks what prompts/facts.jsonl:7 asks`."""
    places, texts = [], []
    for file in sorted(tribunal.rglob("*.jsonl")):
        for number, text in _questions(file):
            places.append(f"{file}:{number}")
            texts.append(text)
    if not texts or not len(table):
        return
    asked = fingerprint(texts)
    digests = asked.minhash()
    by_key = dict(zip(asked.key.tolist(), places, strict=True))
    candidates = np.isin(table.prompt_key, asked.key)
    for columns in bands():
        candidates |= np.isin(mix(table.prompt_digest[:, columns]), mix(digests[:, columns]))
    for row in np.flatnonzero(candidates):
        likeness = (digests == table.prompt_digest[row]).mean(axis=1)
        place = by_key.get(int(table.prompt_key[row])) or (
            places[likeness.argmax()] if likeness.max() >= NEAR else None
        )
        if place:
            yield f"{files[table.file[row]]}:{table.line[row]} ({table.ids[row][:80]}) asks what {place} asks"


def _questions(file: Path) -> Iterator[tuple[int, str]]:
    """The prompts in a file of the Tribunal: `prompt`, with the user's earlier turns; and each user turn of a dialogue (a text, or role and content)."""
    size = file.stat().st_size
    for number, _, line in lines(FileChunk(file, 0, size)):
        row = json.loads(line)
        turns = [turn["content"] for turn in row.get("turns") or () if isinstance(turn, dict)]
        if isinstance(row.get("prompt"), str):
            yield number + 1, " ".join([*turns, row["prompt"]])
            if turns:
                yield number + 1, row["prompt"]
        for text in [*(row.get("turns") or ()), row.get("b_prompt")]:
            if isinstance(text, str) and text != row.get("prompt"):
                yield number + 1, text
