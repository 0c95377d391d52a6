"""Keeps the questions of the Tribunal and of its judges' benchmark out of the training data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from noesis.core.errors import DataError
from noesis.core.i18n import _
from noesis.core.jsonl import iter_objects, jsonl_files
from noesis.dataset.checks.fingerprint import fingerprint
from noesis.dataset.checks.near_duplicates import NEAR, bands, mix
from noesis.dataset.checks.scan import Table

SHOWN = 5


def refuse_known_questions(table: Table, files: list[Path], tribunal: Path) -> None:
    """Compare every training prompt with every question under `tribunal`; near-duplicates count.

    Raises:
        DataError: the pairs, by file and line.
    """
    pairs = list(known_questions(table, files, tribunal))
    if pairs:
        more = [_("… and {pairs:,} more", pairs=len(pairs) - SHOWN)] if len(pairs) > SHOWN else []
        raise DataError(
            _(
                "{pairs} training prompt(s) are questions that the Tribunal asks, so its verdict would be "
                "worthless; remove them:",
                pairs=len(pairs),
            ),
            *(str(pair) for pair in pairs[:SHOWN]),
            *more,
        )


@dataclass(frozen=True)
class KnownQuestion:
    """A training prompt that asks what a question asks.

    row: of the table
    prompt, question: places, `data.jsonl:3 (id)` and `prompts/facts.jsonl:7`
    """

    row: int
    prompt: str
    question: str

    def __str__(self) -> str:
        return _("{prompt} asks what {question} asks", prompt=self.prompt, question=self.question)


def known_questions(table: Table, files: list[Path], tribunal: Path) -> Iterator[KnownQuestion]:
    """The training prompts that ask what a question under `tribunal` asks."""
    for row, place in _matches(table.prompt_key, table.prompt_digest, tribunal):
        prompt = f"{files[table.file[row]]}:{table.line[row]} ({table.ids[row][:80]})"
        yield KnownQuestion(row, prompt, place)


def refuse_known_prompts(prompts: Mapping[str, str], tribunal: Path) -> None:
    """As `refuse_known_questions`, for what a judge is trained on.

    Args:
        prompts: what a message calls a prompt → its text.

    Raises:
        DataError: naming them.
    """
    names = list(prompts)
    found = fingerprint(list(prompts.values()))
    shared = [
        _("{names} asks what {place} asks", names=names[i], place=place)
        for i, place in _matches(found.key, found.minhash(), tribunal)
    ]
    if shared:
        raise DataError(
            _(
                "{shared} prompt(s) of the training pairs are questions of the Tribunal or of its benchmark, so the "
                "judge's figures would be worthless; remove them:",
                shared=len(shared),
            ),
            *shared[:SHOWN],
        )


def _matches(prompt_key: Any, prompt_digest: Any, tribunal: Path) -> Iterator[tuple[int, str]]:
    """(index of a prompt, place of the question) where both ask the same; near-duplicates count."""
    places, texts = [], []
    for file in jsonl_files(tribunal, below=True):
        for number, text in _questions(file):
            places.append(f"{file}:{number}")
            texts.append(text)
    if not texts or not len(prompt_key):
        return
    questions = fingerprint(texts)
    digests = questions.minhash()
    by_key = dict(zip(questions.key.tolist(), places, strict=True))
    candidates = np.isin(prompt_key, questions.key)
    for columns in bands():
        candidates |= np.isin(mix(prompt_digest[:, columns]), mix(digests[:, columns]))
    for row in np.flatnonzero(candidates).tolist():
        similarity = (digests == prompt_digest[row]).mean(axis=1)
        place = by_key.get(int(prompt_key[row])) or (places[similarity.argmax()] if similarity.max() >= NEAR else None)
        if place:
            yield row, place


def _questions(file: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of the prompts in a file of the Tribunal.

    Those are `prompt`, alone and with the user's earlier turns, `b_prompt`, and each user turn of a dialogue (a text,
    or role and content).
    """
    for number, row in iter_objects(file):
        turns = [turn["content"] for turn in row.get("turns") or () if isinstance(turn, dict)]
        if isinstance(row.get("prompt"), str):
            yield number, " ".join([*turns, row["prompt"]])
            if turns:
                yield number, row["prompt"]
        for text in [*(row.get("turns") or ()), row.get("b_prompt")]:
            if isinstance(text, str) and text != row.get("prompt"):
                yield number, text
