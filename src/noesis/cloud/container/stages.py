"""What each container does: copy the run, call the package's stages, publish. `cloud/app.py` turns it into functions.

The volume's root is the run directory. Training, and later judging and merging, write the manifest, one after the
other; judging an epoch during training writes files of its own and nothing else.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from noesis.cloud.container.answers import take_answers
from noesis.cloud.container.prepare import judge_problem
from noesis.cloud.container.vllm_judge import trial_with_vllm_judge
from noesis.cloud.container.workspace import (
    CallResult,
    ContainerContext,
    copy_of_run,
    require_trained_run,
    run_guarded,
    staged_run,
)
from noesis.cloud.request import CloudRequest
from noesis.cloud.volume.layout import ARCHIVE, DATASET
from noesis.cloud.volume.notes import JudgedEpoch, OpenedRun, judged_epochs
from noesis.cloud.volume.sync import HEAVY
from noesis.cloud.volume.uploaded_data import require_upload
from noesis.core.errors import ModelError
from noesis.core.files import copy_folder, read_text, write_text
from noesis.run.directory import Run
from noesis.training.backends.nodes import follow, leading, on_all
from noesis.training.distributed import Nodes

if TYPE_CHECKING:
    from noesis.pipeline.session import RunSession
    from noesis.pipeline.stages.choose import CheckpointScorer
    from noesis.training.job import TrainJob

SCORES = Path("tribunal/checkpoints")  # in a run: what the stage `choose` reads


def train(context: ContainerContext, request: CloudRequest, ticket: str) -> CallResult:
    """Open the run on the volume and train all epochs, publishing each as it ends.

    Another run that is there is moved to /data/runs/.

    Returns:
        training's figures.
    """
    from noesis.llm.clients.machine_key import make_machine_key
    from noesis.pipeline.session import reopen_run
    from noesis.pipeline.stages.plan import run_plan
    from noesis.pipeline.stages.train import run_train

    def work() -> CallResult:
        opened = _open_run(context, request, ticket)
        context.commit()
        make_machine_key()  # one for all containers, which share the cache
        context.commit_weights()  # fetched by now: judging an epoch meanwhile need not fetch them again
        if opened.run.is_done("train"):
            return CallResult(run_train(opened).to_json())
        with staged_run(context, request.turn) as run:
            s = reopen_run(run.path, fetch=True)
            s = replace(s, device=on_all(Nodes.here(), s.device))
            run_plan(s)
            return CallResult(run_train(s).to_json())

    return run_guarded(context, work)


def train_on_nodes(context: ContainerContext, request: CloudRequest, ticket: str, nodes: Nodes) -> CallResult:
    """As `train`, on one of several machines: the first does all of it, the others train with it."""
    if nodes.rank == 0:
        with leading(nodes):
            return train(context, request, ticket)

    def bring(job: TrainJob) -> None:
        context.reload()
        states = context.root / "checkpoints" / job.resume_folder.name
        if states.is_dir():
            copy_folder(states, job.resume_folder)

    return run_guarded(context, lambda: CallResult({"jobs": follow(nodes, bring)}))


def _open_run(context: ContainerContext, request: CloudRequest, ticket: str) -> RunSession:
    """The run on the volume, for the uploaded dataset and the request's settings."""
    from noesis.pipeline.start_run import from_exports, start_run

    config = request.overrides.configure(context.project)
    dataset = context.root / DATASET
    require_upload(dataset, request.uploaded, config.training.modal.volume)
    before = OpenedRun.read(context.root)
    starts = before.starts if before is not None and before.ticket == ticket else 0
    s = start_run(
        context.project,
        config,
        context.root,
        from_exports(dataset, context.project),
        archive_to=context.root / ARCHIVE,
        resume=request.resume,
        fresh=request.fresh and not starts,  # after a preemption the run is this very call's
    )
    OpenedRun(ticket, starts + 1, config.training.epochs).write(context.root)
    return s


def judge_epoch(context: ContainerContext, epoch: int) -> CallResult:
    """Measure held-out loss and preference after one epoch, on a copy of the run.

    The scores go where the stage `choose` reads them, the rest into a file of this epoch's own.
    """
    from noesis.pipeline.session import reopen_run

    name = f"epoch_{epoch}"

    def work() -> CallResult:
        with tempfile.TemporaryDirectory() as folder:
            copy = copy_of_run(context.root, Path(folder) / name, name)
            if (context.root / SCORES).is_dir():
                copy_folder(context.root / SCORES, copy / SCORES)
            judged = _judge_copy(reopen_run(copy, fetch=True), epoch)
            _publish_scores(copy, context.root, name)
        judged.write(context.root)
        return CallResult(judged.to_json())

    return run_guarded(context, work)


