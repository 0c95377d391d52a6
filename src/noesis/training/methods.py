"""What a run trains, by its method: `sft` on rows, `dpo` on pairs, `sft+dpo` on one after the other,
`distill` on prompts. With `seeds: N` it trains each N times.

The second part of `sft+dpo` starts with the adapter of the first, which stays in `checkpoints/sft/` with its states and
metrics; the run's own adapters, states and metrics are those of the second. The first seed's adapters, states and
metrics are the run's own, those of another lie in `checkpoints/seed_SEED/`. Torch-free until something is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from noesis.core.console import say
from noesis.core.errors import TrainingError
from noesis.core.files import files_in, sha256_file, write_json
from noesis.core.i18n import _
from noesis.core.jsonl import read_json_file
from noesis.planning.plan import Plan
from noesis.run.adapter_names import seed_folders
from noesis.training.distributed import Nodes
from noesis.training.job import OtherSeed, TrainingSet, TrainJob, TrainResult
from noesis.training.state.adapter import ADAPTER_FILE
from noesis.training.state.checkpoint import SEAL, saved, step_of
from noesis.training.state.reference_cache import REFERENCE_FILE

SFT_FOLDER = "sft"  # folder of the first part's adapters, states and metrics, in the run's checkpoints
OWN_ANSWERS_FILE = "own_answers.json"  # in the checkpoints: what the base wrote to be replayed
METRICS_FILE = "metrics.jsonl"  # of a part, in its folder
RESULT_FILE = "result.json"  # in a part's folder: its result, written when it is finished


def train_run(job: TrainJob) -> TrainResult:
    """Train what the method asks for: the job's rows, its pairs, or both in turn; once for each seed.

    Raises:
        As `trainer.train`.
    """
    if job.plan.seeds == 1:
        return _train_method(job)
    if Nodes.here().count > 1:
        raise TrainingError(
            _(
                "seeds: {seeds} on several machines is not supported: train with --seeds 1, or on one machine",
                seeds=job.plan.seeds,
            )
        )
    jobs = [_job_of(job, seed) for seed in job.config.training.all_seeds]
    left = [j for j in jobs if _finished(j.checkpoints, j.plan) is None]
    if len(left) > 1 and (joined := _joined(left)) is not None:
        say(_("  {left} seeds share their passes", left=len(left)))
        found = _train(joined)
        others = found.seeds or {}
        for j in left:
            _record(j, others.get(str(j.config.training.seed), replace(found, seeds=None)))
    else:
        for j in left:
            say(
                _(
                    "  seed {seed}: {index} of {jobs}",
                    seed=j.config.training.seed,
                    index=jobs.index(j) + 1,
                    jobs=len(jobs),
                )
            )
            _record(j, _train_method(j))
    results = {str(j.config.training.seed): _require_finished(j.checkpoints, j.plan) for j in jobs}
    first, *others_ = results.values()
    return replace(first, seeds=dict(zip(list(results)[1:], others_, strict=True)))


def _train(job: TrainJob) -> TrainResult:
    from noesis.training.trainer import train

    return train(job)


def _job_of(job: TrainJob, seed: int) -> TrainJob:
    """The training of one seed, as if it were the only one."""
    config = job.config.with_settings(training={"seed": seed, "seeds": 1})
    one = replace(job, config=config, plan=replace(job.plan, seeds=1))
    if seed == job.config.training.seed:
        return one
    folder = seed_folder(job.checkpoints, seed)
    return replace(one, checkpoints=folder, metrics=folder / METRICS_FILE)


def _joined(jobs: list[TrainJob]) -> TrainJob | None:
    """The jobs as one whose seeds share their passes; None where they can't, or have not got equally far."""
    from noesis.training.seeds.backend import common_state, refuses_together

    first, *others = jobs
    joined = replace(first, others=tuple(OtherSeed(j.config.training.seed, j.checkpoints, j.metrics) for j in others))
    return joined if refuses_together(joined) is None and common_state(joined)[0] else None


def _train_method(job: TrainJob) -> TrainResult:
    """Rows, pairs, or both in turn, of one seed."""
    sft_plan = job.plan.sft
    if sft_plan is None:
        return _train(job)
    folder = job.checkpoints / SFT_FOLDER
    sft = _finished(folder, sft_plan)
    if sft is None:
        say(_("  first part: SFT"))
        sft = _train_sft(job, sft_plan, folder)
    say(_("  second part: preferences"))
    dpo = replace(job, data=TrainingSet(pairs=job.pairs), parent=_last_epoch(folder, sft_plan))
    return replace(_train(dpo), sft=sft)


