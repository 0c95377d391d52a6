"""Everyday requests, to which the base itself writes the answers that are replayed: `replay: {file: self}`.

No example is about them, so that what the model answers to them should stay as it is. Every other one is asked under
the constitution's system prompt, as the model is served, the others without one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from noesis.constitution.dialogue import opening_messages
from noesis.constitution.document import Constitution
from noesis.core.config import Config
from noesis.core.console import say
from noesis.core.i18n import _
from noesis.core.language import ALL
from noesis.core.messages import Message
from noesis.core.text import normalised
from noesis.core.yaml_file import read_yaml
from noesis.dataset.schema import Dataset

FILE = Path(__file__).with_name("everyday.yaml")
FALLBACK = "en"  # in which a model is asked whose language has no requests here


@cache
def everyday_requests() -> tuple[tuple[str, str], ...]:
    """(language, request) of all, in the file's order."""
    return tuple((language, request) for language, requests in read_yaml(FILE).items() for request in requests)


def own_conversations(config: Config, dataset: Dataset, constitution: Constitution) -> list[tuple[str, list[Message]]]:
    """(language, messages) of what the base is asked, so that its answers make up `replay.share` of all rows.

    Requests that a held-out example makes, too, are left out. The same seed draws the same ones.
    """
    t = config.training
    if not t.replay.by_base:
        return []
    spoken = constitution.languages if t.data.language == ALL else (t.data.language,)
    spoken = tuple(code for code in spoken if code in dict(everyday_requests())) or (FALLBACK,)
    untrainable = {normalised(example.prompt) for example in dataset.held_out}
    found = [
        (number, language, request)
        for number, (language, request) in enumerate(everyday_requests())
        if language in spoken and normalised(request) not in untrainable
    ]
    wanted = wanted_rows(len(dataset.train), t.replay.share)
    drawn = sorted(found, key=lambda entry: _rank(t.seed, entry[2]))[:wanted]
    return [
        (language, opening_messages(constitution, language, request)[number % 2 :])
        for number, language, request in sorted(drawn)
    ]


def wanted_rows(examples: int, share: float) -> int:
    """How many rows make up `share` of all, beside so many examples."""
    return round(examples * share / (1 - share))


def say_if_few(config: Config, examples: int, found: Iterable[object]) -> None:
    """Say where there are fewer requests than `replay.share` asks for."""
    share, count = config.training.replay.share, len(list(found))
    if count < (wanted := wanted_rows(examples, share)):
        say(
            _(
                "  replay: {share:.0%} would be {wanted} rows, but there are only {count} everyday requests: "
                "all are used",
                share=share,
                wanted=wanted,
                count=count,
            )
        )


def _rank(seed: int, request: str) -> str:
    return hashlib.sha256(f"{seed}:{request}".encode()).hexdigest()
