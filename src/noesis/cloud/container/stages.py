"""What each container does: bring the run, call the package's stages, publish. `app.py` wraps these in Modal's functions.

The volume's root is the run directory. Training, and later judging and merging, write the manifest, one after the other; judging an epoch
beside training writes one file of its own and nothing else.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from noesis.cloud.container.vllm_judge import trial_with_vllm_judge
from noesis.cloud.container.workspace import (
    CallResult,
    ContainerContext,
    _require_run,
    copy_of_run,
    run_guarded,
    staged_run,
)
from noesis.cloud.request import LOCAL_JUDGE, CloudRequest
from noesis.cloud.run_summary import epochs_judged
from noesis.cloud.volume.layout import EPOCHS, FOLDER, OPENED
from noesis.cloud.volume.sync import HEAVY
from noesis.cloud.volume.uploaded_data import require_upload
from noesis.core.config import load_config
from noesis.core.files import write_json, write_text
from noesis.run.directory import Run
from noesis.run.ledger import LedgerEntry


def train(place: ContainerContext, asked: dict[str, Any], ticket: str) -> CallResult:
    """Open the run on the volume (another one that lies there is moved to /data/runs/), train in all epochs, publishing as it goes.

    Returns:
        training's figures.
    """
    from noesis.pipeline.session import reopen_run
    from noesis.pipeline.stages.plan import run_plan
    from noesis.pipeline.stages.train import run_train
    from noesis.pipeline.start_run import from_exports, start_run

    request = CloudRequest.from_json(asked)

    def work() -> CallResult:
        config = load_config(place.project, request.overrides())
        require_upload(place.root / "dataset", request.uploaded, config.training.modal.volume)
        data = from_exports(place.root / "dataset", place.project)
        starts = _starts(place, ticket)  # --fresh must not begin the run anew that this very call began
        options: dict[str, Any] = {
            "archive_to": place.root / "runs",
            "resume": request.resume,
            "fresh": request.fresh and not starts,
        }
        opened = start_run(place.project, config, place.root, data, **options)
        write_json(
            place.root / FOLDER / OPENED, {"ticket": ticket, "starts": starts + 1, "epochs": config.training.epochs}
        )
        place.commit()
        place.keep()  # the weights were fetched by now: judging an epoch, beside this, need not fetch them again
        if opened.run.is_done("train"):
            return dict(run_train(opened))
        with staged_run(place) as run:
            s = reopen_run(run.path)
            run_plan(s)
            return dict(run_train(s))

    return run_guarded(place, work)


def _starts(place: ContainerContext, ticket: str) -> int:
    """How often a container of this very call opened the run before: it was taken away as often."""
    note = place.root / FOLDER / OPENED
    found = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    return int(found["starts"]) if found.get("ticket") == ticket else 0


def judge_epoch(place: ContainerContext, epoch: int) -> CallResult:
    """Held-out loss and preference after one epoch, from a copy of the run; its scores are where the stage `choose` looks for them."""
    from noesis.pipeline.session import reopen_run
    from noesis.pipeline.stages.choose import BASE, score_checkpoints
    from noesis.tribunal.heldout import compare

    name = f"epoch_{epoch}"

    def work() -> CallResult:
        with tempfile.TemporaryDirectory() as folder:
            copy, scores = copy_of_run(place.root, Path(folder) / name, name), Path("tribunal/checkpoints")
            if (place.root / scores).is_dir():
                shutil.copytree(place.root / scores, copy / scores)
            s = reopen_run(copy)
            known = {entry.id for entry in s.run.manifest.ledger}

            def measure() -> CallResult:
                found = score_checkpoints(s, [name])
                return {
                    "preference": compare([record["id"] for record in s.examples("eval")], found[BASE], found[name])
                }

            measured = s.run.perform("judge_epoch", measure, list)
            entries = [entry.to_json() for entry in s.run.manifest.ledger if entry.id not in known]
            for file in (f"{name}.json", f"{BASE}.json"):  # the base's are the same, whoever measured them
                if not (place.root / scores / file).is_file() or file != f"{BASE}.json":
                    write_text(place.root / scores / file, (copy / scores / file).read_text(encoding="utf-8"))
        found = {"epoch": epoch, "preference": measured["preference"], "ledger": entries}
        write_json(place.root / EPOCHS / f"{name}.json", found)
        return found

    return run_guarded(place, work)


def judge(place: ContainerContext, asked: dict[str, Any], again: bool) -> CallResult:
    """Judge the checkpoint that the run chose: on the held-out examples, and before the Tribunal where judges are seated."""
    from noesis.cloud.container.answers import take_answers
    from noesis.pipeline.session import reopen_run
    from noesis.pipeline.stages.choose import run_choose
    from noesis.pipeline.stages.judge import run_judge

    request = CloudRequest.from_json(asked)

    def work() -> CallResult:
        _require_run(place)
        with staged_run(place) as run:
            s = reopen_run(run.path)
            run_choose(s, _hearing(s, place, request))
            result = run_judge(s, again=again)
            if request.judges:
                if request.shards > 1:
                    take_answers(s, place.root, place.project, request)
                result = trial_with_vllm_judge(s, place.project, request, again=again) or result
            return dict(result)

    return run_guarded(place, work)


def _hearing(s: Any, place: ContainerContext, request: CloudRequest) -> Any:
    """Who may choose the checkpoint: judges at an address. One that is served on this card comes after all answers; it judges, and chooses nothing."""
    from noesis.pipeline.stages.trial import checkpoint_scorer

    reachable = tuple(judge for judge in request.judges if not judge.startswith(LOCAL_JUDGE))
    return checkpoint_scorer(s, place.project, reachable) if reachable else None


def merge(place: ContainerContext, asked: dict[str, Any], again: bool) -> CallResult:
    """Merge adapter and base, write GGUF and the report; epochs judged beside training are booked here, where nobody else writes."""
    from noesis.pipeline.session import reopen_run
    from noesis.pipeline.stages.gguf import run_gguf
    from noesis.pipeline.stages.merge import run_merge
    from noesis.pipeline.stages.report import run_report

    request = CloudRequest.from_json(asked)

    def work() -> CallResult:
        _require_run(place)
        with staged_run(place, link=() if again else HEAVY) as run:
            s = reopen_run(run.path)
            result = run_merge(s, again=again)
            run_gguf(s, kinds=request.gguf or None, again=again)
            _book_epochs(s.run)
            run_report(s)
            return dict(result)

    return run_guarded(place, work)


def _book_epochs(run: Run) -> None:
    """Add to the ledger what judging the epochs cost, once."""
    entries = [entry for row in epochs_judged(run.path) for entry in row["ledger"]]
    run.book(LedgerEntry.from_json(entry | {"stage": "judge_epochs"}) for entry in entries)