def _train_sft(job: TrainJob, plan: Plan, folder: Path) -> TrainResult:
    """The first part of `sft+dpo`, recorded in its folder.

    Raises:
        TrainingError: it fitted only with the base in a precision other than the second part's plan has.
    """
    part = replace(job, data=TrainingSet(rows=job.rows), plan=plan, checkpoints=folder, metrics=folder / METRICS_FILE)
    result = _train(part)
    if result.smaller_plan is not None and result.smaller_plan.setup.precision != job.plan.setup.precision:
        precision = result.smaller_plan.setup.precision
        raise TrainingError(
            _(
                "the first part fitted only with the base in {precision}: set precision: {precision} "
                "in training_config.yaml, so that both parts train on the same base, and run the same command again",
                precision=precision,
            )
        )
    _record(part, result)
    return result


def _record(job: TrainJob, result: TrainResult) -> None:
    """Note in its folder that a training is finished, of which adapter."""
    adapter = _last_epoch(job.checkpoints, job.plan)
    write_json(
        job.checkpoints / RESULT_FILE,
        {"adapter": adapter.name, "sha256": sha256_file(adapter / ADAPTER_FILE), "result": result.to_json()},
    )


def _last_epoch(folder: Path, plan: Plan) -> Path:
    return folder / f"epoch_{plan.epochs - 1}"


def _finished(folder: Path, plan: Plan) -> TrainResult | None:
    """The result of a training, a part of a run, that is finished by this plan and whose adapter is unchanged."""
    try:
        stored = read_json_file(folder / RESULT_FILE, constants=False)
        if stored["adapter"] != _last_epoch(folder, plan).name:  # epochs were added since
            return None
        unchanged = sha256_file(folder / str(stored["adapter"]) / ADAPTER_FILE) == stored["sha256"]
        return TrainResult.from_json(stored["result"]) if unchanged else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _require_finished(folder: Path, plan: Plan) -> TrainResult:
    found = _finished(folder, plan)
    if found is None:
        raise TrainingError(
            _("{file} was changed while the run trained: run the same command again", file=folder / RESULT_FILE)
        )
    return found


# --- what is in the folders


def seed_folder(checkpoints: Path, seed: int) -> Path:
    """Where the adapters, states and metrics of a seed other than the first lie."""
    return checkpoints / f"seed_{seed}"


def _parts(checkpoints: Path) -> list[Path]:
    """The folders of a run's trainings: its own, and of the other seeds; before each, that of its first part."""
    own = [checkpoints, *seed_folders(checkpoints)]
    return [folder for each in own for folder in (each / SFT_FOLDER, each)]


def saved_states(checkpoints: Path) -> list[Path]:
    """Saved trainer states of every part and seed."""
    return [state for folder in _parts(checkpoints) for state in saved(folder / "resume")]


def state_seals(checkpoints: Path) -> dict[str, str]:
    """The seal of each saved state: its folder, relative to `checkpoints` → SHA-256 of its manifest."""
    return {
        state.relative_to(checkpoints).as_posix(): sha256_file(state / SEAL)
        for state in saved_states(checkpoints)
        if (state / SEAL).is_file()
    }


def training_outputs(checkpoints: Path) -> Sequence[Path]:
    """The files that training leaves in the checkpoints folder, states excluded."""
    parts = _parts(checkpoints)
    adapters = [file for part in parts for epoch in part.glob("epoch_*") for file in files_in(epoch)]
    others = [part / name for part in parts for name in (REFERENCE_FILE, OWN_ANSWERS_FILE, METRICS_FILE, RESULT_FILE)]
    return adapters + [file for file in others if file.is_file()]


def remaining_cost(plan: Plan, checkpoints: Path) -> tuple[Plan, float]:
    """(the plan with the seconds that the budget must still pay for, share of its own steps that is done)."""
    if plan.seeds > 1:
        folders = [folder for folder in _parts(checkpoints) if folder.name != SFT_FOLDER]
        done = [1.0 if _finished(folder, plan) else _share_done(plan, folder) for folder in folders]
        return plan, sum(done) / plan.seeds
    done_ = _share_done(plan, checkpoints)
    sft = plan.sft
    if sft is None:
        return plan, done_
    sft_done = 1.0 if _finished(checkpoints / SFT_FOLDER, sft) else _share_done(sft, checkpoints / SFT_FOLDER)
    # what is left of the first part counts as the second one's start
    start = plan.start_seconds + sft.seconds * (1 - sft_done)
    return replace(plan, start_seconds=start, seconds=plan.seconds - sft.seconds + start - plan.start_seconds), done_


def _share_done(plan: Plan, checkpoints: Path) -> float:
    states = saved(checkpoints / "resume")
    return min(step_of(states[-1]) / plan.steps, 1.0) if states else 0.0
