"""Measurements for the certificate: each model gets the same token ids, and yields logits and greedy answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from noesis.core.console import Progress
from noesis.release.gguf.vocabulary import turn_end
from noesis.release.parity.certificate import Divergence
from noesis.release.parity.figures import DivergenceMeter
from noesis.release.parity.llama_logits import LlamaModel

CONTEXT = 256  # most tokens of a text that are compared


class ReferenceModel(Protocol):
    """A model in transformers (`reference.py`)."""

    def logits(self, rows: list[list[int]]) -> Iterator[Any]:
        """Logits after each token of each row: float32 (length, vocabulary)."""

    def answer(self, ids: list[int], count: int, stop: set[int], draft: list[int]) -> list[int]:
        """Greedy continuation of `ids`; `draft` is what it may be."""


@dataclass(frozen=True)
class Inputs:
    """What every model gets, as token ids."""

    rows: list[list[int]]  # texts, compared at every position
    starts: list[int]  # row by row, the first position whose context no earlier row has
    prompts: list[list[int]]  # answered greedily
    answer_tokens: int
    stop: set[int]
    vocabulary: int

    @property
    def length(self) -> int:
        """Tokens of all rows."""
        return sum(map(len, self.rows))

    @property
    def answering(self) -> int:
        """Tokens of all prompts and their answers, at most."""
        return sum(len(ids) + self.answer_tokens for ids in self.prompts)

    @property
    def positions(self) -> int:
        """Positions that are compared: a context shared by several rows, such as a template's opening, counts once."""
        return self.length - sum(self.starts)

    @property
    def logits_bytes(self) -> int:
        """Size of one model's logits in float32."""
        return self.length * self.vocabulary * 4


@dataclass(frozen=True)
class Outputs:
    """What one model computed."""

    logits: list[Any]  # row by row, float32 (length, vocabulary)
    answers: list[list[int]]


def prepare_inputs(
    tokenizer: Any, texts: list[str], prompts: list[str], *, answer_tokens: int, vocabulary: int
) -> Inputs:
    """Tokenise texts (their first CONTEXT tokens) and prompts (their last)."""

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    rows = [ids for text in texts if (ids := encode(text)[:CONTEXT])]
    return Inputs(
        rows=rows,
        starts=_first_new_positions(rows),
        prompts=[encode(text)[-CONTEXT:] for text in prompts],
        answer_tokens=answer_tokens,
        stop={i for i in (tokenizer.eos_token_id, turn_end(tokenizer)) if i is not None},
        vocabulary=vocabulary,
    )


def _first_new_positions(rows: list[list[int]]) -> list[int]:
    starts, seen = [], set()
    for row in rows:
        prefixes = [tuple(row[: i + 1]) for i in range(len(row))]
        starts.append(next((i for i, prefix in enumerate(prefixes) if prefix not in seen), len(row)))
        seen |= set(prefixes)
    return starts


def record_outputs(
    model: ReferenceModel, inputs: Inputs, file: Path, drafts: list[list[int]], progress: Progress
) -> Outputs:
    """Run a reference model. Its logits go to `file`, which is memory-mapped, not loaded.

    Args:
        drafts: another model's answers to the prompts.
    """
    import numpy as np

    stored = np.memmap(file, dtype=np.float32, mode="w+", shape=(inputs.length, inputs.vocabulary))
    views, start = [], 0
    for row in model.logits(inputs.rows):
        view = stored[start : start + len(row)]
        view[:] = row[:, : inputs.vocabulary]
        views.append(view)
        start += len(row)
        progress.advance(len(row))
    answers = []
    for ids, draft in zip(inputs.prompts, drafts, strict=True):
        answers.append(model.answer(ids, inputs.answer_tokens, inputs.stop, draft))
        progress.advance(len(ids) + inputs.answer_tokens)
    return Outputs(views, answers)


def divergence(
    reference: Outputs, logits: Iterable[Any], inputs: Inputs, progress: Progress | None = None
) -> Divergence:
    """The divergence of row-by-row logits from the reference's."""
    meter = DivergenceMeter()
    for ours, theirs, start in zip(reference.logits, logits, inputs.starts, strict=True):
        meter.add(ours[start:], theirs[start:, : inputs.vocabulary])
        if progress is not None:
            progress.advance(len(ours))
    return meter.result()


def measure_gguf(
    model: LlamaModel, inputs: Inputs, references: Iterable[Outputs], progress: Progress
) -> list[Divergence]:
    """Run a GGUF model once: its divergence from each reference."""
    meters = [(reference, DivergenceMeter()) for reference in references]
    for i, (row, start) in enumerate(zip(inputs.rows, inputs.starts, strict=True)):
        logits = model.logits(row)
        for reference, meter in meters:
            meter.add(reference.logits[i][start:], logits[start:])
        progress.advance(len(row))
    return [meter.result() for _, meter in meters]


def answer_prompts(model: LlamaModel, inputs: Inputs, progress: Progress) -> list[list[int]]:
    """A GGUF model's greedy answers."""
    answers = []
    for ids in inputs.prompts:
        answers.append(model.answer(ids, inputs.answer_tokens, inputs.stop))
        progress.advance(len(ids) + inputs.answer_tokens)
    return answers
