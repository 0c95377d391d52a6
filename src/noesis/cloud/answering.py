"""A trial's answers over many machines (`modal run scripts/modal_train.py --shards N`): each answers every n-th chunk of prompts, leaves a file.

The judging container finds them where it looks for answers, so that the trial is the same, only that nobody has to answer any more.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from noesis.cloud.conduct import Result
from noesis.cloud.request import Request
from noesis.cloud.shards import Shards, do_shard, merged
from noesis.cloud.stages import Place, at_work
from noesis.config import Project, load_config
from noesis.files import sha256_file
from noesis.run import load_run
from noesis.sessions import Session

CHUNK = 16  # prompts that are answered together


def trial_shards(root: Path, project: Project, request: Request) -> tuple[Shards, list[list[str]]]:
    """How the trial's answers are split, and the chunks of prompts (their ids)."""
    from noesis.judging import Ask, trial_prompts

    prompts = trial_prompts(project, Ask(request.judges))
    run = load_run(root)
    adapter = sha256_file(run.adapter() / "adapter_model.safetensors")
    section = load_config(project).training.tribunal.model_dump(mode="json", include={"samples", "temperature", "trial_tokens"})
    key = [prompts, adapter, run.manifest["identity"], section]
    return Shards(root, "answers", key, request.shards), [prompts[i : i + CHUNK] for i in range(0, len(prompts), CHUNK)]


def answer_shard(place: Place, asked: dict[str, Any], index: int) -> Result:
    """Answer this shard's chunks by base and tuned model, from a copy of the run."""
    from noesis import sessions
    from noesis.judging import Ask, answered

    request = Request.from_json(asked)

    def work() -> Result:
        shards, chunks = trial_shards(place.root, place.project, request)

        def answer(own: list[list[str]]) -> list[dict[str, Any]]:
            with tempfile.TemporaryDirectory() as folder:
                s = sessions.session_of(copy_of_run(place.root, Path(folder) / "run"))
                known = {entry["id"] for entry in s.run.manifest.get("ledger", [])}
                found = s.run.perform("answers", lambda: {"rows": [answered(s, place.project, Ask(request.judges), chunk) for chunk in own]}, list)
                ledger = [entry for entry in s.run.manifest["ledger"] if entry["id"] not in known]
            return [{"answers": row, "ledger": ledger if i == 0 else []} for i, row in enumerate(found["rows"])]

        return {"chunks": do_shard(shards, index, chunks, answer, place.commit)}

    return at_work(place, work)


def copy_of_run(root: Path, target: Path) -> Path:
    """What answering needs of the run, with the adapter that it chose and nothing else."""
    target.mkdir()
    for name in ("manifest.json", "config.json"):
        shutil.copy2(root / name, target / name)
    shutil.copytree(root / "data", target / "data")
    adapter = load_run(root).adapter()
    shutil.copytree(adapter, target / "checkpoints" / adapter.name)
    return target


def take_answers(s: Session, root: Path, project: Project, request: Request) -> None:
    """Put what the shards answered where the trial looks, and book what they cost, once."""
    from noesis.judging import keep_answers

    shards, chunks = trial_shards(root, project, request)
    if shards.missing(chunks):
        return  # the trial answers itself what is not there
    known = {entry.get("id") for entry in s.run.manifest.get("ledger", [])}
    for row in merged(shards, chunks):
        keep_answers(s, row["answers"])
        for entry in row["ledger"]:
            if entry["id"] not in known:
                s.run.book(entry)
    s.run.save()
