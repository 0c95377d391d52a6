"""Makes a trainer of transformers resume exactly where it was stopped; its state is read without pickle.

It also ends training between two steps: at a signal, whose partial accumulation is dropped, or before the agreed cap
would be exceeded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from noesis.core.files import make_folder
from noesis.core.rooted import remove
from noesis.training.state.checkpoint import STATE, publish, read_tree, rng_states, seal, set_rng_states, write_tree
from noesis.training.state.save_schedule import SaveSchedule


class StopTraining(Exception):
    """Training ends here, between whole steps."""


class Resumable:
    """Mixed in before a `transformers.Trainer`; `schedule` and `sync_metrics` are set before `train` is called."""

    writes_metrics = False  # whether the trainer writes its own metrics; else the recorder does
    schedule: SaveSchedule
    sync_metrics: Callable[[], None]  # flushes the metrics to disk before a state that belongs to them
    _rng_states: Any = None  # as they were after the last whole step
    _saved_step = -1

    # --- hooks

    def begin_epoch(self, epoch: int) -> None:
        """Called at the start of epoch `epoch` (from 0); transformers' own sampler does not need it."""

    def on_state_loaded(self) -> None:
        """Called before the first step, once the saved state, if any, is loaded."""

    def finish_pending_step(self) -> None:
        """Write the metrics of a step that are still on the GPU, if any."""

    def step_ended(self) -> None:
        """A whole step was applied; called before anything else draws a random number."""
        self._rng_states = rng_states()
        self.schedule.step_ended(self.state.global_step)  # type: ignore[attr-defined]

    def adapters(self, model: Any, checkpoints: Path) -> list[tuple[Any, Path]]:
        """The models that are trained, each with the folder that receives its `epoch_0 …`."""
        return [(model, checkpoints)]

    # --- stopping

    def stop_if_asked(self, *, between_steps: bool = False) -> None:
        """End here after a signal, or if another step and a save might exceed the cap.

        Raises:
            StopTraining: what was accumulated since the last whole step is dropped.
        """
        processes = self.accelerator.num_processes  # type: ignore[attr-defined]
        if processes > 1:
            if between_steps and self._any_process(self.schedule.interrupted or self.schedule.near_cap()):
                raise StopTraining
        elif self.schedule.interrupted or (between_steps and self.schedule.near_cap()):
            raise StopTraining

    def interruptible(self) -> AbstractContextManager[None]:
        """Around the passes of a step: after a signal they need not end.

        Several processes must end them, since they wait for one another.
        """
        alone = self.accelerator.num_processes == 1  # type: ignore[attr-defined]
        return self.schedule.interrupt.may_break() if alone else nullcontext()

    def _any_process(self, mine: bool) -> bool:
        """Whether any process wants to stop: all must, at the same step."""
        import torch

        flag = torch.tensor(float(mine), device=self.accelerator.device)  # type: ignore[attr-defined]
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag.item() > 0)

    def save_last_step(self) -> None:
        """Save the last whole step unless it is saved; nothing if there is none."""
        if self.state.global_step > 0 and self._saved_step != self.state.global_step:  # type: ignore[attr-defined]
            self._save_checkpoint(None, None)

    # --- what transformers calls

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        trainer: Any = self
        started = time.monotonic()
        self.finish_pending_step()
        self.sync_metrics()
        step = trainer.state.global_step
        self.save_state(f"checkpoint-{step}", step)
        self._saved_step = step
        self.schedule.saved(time.monotonic() - started)

    def save_state(self, name: str, step: int) -> None:
        """Publish the state after the last whole step as folder `name`."""
        trainer: Any = self
        main_process = trainer.accelerator.is_main_process
        target = Path(trainer.args.output_dir) / name
        part = target.with_name(f".{target.name}.part")
        if main_process:
            self.schedule.require_space(target.parent)
            remove(part)
            make_folder(part)
        try:
            trainer.accelerator.wait_for_everyone()
            write_tree(part, f"generators-{trainer.accelerator.process_index}", self._rng_states or rng_states())
            if main_process:
                write_tree(part, "weights", self._trained_parameters())
                write_tree(part, "optimizer", trainer.optimizer.state_dict())
                write_tree(part, "scheduler", trainer.lr_scheduler.state_dict())
                trainer.state.save_to_json(str(part / STATE))
            trainer.accelerator.wait_for_everyone()
            if main_process:
                seal(part, step)
                publish(part, target)
        except BaseException:
            remove(part)
            raise
        trainer.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(Path(resume_from_checkpoint), self._trained_parameters())

    def _trained_parameters(self) -> dict[str, Any]:
        trainer: Any = self
        model = trainer.accelerator.unwrap_model(trainer.model)
        return {name: p for name, p in model.named_parameters() if p.requires_grad}

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        trainer: Any = self
        folder = Path(checkpoint)
        trainer.optimizer.load_state_dict(self.optimizer_state(folder))
        scheduler = getattr(trainer.lr_scheduler, "scheduler", trainer.lr_scheduler)
        scheduler.load_state_dict(read_tree(folder, "scheduler"))
        # the rate of the next step by this run's own schedule: the stored one, or that of a run with more epochs
        groups = trainer.optimizer.param_groups
        for group, base, rule in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            group["lr"] = base * rule(scheduler.last_epoch)
        self._saved_step = trainer.state.global_step

    def optimizer_state(self, folder: Path) -> Any:
        """The optimizer's state as a saved one has it."""
        return read_tree(folder, "optimizer")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        trainer: Any = self
        name = f"generators-{trainer.accelerator.process_index}"
        if (Path(checkpoint) / f"{name}.json").is_file():  # a run resumed on more GPUs has no state for the new ones
            self._rng_states = read_tree(Path(checkpoint), name)
            set_rng_states(self._rng_states)

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Does nothing: gradients are never scaled here, so there is no scaler."""


def load_weights(folder: Path, parameters: dict[str, Any]) -> None:
    """Copy the trained weights of the saved state in `folder` into `parameters`, by name."""
    import torch

    weights = read_tree(folder, "weights")
    if weights.keys() != parameters.keys():
        raise RuntimeError(f"{folder} belongs to another adapter")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
