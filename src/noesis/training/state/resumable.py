"""What makes a trainer of transformers (SFT now, DPO later) go on exactly where it was stopped: its state saved whole, read without pickle.

It also ends training between two steps: at a signal, whose partial accumulation is dropped, or before an agreed cap would be passed.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from noesis.training.state.checkpoint import STATE, generators, publish, read_tree, seal, set_generators, write_tree
from noesis.training.state.save_schedule import SaveSchedule


class StopTraining(Exception):
    """Training ends here, between whole steps."""


class Resumable:
    """Mixed in before a `transformers.Trainer`; `pace` and `flush` are set before `train` is called."""

    pace: SaveSchedule
    flush: Callable[[], None]  # what belongs beside a saved state is on the disk after it
    _generators: Any = None  # as they were after the last whole step
    _saved_step = -1

    def begun(self) -> None:
        """The saved state, if any, is loaded, and the first step comes next."""

    def step_ended(self) -> None:
        """A whole step was applied; called before anything else draws a random number."""
        self._generators = generators()
        self.pace.step_ended(self.state.global_step)  # type: ignore[attr-defined]

    def stop_if_asked(self, *, between_steps: bool = False) -> None:
        """End here if someone asked for it, or if another step and a save might pass the cap.

        Raises:
            Stopped: between micro-batches; what was accumulated is dropped with it.
        """
        cards = self.accelerator.num_processes  # type: ignore[attr-defined]
        if cards > 1:
            if between_steps and self._any_card(self.pace.interrupted or self.pace.near_cap()):
                raise StopTraining
        elif self.pace.interrupted or (between_steps and self.pace.near_cap()):
            raise StopTraining

    def interruptible(self) -> AbstractContextManager[None]:
        """Around the passes of a step: after a signal they need not end. Several cards must, since they wait for one another."""
        alone = self.accelerator.num_processes == 1  # type: ignore[attr-defined]
        return self.pace.interrupt.may_break() if alone else nullcontext()

    def _any_card(self, mine: bool) -> bool:
        """Whether any card wants to stop: they must do it at the same step."""
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
        me: Any = self
        started = time.monotonic()
        me.settle()
        self.flush()
        step, first = me.state.global_step, me.accelerator.is_main_process
        target = Path(me.args.output_dir) / f"checkpoint-{step}"
        part = target.with_name(f".{target.name}.part")
        if first:
            self.pace.require_space(target.parent)
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        try:
            me.accelerator.wait_for_everyone()
            write_tree(part, f"generators-{me.accelerator.process_index}", self._generators or generators())
            if first:
                weights = {
                    name: p for name, p in me.accelerator.unwrap_model(me.model).named_parameters() if p.requires_grad
                }
                write_tree(part, "weights", weights)
                write_tree(part, "optimizer", me.optimizer.state_dict())
                write_tree(part, "scheduler", me.lr_scheduler.state_dict())
                me.state.save_to_json(str(part / STATE))
            me.accelerator.wait_for_everyone()
            if first:
                seal(part, step)
                publish(part, target)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        me.accelerator.wait_for_everyone()
        self._saved_step = step
        self.pace.saved(time.monotonic() - started)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        import torch

        me: Any = self
        weights = read_tree(Path(resume_from_checkpoint), "weights")
        parameters = {
            name: p for name, p in me.accelerator.unwrap_model(me.model).named_parameters() if p.requires_grad
        }
        if weights.keys() != parameters.keys():
            raise RuntimeError(f"{resume_from_checkpoint} is of another adapter")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(weights[name])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        me: Any = self
        folder = Path(checkpoint)
        me.optimizer.load_state_dict(read_tree(folder, "optimizer"))
        scheduler = getattr(me.lr_scheduler, "scheduler", me.lr_scheduler)
        scheduler.load_state_dict(read_tree(folder, "scheduler"))
        # the rate of the next step by this run's own schedule: the same number, or that of a run with more epochs
        for group, base, rule in zip(me.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            group["lr"] = base * rule(scheduler.last_epoch)
        self._saved_step = me.state.global_step

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        me: Any = self
        folder, index = Path(checkpoint), me.accelerator.process_index
        if (folder / f"generators-{index}.json").is_file():  # a run that goes on with more cards draws anew on those
            self._generators = read_tree(folder, f"generators-{index}")
            set_generators(self._generators)

    def _load_scaler(self, checkpoint: str | None) -> None:
        """There is none: gradients are never scaled here."""
