"""What a run trains, by its method: `sft` on rows, `dpo` on pairs, `sft+dpo` on one after the other,
`distill` on prompts.

The second part of `sft+dpo` starts with the adapter of the first, which stays in `checkpoints/sft/` with its states and
metrics; the run's own adapters, states and metrics are those of the second. Torch-free until something is trained.
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
from noesis.training.job import TrainingSet, TrainJob, TrainResult
from noesis.training.state.adapter import ADAPTER_FILE
from noesis.training.state.checkpoint import SEAL, saved, step_of
from noesis.training.state.reference_cache import REFERENCE_FILE

SFT_FOLDER = "sft"  # folder of the first part's adapters, states and metrics, in the run's checkpoints
OWN_ANSWERS_FILE = "own_answers.json"  # in the checkpoints: what the base wrote to be replayed
RESULT_FILE = "result.json"  # in it: the first part's result, written when it is finished


def train_run(job: TrainJob) -> TrainResult:
    """Train what the method asks for: the job's rows, its pairs, or both in turn.

    Raises:
        As `trainer.train`.
    """
    from noesis.training.trainer import train

    sft_plan = job.plan.sft
    if sft_plan is None:
        return train(job)
    folder = job.checkpoints / SFT_FOLDER
    sft = _finished_sft(folder)
    if sft is None:
        say(_("  first part: SFT"))
        sft = _train_sft(job, sft_plan, folder)
    say(_("  second part: preferences"))
    dpo = replace(job, data=TrainingSet(pairs=job.pairs), parent=_last_epoch(folder, sft_plan))
    return replace(train(dpo), sft=sft)


def _train_sft(job: TrainJob, plan: Plan, folder: Path) -> TrainResult:
    """The first part of `sft+dpo`, recorded in its folder.

    Raises:
        TrainingError: it fitted only with the base in a precision other than the second part's plan has.
    """
    from noesis.training.trainer import train

    data = TrainingSet(rows=job.rows)
    result = train(replace(job, data=data, plan=plan, checkpoints=folder, metrics=folder / "metrics.jsonl"))
    if result.smaller_plan is not None and result.smaller_plan.setup.precision != job.plan.setup.precision:
        precision = result.smaller_plan.setup.precision
        raise TrainingError(
            _(
                "the first part fitted only with the base in {precision}: set precision: {precision} "
                "in training_config.yaml, so that both parts train on the same base, and run the same command again",
                precision=precision,
            )
        )
    adapter = _last_epoch(folder, plan)
    write_json(
        folder / RESULT_FILE,
        {"adapter": adapter.name, "sha256": sha256_file(adapter / ADAPTER_FILE), "result": result.to_json()},
    )
    return result


def _last_epoch(folder: Path, plan: Plan) -> Path:
    return folder / f"epoch_{plan.epochs - 1}"


def _finished_sft(folder: Path) -> TrainResult | None:
    """The result of a first part that is finished and whose adapter is unchanged."""
    try:
        stored = read_json_file(folder / RESULT_FILE, constants=False)
        unchanged = sha256_file(folder / str(stored["adapter"]) / ADAPTER_FILE) == stored["sha256"]
        return TrainResult.from_json(stored["result"]) if unchanged else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


# --- what is in the folders


def saved_states(checkpoints: Path) -> list[Path]:
    """Saved trainer states of every part."""
    return [*saved(checkpoints / SFT_FOLDER / "resume"), *saved(checkpoints / "resume")]


def state_seals(checkpoints: Path) -> dict[str, str]:
    """The seal of each saved state: its folder, relative to `checkpoints` → SHA-256 of its manifest."""
    return {
        state.relative_to(checkpoints).as_posix(): sha256_file(state / SEAL)
        for state in saved_states(checkpoints)
        if (state / SEAL).is_file()
    }


def training_outputs(checkpoints: Path) -> Sequence[Path]:
    """The files that training leaves in the checkpoints folder, states excluded."""
    sft = checkpoints / SFT_FOLDER
    epochs = [*checkpoints.glob("epoch_*"), *sft.glob("epoch_*")]
    adapters = [file for epoch in epochs for file in files_in(epoch)]
    others = (checkpoints / REFERENCE_FILE, checkpoints / OWN_ANSWERS_FILE, sft / "metrics.jsonl", sft / RESULT_FILE)
    return adapters + [file for file in others if file.is_file()]


def remaining_cost(plan: Plan, checkpoints: Path) -> tuple[Plan, float]:
    """(the plan with the seconds that the budget must still pay for, share of its own steps that is done)."""
    done = _share_done(plan, checkpoints)
    sft = plan.sft
    if sft is None:
        return plan, done
    sft_done = 1.0 if _finished_sft(checkpoints / SFT_FOLDER) else _share_done(sft, checkpoints / SFT_FOLDER)
    # what is left of the first part counts as the second one's start
    start = plan.start_seconds + sft.seconds * (1 - sft_done)
    return replace(plan, start_seconds=start, seconds=plan.seconds - sft.seconds + start - plan.start_seconds), done


def _share_done(plan: Plan, checkpoints: Path) -> float:
    states = saved(checkpoints / "resume")
    return min(step_of(states[-1]) / plan.steps, 1.0) if states else 0.0
