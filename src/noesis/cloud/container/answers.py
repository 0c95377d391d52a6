"""A trial's answers over many machines (`modal run scripts/modal_train.py --shards N`): each answers every n-th chunk of prompts, leaves a file.

The judging container finds them where it looks for answers, so that the trial is the same, only that nobody has to answer any more.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from noesis.cloud.container.shards import Shards, do_shard, merged
from noesis.cloud.container.workspace import CallResult, ContainerContext, copy_of_run, run_guarded
from noesis.cloud.request import CloudRequest
from noesis.core.config import load_config
from noesis.core.files import sha256_file
from noesis.core.project import Project
from noesis.pipeline.session import RunSession
from noesis.run.directory import load_run
from noesis.run.ledger import LedgerEntry

CHUNK = 16  # prompts that are answered together


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


def answer_shard(place: ContainerContext, asked: dict[str, Any], index: int) -> CallResult:
    """Answer this shard's chunks by base and tuned model, from a copy of the run."""
    from noesis.pipeline.answers import generate_answers
    from noesis.pipeline.session import reopen_run
    from noesis.pipeline.stages.trial import TrialRequest, current_tribunal_settings, trial_items

    request = CloudRequest.from_json(asked)

    def work() -> CallResult:
        shards, chunks = trial_shards(place.root, place.project, request)

        def answer(own: list[list[str]]) -> list[dict[str, Any]]:
            with tempfile.TemporaryDirectory() as folder:
                s = reopen_run(copy_of_run(place.root, Path(folder) / "run"))
                known = {entry.id for entry in s.run.manifest.ledger}
                items = {item.id: item for item in trial_items(place.project, TrialRequest(request.judges))}
                section = current_tribunal_settings(s, place.project)
                found = s.run.perform(
                    "answers",
                    lambda: {"rows": [generate_answers(s, section, [items[i] for i in chunk]) for chunk in own]},
                    list,
                )
                ledger = [entry.to_json() for entry in s.run.manifest.ledger if entry.id not in known]
            return [{"answers": row, "ledger": ledger if i == 0 else []} for i, row in enumerate(found["rows"])]

        return {"chunks": do_shard(shards, index, chunks, answer, place.commit)}

    return run_guarded(place, work)


def take_answers(s: RunSession, root: Path, project: Project, request: CloudRequest) -> None:
    """Put what the shards answered where the trial looks, and book what they cost, once."""
    from noesis.pipeline.answers import store_answers

    shards, chunks = trial_shards(root, project, request)
    if shards.missing(chunks):
        return  # the trial answers itself what is not there
    rows = list(merged(shards, chunks))
    for row in rows:
        store_answers(s, row["answers"])
    s.run.book(LedgerEntry.from_json(entry) for row in rows for entry in row["ledger"])
