"""`noesis data inspect`: the loss-mask microscope. What the model reads, token by token, and which tokens it is trained on."""

from __future__ import annotations

import sys

from noesis.config import Config, Project
from noesis.console import say
from noesis.constitution.conversation import IGNORED, Encoded, answer_text, encode, opening
from noesis.constitution.document import load_constitution
from noesis.constitution.tokenizer import ChatTokenizer, load_tokenizer
from noesis.data.export import check_sources
from noesis.errors import UsageError
from noesis.models import find_model

GREEN, PLAIN = "\x1b[32m", "\x1b[0m"


def show(project: Project, config: Config, ids: list[str]) -> None:
    """Print the rows of `ids` (default: the first three examples)."""
    constitution = load_constitution(project.constitution)
    records = check_sources(project.sources(config.training.data.language), constitution, config).records
    chosen = [r for r in records if r["id"] in ids] if ids else records[:3]
    missing = set(ids) - {r["id"] for r in chosen}
    if missing:
        raise UsageError(f"no example with the id {sorted(missing)[0]!r} in {config.training.data.language}; ids look like {records[0]['id']!r}")
    tokenizer = load_tokenizer(find_model(config.training.model, config.training.revision).path)
    for record in chosen:
        answer = answer_text(record, include_critique=config.training.constitutional_ai.include_critique)
        row = encode(tokenizer, opening(constitution, record), answer, name=record["id"])
        say(f"\n{record['id']} ({record.get('language', 'pt')}): {len(row.input_ids)} tokens, {row.trained} trained on, ends with {_last(tokenizer, row)!r}")
        _print_row(tokenizer, row)


def _print_row(tokenizer: ChatTokenizer, row: Encoded) -> None:
    """The text with its trained part green on a terminal, else between « and »."""
    start = next(i for i, label in enumerate(row.labels) if label != IGNORED)
    prompt, answer = tokenizer.decode(row.input_ids[:start]), tokenizer.decode(row.input_ids[start:])
    left, right = (GREEN, PLAIN) if sys.stdout.isatty() else ("«", "»")
    say(prompt)
    print(f"{left}{answer}{right}", flush=True)  # noqa: T201
    say("  tokens at the border: " + " ".join(repr(tokenizer.decode([i])) for i in row.input_ids[max(0, start - 4) : start]) + " | "
        + " ".join(repr(tokenizer.decode([i])) for i in row.input_ids[start : start + 6]))  # fmt: skip


def _last(tokenizer: ChatTokenizer, row: Encoded) -> str:
    return tokenizer.convert_ids_to_tokens(row.input_ids[-1:])[0]
