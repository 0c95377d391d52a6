"""What is measured of the adapter at each strength of the grid, and where it is stored: `dial/figures.json`.

Each strength is stored as soon as it is measured, so that an interrupted dial goes on with the next one. What `choose`
has measured of the base and of the trained strength is not measured again.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from noesis.core.console import Progress, say
from noesis.core.files import sha256_json, write_json
from noesis.core.i18n import _
from noesis.core.jsonl import read_json_file
from noesis.core.messages import Message
from noesis.dataset.encode import answer_rows
from noesis.dataset.load import evenly_spread
from noesis.dataset.schema import Example
from noesis.pipeline.session import RunSession
from noesis.pipeline.stages.choose import BASE as BASE_NAME
from noesis.pipeline.stages.choose import score_checkpoints, score_keys
from noesis.pipeline.stages.epoch_rule import Scores
from noesis.pipeline.stages.strength.rule import BASE, Measured
from noesis.run.adapter_names import folder_of
from noesis.run.directory import Run
from noesis.tribunal.kept.items import KeptItem, items_digest
from noesis.tribunal.kept.measure import Outcome, is_right, outcomes

TRAINED = 1.0


@dataclass(frozen=True)
class Figures:
    """dial/figures.json.

    key: hash of all that decides the figures
    ids: of the held-out pairs
    items: digest of the keyed items
    measured: of each strength; outcomes: of each strength, on the keyed items
    """

    key: str
    ids: list[str]
    items: str
    measured: dict[float, Measured]
    outcomes: dict[float, list[Outcome]]

    def only(self, strengths: set[float]) -> Figures:
        """Without those of an earlier grid."""
        measured = {x: one for x, one in self.measured.items() if x in strengths}
        return replace(self, measured=measured, outcomes={x: self.outcomes[x] for x in measured})

    def to_json(self) -> dict[str, Any]:
        strengths = {
            f"{x:g}": {
                "scores": one.scores,
                "right": list(one.right),
                "outcomes": [outcome.to_json() for outcome in self.outcomes[x]],
                "drift": one.drift,
            }
            for x, one in self.measured.items()
        }
        return {"key": self.key, "ids": self.ids, "items": self.items, "strengths": strengths}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Figures:
        """Raises: KeyError, TypeError, ValueError: it holds something else."""
        rows = {float(x): row for x, row in stored["strengths"].items()}
        return cls(
            str(stored["key"]),
            [str(name) for name in stored["ids"]],
            str(stored["items"]),
            {x: Measured(_scores(row), tuple(map(bool, row["right"])), float(row["drift"])) for x, row in rows.items()},
            {x: [Outcome.from_json(outcome) for outcome in row["outcomes"]] for x, row in rows.items()},
        )


def _scores(row: dict[str, Any]) -> Scores:
    return {part: [(float(total), int(tokens)) for total, tokens in pairs] for part, pairs in row["scores"].items()}


def figures_file(run: Run) -> Path:
    return run.dial / "figures.json"


def read_figures(run: Run) -> Figures:
    """Raises: OSError, LineError, KeyError, TypeError, ValueError: there are none, or they are damaged."""
    return Figures.from_json(read_json_file(figures_file(run), constants=False))


def pair_places(s: RunSession) -> list[int]:
    """Which of the held-out examples are measured: evenly spread over them."""
    return evenly_spread(range(len(s.dataset.held_out)), s.config.training.strength.pairs)


def figures_key(s: RunSession, epoch: str, items: str) -> str:
    """A hash of all that decides the figures: base, adapter, arithmetic, examples, items and settings."""
    section = s.config.training.strength
    size = [section.pairs, section.answers, section.answer_tokens]
    return sha256_json([score_keys(s, [epoch]), items, size])


def measure_strengths(s: RunSession, epoch: str, items: Sequence[KeptItem]) -> Figures:
    """The figures of the base and of each strength of the grid; stored ones are read.

    Args:
        epoch: name of the adapter.
    """
    digest = items_digest(items)
    key = figures_key(s, epoch, digest)
    found = _stored(s.run, key)
    places = pair_places(s)
    held_out = [s.dataset.held_out[i] for i in places]
    if found is None:
        found = Figures(key, [example.id for example in held_out], digest, {}, {})
    missing = [x for x in (BASE, *s.config.training.strength.grid) if x not in found.measured]
    if missing:
        known = {
            x: {part: [rows[i] for i in places] for part, rows in scores.items()}
            for x, scores in zip((TRAINED, BASE), _known(s, epoch), strict=True)
        }
        _measure(s, epoch, items, held_out, known, missing, found)
    return found.only({BASE, *s.config.training.strength.grid})


def _stored(run: Run, key: str) -> Figures | None:
    if not figures_file(run).is_file():
        return None
    try:
        found = read_figures(run)
        return found if found.key == key else None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        say(_("  {figures_file} is damaged: it is measured again", figures_file=figures_file(run)))
        return None


def _known(s: RunSession, epoch: str) -> tuple[Scores, Scores]:
    """What the stage choose has measured: the scores of the adapter as it was trained, and of the base."""
    scores = score_checkpoints(s, [epoch])
    return scores[epoch], scores[BASE_NAME]


def _measure(
    s: RunSession,
    epoch: str,
    items: Sequence[KeptItem],
    held_out: Sequence[Example],
    known: dict[float, Scores],
    missing: Sequence[float],
    found: Figures,
) -> None:
    """Measure the missing strengths into `found`, each stored at once."""
    from noesis.llm.tokenizer import load_tokenizer
    from noesis.training.base_model import compute_context, load_base, with_adapter
    from noesis.training.likelihood import divergences, log_likelihoods
    from noesis.training.state.strength import at_strength

    rows = {part: answer_rows(held_out, part, s.encoder, s.constitution) for part in ("revised", "initial")}
    longest = max(len(row.input_ids) for part in rows.values() for row in part)
    config, tokenizer = s.as_trained, load_tokenizer(s.model.path)
    model = with_adapter(
        load_base(s.model.path, config, s.device, longest=longest), folder_of(s.run.checkpoints, epoch)
    )
    on = [x for x in missing if x != BASE]
    with at_strength(model, BASE), compute_context(model, config, s.device):
        answers = _own_answers(s, model, tokenizer, items)
    drift = dict(zip(on, divergences(model, answers, on, config, s.device, what="drift"), strict=True)) | {BASE: 0.0}
    for x in missing:
        with at_strength(model, x):
            scores = known.get(x) or {
                part: log_likelihoods(model, rows[part], config, s.device, adapter=True, what=f"{part} at {x:g}")
                for part in rows
            }
            with (
                compute_context(model, config, s.device),
                Progress(_("keyed items at {x:g}", x=x), len(items), _("items")) as progress,
            ):
                done = outcomes(model, tokenizer, items, on_items=progress.advance) if items else []
        right = tuple(is_right(item, outcome) for item, outcome in zip(items, done, strict=True))
        found.measured[x], found.outcomes[x] = Measured(scores, right, drift[x]), done
        write_json(figures_file(s.run), found.to_json())
    del model
    gc.collect()


def _own_answers(s: RunSession, model: Any, tokenizer: Any, items: Sequence[KeptItem]) -> list[Any]:
    """Short greedy answers of the base, as token rows whose labels are the answers.

    They are to the keyed items' prompts, or to the held-out ones where there are no items; without the system prompt.
    """
    from noesis.llm.generation.batch import generate_batch, prompt_ids
    from noesis.llm.token_rows import IGNORED, TokenRow

    section = s.config.training.strength
    prompts = [item.prompt for item in items] or [example.prompt for example in s.dataset.held_out]
    conversations: list[list[Message]] = [
        [{"role": "user", "content": prompt}] for prompt in evenly_spread(prompts, section.answers)
    ]
    texts = generate_batch(model, tokenizer, conversations, max_tokens=section.answer_tokens)
    found = []
    for conversation, text in zip(conversations, texts, strict=True):
        prompt, answer = prompt_ids(tokenizer, conversation), list(tokenizer(text)["input_ids"])
        if answer:
            found.append(TokenRow(prompt + answer, [IGNORED] * len(prompt) + answer))
    return found
