"""What preference.py measures of a model: held-out pairs, the small tasks, drift, and a few answers to be read."""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from noesis.dataset.schema import Example
from noesis.tribunal.kept.measure import Outcome, is_right

ROOT = Path(__file__).resolve().parents[2]
ANSWER_TOKENS = 160


class Measure:
    """The base with an adapter on it, which is off or another one's for each measurement.

    Args:
        folder: of the base.
        config: of any arm: all have the same base and the same shape of adapter.
        kept: how many small tasks; the first in each kind and tier, evenly.
    """

    def __init__(self, folder: Path, config: Any, device: Any, *, kept: int, answers: int) -> None:
        from peft import get_peft_model

        from noesis.constitution.document import load_constitution
        from noesis.core.project import Project
        from noesis.llm.tokenizer import load_tokenizer
        from noesis.training.base_model import load_base, lora_config
        from noesis.tribunal.kept.items import read_kept_items, subset

        self.config, self.device, self.count = config, device, answers
        base = load_base(folder, config, device, longest=2048)
        self.model = get_peft_model(base, lora_config(config, folder)).requires_grad_(False).eval()
        self.tokenizer = load_tokenizer(folder)
        self.constitution = load_constitution(Project(ROOT).constitution)
        self.items = subset(read_kept_items(ROOT / "data" / "tribunal", ("en",)), kept)

    def of(self, adapter: Path | None, held_out: list[Example]) -> dict[str, Any]:
        """Everything of one model; None: the base."""
        from noesis.training.base_model import compute_context, swap_adapter

        started, outcomes = time.monotonic(), self.base
        if adapter is not None:
            swap_adapter(self.model, adapter)
        found: dict[str, Any] = {"examples": self._pairs(held_out, adapter=adapter is not None)}
        with compute_context(self.model, self.config, self.device):
            with nullcontext() if adapter is not None else self.model.disable_adapter():
                found["answers"] = dict(zip([e.id for e in held_out], self.answers(held_out), strict=False))
            found["drift"] = []
            if adapter is not None:
                outcomes, found["drift"] = self._outcomes(), self._drift()
        found["kept"] = {i.id: is_right(i, outcome) for i, outcome in zip(self.items, outcomes, strict=True)}
        return found | {"measure_seconds": round(time.monotonic() - started, 1)}

    def _pairs(self, held_out: list[Example], *, adapter: bool) -> list[dict[str, Any]]:
        """Sums of log-probabilities and tokens of the revised and the initial answer, without and with the critique."""
        from noesis.dataset.encode import example_pairs
        from noesis.llm.row_encoder import RowEncoder
        from noesis.training.likelihood import log_likelihoods

        found: list[dict[str, Any]] = [{"id": example.id} for example in held_out]
        for name, critique in (("plain", False), ("block", True)):
            pairs = example_pairs(
                held_out, RowEncoder(self.tokenizer), self.constitution, include_critique=critique, max_length=4096
            )
            rows = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
            scores = log_likelihoods(self.model, rows, self.config, self.device, adapter=adapter, what="score")
            for line, chosen, rejected in zip(found, scores[::2], scores[1::2], strict=True):
                line[name] = [*chosen, *rejected]
        return found

    def _outcomes(self) -> list[Outcome]:
        from noesis.tribunal.kept.measure import outcomes

        return outcomes(self.model, self.tokenizer, self.items)

    @cached_property
    def base(self) -> list[Outcome]:
        """What the base does with the small tasks: the same for every seed."""
        from noesis.training.base_model import compute_context

        with compute_context(self.model, self.config, self.device), self.model.disable_adapter():
            return self._outcomes()

    def _drift(self) -> list[tuple[float, int]]:
        """(KL in nats, tokens) of each of the base's own answers to small tasks."""
        from noesis.llm.generation.drift import drift_on
        from noesis.tribunal.kept.measure import conversation

        own = [(conversation(item), o.said) for item, o in zip(self.items, self.base, strict=True) if o.said]
        return drift_on(self.model, self.tokenizer, [prompt for prompt, _ in own], [said for _, said in own])

    def answers(self, examples: list[Example]) -> list[str]:
        """Greedy answers to the first few examples' prompts, for a person to read."""
        from noesis.dataset.encode import prompt_messages

        return self.write([prompt_messages(self.constitution, e) for e in examples[: self.count]], ANSWER_TOKENS)

    def own_answers(self, conversations: list[Any], max_tokens: int) -> list[str]:
        """The base's answers, for the arms that replay them."""
        from noesis.training.base_model import compute_context

        with compute_context(self.model, self.config, self.device), self.model.disable_adapter():
            return self.write(conversations, max_tokens)

    def write(self, conversations: list[Any], max_tokens: int) -> list[str]:
        from noesis.llm.generation.batch import generate_batch

        return generate_batch(self.model, self.tokenizer, conversations, max_tokens=max_tokens)


def summary(found: dict[str, Any], base: dict[str, Any]) -> str:
    """One line of progress: a line of the results beside the base's of the same seed."""
    margins = [e["plain"][0] / e["plain"][1] - e["plain"][2] / e["plain"][3] for e in found["examples"]]
    loss = -sum(e["plain"][0] for e in found["examples"]) / sum(e["plain"][1] for e in found["examples"])
    lost = sum(ok and not found["kept"][name] for name, ok in base["kept"].items())
    gained = sum(found["kept"][name] and not ok for name, ok in base["kept"].items())
    return (
        f"prefers {sum(m > 0 for m in margins)}/{len(margins)}, margin {sum(margins) / len(margins):+.3f}, "
        f"loss {loss:.3f}, of {sum(base['kept'].values())} kept items lost {lost}, gained {gained}; "
        f"{found['training'].get('seconds', 0)} s + {found['measure_seconds']} s"
    )
