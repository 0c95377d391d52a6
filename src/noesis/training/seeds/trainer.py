"""SFT of several seeds in the same passes: the products with the frozen base are made once for all seeds.

Each seed has what it would have alone: the order of its examples, its packed rows, its dropout, the norm that its
gradients are clipped by, its metrics, and its saved states, which a training of that seed alone can go on from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, set_seed

from noesis.core.files import make_folder
from noesis.core.rooted import remove
from noesis.llm.token_rows import IGNORED
from noesis.training.backends.run_trainer import TrainerParts
from noesis.training.backends.stepwise import PendingStep, StepSampler, Tensor, WholeStepTrainer
from noesis.training.backends.trainer_arguments import trainer_arguments
from noesis.training.engine.model import through_layers
from noesis.training.job import TrainJob
from noesis.training.packing import PackedRow, rows_of_step
from noesis.training.recorder import Metrics
from noesis.training.seeds.models import Together, build_models
from noesis.training.state.checkpoint import (
    STATE,
    publish,
    read_tree,
    rng_states,
    seal,
    set_rng_states,
    write_tree,
)
from noesis.training.state.resumable import load_weights


@dataclass
class Track:
    """One seed's training.

    rng: the state of all random number generators as this seed sees them; rng_after_step: as of its last whole step
    """

    seed: int
    model: Any
    sampler: StepSampler
    checkpoints: Path
    metrics: Metrics
    rng: Any
    rng_after_step: Any = None
    order: list[list[int]] = field(default_factory=list)
    pending: PendingStep | None = None

    @property
    def resume_folder(self) -> Path:
        return self.checkpoints / "resume"

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The adapter's."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Within it, random numbers are this seed's."""
        outside = rng_states()
        set_rng_states(self.rng)
        try:
            yield
        finally:
            self.rng = rng_states()
            set_rng_states(outside)


@dataclass
class Work:
    """One seed's part of a step.

    trained: tokens; tokens: padding not counted
    """

    track: Track
    rows: list[PackedRow]
    trained: int
    tokens: int
    losses: list[Tensor] = field(default_factory=list)

    def pending(self) -> PendingStep:
        """The step's figures, the norm still to come."""
        losses = torch.stack(self.losses)
        total = losses.sum()[None]
        return PendingStep(torch.cat([total, total, losses]), None, [row.members for row in self.rows], self.tokens)


