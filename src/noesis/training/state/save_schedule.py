"""When to save and when to stop: the one place where the run's clock meets its agreed cap. Torch-free.

Saving interrupts training, so saves are spaced such that they stay below 3% of the run, whatever interval in minutes
was configured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from noesis.core.config import SaveEvery
from noesis.core.files import require_space
from noesis.core.i18n import _
from noesis.core.signals import Interrupt
from noesis.planning.budget import Budget

SHARE = 0.03  # of the run, for saving
CPU_INTERVAL_S, GPU_INTERVAL_S = 40.0, 300.0  # between saves where nothing was configured; a GPU stands still meanwhile
EXIT_SECONDS = 2.0  # from the last save to the end of the process
WRITE_BYTES_PER_S = 150e6  # for the first save, before one was measured: a slow disk, hashing included


class SaveSchedule:
    """The schedule of one training process.

    Args:
        every: `save_every` of training_config.yaml.
        step_seconds: as planned, until a step was measured.
        state_bytes: size of one saved state.
        processes: several decide by the number of steps alone, so that all of them decide alike.
    """

    def __init__(
        self,
        every: SaveEvery,
        *,
        on_gpu: bool,
        step_seconds: float,
        state_bytes: float,
        steps: int,
        processes: int = 1,
        budget: Budget | None = None,
        interrupt: Interrupt | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.steps, self.state_bytes = steps, state_bytes
        self.budget, self.interrupt, self.clock = budget, interrupt or Interrupt(), clock
        self.step_seconds = step_seconds
        self.save_seconds = state_bytes / WRITE_BYTES_PER_S
        self.seconds_in_saves, self.saves = 0.0, 0
        self.started = self.last_step = self.last_save = clock()
        self.interval = every.seconds or (GPU_INTERVAL_S if on_gpu else CPU_INTERVAL_S)
        # The state after the last step only serves adding epochs, and the adapter is saved seconds later anyway: on a
        # GPU it is saved only where that is cheap, by the plan's figures, so that several processes decide alike.
        self.save_last = not on_gpu or self.save_seconds <= SHARE * step_seconds * steps
        self.every_steps = every.steps or (max(1, round(self.interval / step_seconds)) if processes > 1 else None)

    def begin(self) -> None:
        """Called when the first step starts: the model is loaded."""
        self.started = self.last_step = self.last_save = self.clock()

    @property
    def interrupted(self) -> bool:
        """Whether a signal requested a stop."""
        return self.interrupt.number is not None

    def step_ended(self, step: int) -> None:
        """Measure a step. The longest of the last few counts: a step that exceeds the cap is not excused by a mean."""
        now = self.clock()
        took, self.last_step = now - self.last_step, now
        self.step_seconds = max(took, 0.8 * self.step_seconds) if step > 1 else took

    def should_save(self, step: int) -> bool:
        """Whether to save after this step."""
        if self.every_steps and step % self.every_steps == 0:
            return True
        if step >= self.steps:
            return self.save_last
        if self.every_steps:
            return False
        cheap_after = self.save_seconds / SHARE if self.saves else 0.0
        return self.clock() - self.last_save >= max(self.interval, cheap_after)

    def saved(self, seconds: float) -> None:
        """Record that a save took `seconds`."""
        self.saves, self.seconds_in_saves = self.saves + 1, self.seconds_in_saves + seconds
        self.save_seconds = max(seconds, 0.5 * self.save_seconds)
        self.last_save = self.last_step = self.clock()

    def near_cap(self) -> bool:
        """Whether another step, a save and the exit might exceed the cap."""
        needed = 1.2 * self.step_seconds + 1.5 * self.save_seconds + EXIT_SECONDS
        return self.budget is not None and self.budget.left_seconds() < needed

    def require_space(self, folder: Path) -> None:
        """Refuse to save where the disk can't hold a state.

        Raises:
            NoesisError: naming the folder and what is free there.
        """
        require_space(folder, self.state_bytes, _("saving the trainer's state"))

    def save_share(self) -> float:
        """Share of the training time so far that saving took."""
        return self.seconds_in_saves / max(self.clock() - self.started, 1e-9)
