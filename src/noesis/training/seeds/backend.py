"""SFT of several seeds on one GPU, in the same passes over the frozen base: `noesis train --seeds N`."""

from __future__ import annotations

from dataclasses import replace

from noesis.core.rooted import remove
from noesis.planning.memory import gpu_memory
from noesis.planning.model_shapes import read_shape
from noesis.planning.search import shares_passes
from noesis.training.backends.build_model import engine_refusal
from noesis.training.backends.run_trainer import TrainerParts, result_of, run_trainer
from noesis.training.job import TrainJob, TrainResult
from noesis.training.state.adapter import load_adapter_into
from noesis.training.state.checkpoint import newest_whole, saved, step_of


class Seeds:
    """Takes a job that has other seeds beside its own."""

    name = "seeds"

    def refusal_reason(self, job: TrainJob) -> str | None:
        return None if job.others else "the job has one seed"

    def train(self, job: TrainJob) -> TrainResult:
        from noesis.training.seeds.trainer import SeedsTrainer, build_seeds_trainer

        count, built = 1 + len(job.others), list[SeedsTrainer]()
        _require_common_state(job)
        plan = job.plan
        # of the pass that all share: what one seed sees of its speed, and what is saved at a time
        shared = replace(
            plan, tokens_per_s=plan.tokens_per_s / count, adapter_parameters=plan.adapter_parameters * count
        )
        job = replace(job, plan=shared)

        def build(job: TrainJob, parts: TrainerParts) -> SeedsTrainer:
            trainer = build_seeds_trainer(job, parts, tokens_of_a_pass(job))
            if job.parent is not None and parts.step == 0:
                for track in trainer.tracks:
                    load_adapter_into(track.model, job.parent)
            built.append(trainer)
            return trainer

        first = run_trainer(job, build, load_parent=False)
        tracks = built[0].tracks[1:]
        return replace(first, seeds={str(t.seed): result_of(job, built[0], t.metrics, first.seconds) for t in tracks})


def common_state(job: TrainJob) -> tuple[bool, int]:
    """(whether all seeds of the job have got equally far, the step that they can go on from; 0: none).

    A process that was killed between two seeds' saves leaves one of them a state ahead: the newest step that all have
    counts.
    """
    folders = [job.resume_folder, *(other.checkpoints / "resume" for other in job.others)]
    whole = [{step_of(state) for state in saved(folder)} for folder in folders]
    shared = set.intersection(*whole)
    return bool(shared) or not any(whole), max(shared, default=0)


def _require_common_state(job: TrainJob) -> None:
    """Leave each seed the newest state that all have whole; later ones are trained again."""
    folders = [job.resume_folder, *(other.checkpoints / "resume" for other in job.others)]
    while True:
        newest = [newest_whole(folder) for folder in folders]
        steps = {0 if state is None else step_of(state) for state in newest}
        if len(steps) == 1:
            return
        for state in newest:
            if state is not None and step_of(state) > min(steps):
                remove(state)


def refuses_together(job: TrainJob) -> str | None:
    """Why the seeds of a job are trained one after the other; None if they share their passes."""
    if not shares_passes(job.config, job.plan.setup):
        return "passes are shared by the engine, on one GPU, with method: sft and without kl_weight"
    return engine_refusal(job)


def tokens_of_a_pass(job: TrainJob) -> int:
    """Tokens that a pass of several seeds has memory for, by the planner's figures."""
    plan, setup = job.plan, job.plan.setup
    row = setup.pack_length if setup.packing else plan.longest_row * setup.micro_batch
    shape, double = read_shape(job.model_folder), job.config.lora.quantization.bnb_4bit_use_double_quant
    room = row
    for count in range(2, 2 + len(job.others)):
        memory = gpu_memory(shape, plan.adapter_parameters, setup, row * count, double_quant=double)
        if job.device.kind == "cuda" and not memory.fits(job.device.memory_bytes, on_gpu=True):
            break
        room = row * count
    return room