class SeedsTrainer(WholeStepTrainer, Trainer):  # type: ignore[misc]
    """A trainer whose `model` is `Together`; `attach` gives it its seeds."""

    def attach(self, tracks: list[Track], room: int) -> None:
        """room: tokens that a shared pass has memory for; a single seed's row is computed in any case."""
        self.tracks, self.room = tracks, room
        self.stepped: list[PendingStep] = []  # of this step, before the optimizer's: one a seed

    # --- a step

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        for track in self.tracks:
            track.sampler.epoch = epoch
            track.order = list(track.sampler)
            if self.state.global_step % len(self.sampler) == 0:
                with track.drawing():  # a loader draws a number when it starts, in a training of one seed as well
                    iter(DataLoader(range(1)))

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        self.stop_if_asked(between_steps=True)
        place = self.state.global_step % len(self.sampler)
        work = [self._work(track, track.order[place]) for track in self.tracks]
        with self.interruptible():
            for parts in self._passes(work):
                embedded = []
                for of_seed, row in parts:
                    with of_seed.track.drawing():
                        embedded.append(of_seed.track.model.engine.embed(row))
                engines = [of_seed.track.model.engine for of_seed, _ in parts]
                states = through_layers(engines, embedded)
                losses = [
                    engine.loss_of(h, row, torch.tensor(float(of_seed.trained), device=engine.device))
                    for engine, h, (of_seed, row) in zip(engines, states, parts, strict=True)
                ]
                torch.autograd.backward(losses)
                for (of_seed, _), loss in zip(parts, losses, strict=True):
                    of_seed.losses.append(loss.detach())
                self.stop_if_asked()
        self.stepped = [of_seed.pending() for of_seed in work]
        return torch.stack([step.figures[0] for step in self.stepped]).mean()

    def _work(self, track: Track, indices: list[int]) -> Work:
        sequences = [(self.rows[i].input_ids, self.rows[i].labels) for i in indices]
        rows = rows_of_step(
            sequences,
            indices,
            world_size=1,
            rank=0,
            pack_length=self.setup.pack_length if self.setup.packing else 0,
            micro_batch=self.setup.micro_batch,
        )
        track.model.engine.begin_step()
        trained = sum(label != IGNORED for _, labels in sequences for label in labels[1:])
        return Work(track, rows, trained, sum(len(ids) for ids, _ in sequences))

    def _passes(self, work: Sequence[Work]) -> Iterator[list[tuple[Work, PackedRow]]]:
        """The rows that go through the layers together: at most one of each seed, and `room` tokens."""
        for i in range(max(len(of_seed.rows) for of_seed in work)):
            parts: list[tuple[Work, PackedRow]] = []
            for of_seed in work:
                if i >= len(of_seed.rows):
                    continue
                row = of_seed.rows[i]
                if parts and sum(len(r.input_ids) for _, r in parts) + len(row.input_ids) > self.room:
                    yield parts
                    parts = []
                parts.append((of_seed, row))
            yield parts

    def _clip_grad_norm(self, model: Any) -> Tensor:
        self.finish_pending_step()
        norms = [
            self.clip(step, list(track.parameters.values()))
            for track, step in zip(self.tracks, self.stepped, strict=True)
        ]
        self.hand_over(self.stepped)
        for track, step in zip(self.tracks, self.stepped, strict=True):
            track.pending = step
        return torch.stack(norms).max()

    def finish_pending_step(self) -> None:
        for track in self.tracks:
            pending, track.pending = track.pending, None
            if pending is not None:
                self.record(pending, track.metrics)

    def step_ended(self) -> None:
        super().step_ended()
        for track in self.tracks:
            track.rng_after_step = track.rng

    # --- what is saved, and gone on from

    def adapters(self, model: Any, checkpoints: Path) -> list[tuple[Any, Path]]:
        return [(track.model, track.checkpoints) for track in self.tracks]

    def on_state_loaded(self) -> None:
        for track in self.tracks[1:]:
            track.metrics.begin(self.state.global_step / max(self.state.max_steps, 1))

    def save_state(self, name: str, step: int) -> None:
        optimizer = self.optimizer.state_dict()
        for track in self.tracks:
            track.metrics.sync()
            target = track.resume_folder / name
            part = target.with_name(f".{name}.part")
            self.schedule.require_space(track.checkpoints)
            remove(part)
            make_folder(part)
            try:
                write_tree(part, "generators-0", track.rng_after_step or track.rng)
                write_tree(part, "weights", track.parameters)
                write_tree(part, "optimizer", self._share(optimizer, track))
                write_tree(part, "scheduler", self.lr_scheduler.state_dict())
                self.state.save_to_json(str(part / STATE))
                seal(part, step)
                publish(part, target)
            except BaseException:
                remove(part)
                raise

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        for track in self.tracks:
            folder = track.resume_folder / Path(resume_from_checkpoint).name
            load_weights(folder, track.parameters)
            track.rng = track.rng_after_step = read_tree(folder, "generators-0")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Does nothing: each seed has its own."""

    def optimizer_state(self, folder: Path) -> Any:
        """The states of all seeds as the one optimizer's."""
        shares = [read_tree(track.resume_folder / folder.name, "optimizer") for track in self.tracks]
        whole = self.optimizer.state_dict()
        state = {}
        for track, share in zip(self.tracks, shares, strict=True):
            for own, place in enumerate(self._places(track)):
                state[place] = share["state"][own]
        groups = [
            theirs | {"params": ours["params"]}
            for theirs, ours in zip(shares[0]["param_groups"], whole["param_groups"], strict=True)
        ]
        return {"state": state, "param_groups": groups}

    def _share(self, whole: Any, track: Track) -> Any:
        """The optimizer's state of one seed, as its own optimizer would have it."""
        number = {place: own for own, place in enumerate(self._places(track))}
        groups = [
            group | {"params": [number[place] for place in group["params"] if place in number]}
            for group in whole["param_groups"]
        ]
        return {
            "state": {number[i]: value for i, value in whole["state"].items() if i in number},
            "param_groups": groups,
        }

    def _places(self, track: Track) -> list[int]:
        """Where a seed's parameters are in the optimizer, in its order."""
        own = {id(parameter) for parameter in track.parameters.values()}
        every = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return [place for place, parameter in enumerate(every) if id(parameter) in own]


def build_seeds_trainer(job: TrainJob, parts: TrainerParts, room: int) -> SeedsTrainer:
    """The trainer of the job's seed and its others, with the models loaded."""
    seeds = [job.config.training.seed, *(other.seed for other in job.others)]
    arguments = trainer_arguments(job)
    models = build_models(job, seeds)
    trainer = SeedsTrainer(
        model=Together(models),
        args=arguments,
        train_dataset=range(len(job.rows)),  # `WholeStepTrainer` feeds itself
        processing_class=parts.tokenizer,
        callbacks=[parts.callback],
        rows=job.rows,
        setup=job.plan.setup,
        metrics=parts.metrics,
    )
    checkpoints = [job.checkpoints, *(other.checkpoints for other in job.others)]
    metrics = [parts.metrics] + [
        Metrics(
            other.metrics,
            job.plan,
            job.device,
            job.tokens_per_epoch,
            step=parts.step,
            budget=job.budget,
            shown=False,
        )
        for other in job.others
    ]
    tracks = []
    for seed, model, folder, lines in zip(seeds, models, checkpoints, metrics, strict=True):
        outside = rng_states()
        set_seed(seed)  # as a trainer of this seed alone would begin
        sampler = StepSampler(len(job.rows), job.plan.setup.sequences_per_step, seed)
        tracks.append(Track(seed, model, sampler, folder, lines, rng_states()))
        set_rng_states(outside)
    trainer.attach(tracks, room)
    return trainer