def _judge_copy(s: RunSession, epoch: int) -> JudgedEpoch:
    from noesis.pipeline.stages.choose import BASE, score_checkpoints
    from noesis.tribunal.heldout import Preference, compare

    name = f"epoch_{epoch}"
    known = {entry.id for entry in s.run.manifest.ledger}

    def measure() -> dict[str, object]:
        found = score_checkpoints(s, [name])
        ids = [example.id for example in s.dataset.held_out]
        return {"preference": compare(ids, found[BASE], found[name]).to_json()}

    measured = s.run.perform("judge_epoch", measure, list)
    entries = tuple(entry for entry in s.run.manifest.ledger if entry.id not in known)
    return JudgedEpoch(epoch, Preference.from_json(measured["preference"]), entries)


def _publish_scores(copy: Path, root: Path, name: str) -> None:
    """Copy the epoch's scores to the volume, and the base's if nobody has yet: they are the same for every epoch."""
    from noesis.pipeline.stages.choose import BASE

    for file in (f"{name}.json", f"{BASE}.json"):
        target = root / SCORES / file
        if file != f"{BASE}.json" or not target.is_file():
            write_text(target, read_text(copy / SCORES / file))


def judge(context: ContainerContext, request: CloudRequest, again: bool) -> CallResult:
    """Judge the checkpoint that the run chose: on the held-out examples and, if judges are named, by the Tribunal."""
    from noesis.pipeline.session import reopen_run
    from noesis.pipeline.stages.choose import run_choose
    from noesis.pipeline.stages.dial import run_dial
    from noesis.pipeline.stages.judge import run_judge

    def work() -> CallResult:
        require_trained_run(context.root)
        with staged_run(context, request.turn) as run:
            s = reopen_run(run.path, fetch=True)
            run_choose(s, _checkpoint_scorer(s, context, request))
            run_dial(s, context.project.tribunal)
            result = run_judge(s, project=context.project, again=again, no_trial=request.judge_problem).to_json()
            if request.judges and request.judge_problem is None:
                if request.shards > 1:
                    take_answers(s, context.root, context.project, request)
                try:
                    result = trial_with_vllm_judge(s, context.project, request, again=again).to_json()
                except ModelError as error:  # a judge that was probed and failed later
                    problem = judge_problem(", ".join(request.judges), str(error))
                    result = run_judge(s, project=context.project, no_trial=problem).to_json()
            return CallResult(result)

    return run_guarded(context, work)


def _checkpoint_scorer(s: RunSession, context: ContainerContext, request: CloudRequest) -> CheckpointScorer | None:
    """Judges that may choose the checkpoint: those at an address.

    One that is served on this GPU is loaded only after all answers are written, so it chooses nothing.
    """
    from noesis.pipeline.stages.trial import checkpoint_scorer

    if not request.remote_judges or request.judge_problem is not None:
        return None
    return checkpoint_scorer(s, context.project, request.remote_judges)


def merge(context: ContainerContext, request: CloudRequest, again: bool) -> CallResult:
    """Merge adapter and base, write GGUF files and the report.

    What judging the epochs cost is recorded here, where no other container writes the manifest.
    """
    from noesis.pipeline.session import reopen_run
    from noesis.pipeline.stages.gguf import run_gguf
    from noesis.pipeline.stages.merge import run_merge
    from noesis.pipeline.stages.report import run_report

    def work() -> CallResult:
        require_trained_run(context.root)
        with staged_run(context, request.turn, link=() if again else HEAVY) as run:
            s = reopen_run(run.path, fetch=True)
            result = run_merge(s, again=again)
            run_gguf(s, kinds=request.gguf or None, again=again)
            _record_epoch_costs(s.run)
            run_report(s)
            return CallResult(result.to_json())

    return run_guarded(context, work)


def _record_epoch_costs(run: Run) -> None:
    """Add to the ledger what judging the epochs cost, once."""
    entries = [entry for judged in judged_epochs(run.path) for entry in judged.ledger]
    run.book(replace(entry, stage="judge_epochs") for entry in entries)
