"""A trial's answers over several machines (`modal run scripts/modal_train.py --shards N`).

Each machine answers every n-th chunk of prompts and leaves a file; the judging container stores these answers where the
trial looks for them, so the trial is the same and has no answers left to write.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noesis.cloud.container.shards import Shards, do_shard, results_in_order
from noesis.cloud.container.workspace import CallResult, ContainerContext, copy_of_run, run_guarded
from noesis.cloud.request import CloudRequest
from noesis.core.config import load_config
from noesis.core.files import sha256_file
from noesis.core.project import Project
from noesis.pipeline.session import RunSession
from noesis.run.directory import load_run
from noesis.run.ledger import LedgerEntry

CHUNK = 16  # prompts that are answered together


@dataclass(frozen=True)
class AnsweredChunk:
    """The answers to one chunk of prompts, as a row of a shard's file.

    answers: by their keys in the trial's cache
    ledger: what they cost; a shard's first chunk has the entries of all its chunks
    """

    answers: dict[str, str]
    ledger: tuple[LedgerEntry, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"answers": self.answers, "ledger": [entry.to_json() for entry in self.ledger]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> AnsweredChunk:
        return cls(value["answers"], tuple(LedgerEntry.from_json(entry) for entry in value["ledger"]))


def trial_shards(root: Path, project: Project, request: CloudRequest) -> tuple[Shards, list[list[str]]]:
    """How the trial's answers are split, and the chunks of prompts (their ids)."""
    from noesis.pipeline.stages.trial import TrialRequest, trial_items

    prompts = [item.id for item in trial_items(project, TrialRequest(request.judges))]
    run = load_run(root)
    adapter = sha256_file(run.adapter() / "adapter_model.safetensors")
    section = load_config(project).training.tribunal.model_dump(
        mode="json", include={"samples", "temperature", "trial_tokens"}
    )
    key = [prompts, adapter, run.identity.to_json(), section]
    return Shards(root, "answers", key, request.shards), [prompts[i : i + CHUNK] for i in range(0, len(prompts), CHUNK)]


def answer_shard(context: ContainerContext, request: CloudRequest, index: int) -> CallResult:
    """Answer this shard's chunks by base and tuned model, on a copy of the run."""

    def work() -> CallResult:
        shards, chunks = trial_shards(context.root, context.project, request)

        def answer(own: list[list[str]]) -> list[Any]:
            return [chunk.to_json() for chunk in _answer_chunks(context, request, own)]

        return CallResult({"chunks": do_shard(shards, index, chunks, answer, context.commit)})

    return run_guarded(context, work)


def _answer_chunks(context: ContainerContext, request: CloudRequest, chunks: list[list[str]]) -> list[AnsweredChunk]:
    from noesis.pipeline.answers import generate_answers
    from noesis.pipeline.consent import tribunal_settings
    from noesis.pipeline.session import reopen_run
    from noesis.pipeline.stages.trial import TrialRequest, trial_items

    with tempfile.TemporaryDirectory() as folder:
        s = reopen_run(copy_of_run(context.root, Path(folder) / "run"), fetch=True)
        known = {entry.id for entry in s.run.manifest.ledger}
        items = {item.id: item for item in trial_items(context.project, TrialRequest(request.judges))}
        section = tribunal_settings(s.config, context.project)
        found = s.run.perform(
            "answers",
            lambda: {"rows": [generate_answers(s, section, [items[i] for i in chunk]) for chunk in chunks]},
            list,
        )
        ledger = tuple(entry for entry in s.run.manifest.ledger if entry.id not in known)
    return [AnsweredChunk(row, () if i else ledger) for i, row in enumerate(found["rows"])]


def take_answers(s: RunSession, root: Path, project: Project, request: CloudRequest) -> None:
    """Store the shards' answers where the trial looks for them, and record what they cost, once."""
    from noesis.pipeline.answers import store_answers

    shards, chunks = trial_shards(root, project, request)
    if shards.missing(chunks):
        return  # the trial writes the answers that are not there
    answered = [AnsweredChunk.from_json(row) for row in results_in_order(shards, chunks)]
    for chunk in answered:
        store_answers(s, chunk.answers)
    s.run.book(entry for chunk in answered for entry in chunk.ledger)
