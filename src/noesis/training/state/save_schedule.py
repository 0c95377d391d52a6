"""When to save and when to stop: the one place where the run's clock meets its agreed cap. Torch-free.

Saving holds up training, so it is spaced out such that it stays below 3% of the run, whatever was asked for in minutes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from noesis.core.config import SaveEvery
from noesis.core.files import require_space
from noesis.core.signals import Interrupt
from noesis.planning.budget import Budget

SHARE = 0.03  # of the run, for saving
SECONDS, CARD_SECONDS = (
    40.0,
    300.0,
)  # between saves where nothing was asked for: on a processor, on a card (each save holds it up)
EXIT_SECONDS = 2.0  # from the last save to the end of the process
WRITE_BYTES_PER_S = 150e6  # of a first save, before one was measured: a slow disk, hashing counted


class SaveSchedule:
    """Of one training process.

    Args:
        every: `save_every` of training_config.yaml.
        card: training on one.
        step_seconds: as planned, until one was measured.
        state_bytes: of one saved state.
        cards: several decide by steps alone, so that all of them decide alike.
    """

    def __init__(
        self,
        every: SaveEvery,
        *,
        card: bool,
        step_seconds: float,
        state_bytes: float,
        steps: int,
        cards: int = 1,
        budget: Budget | None = None,
        interrupt: Interrupt | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.every, self.steps, self.state_bytes = every, steps, state_bytes
        self.budget, self.interrupt, self.clock = budget, interrupt or Interrupt(), clock
        self.step_seconds = step_seconds
        self.save_seconds = state_bytes / WRITE_BYTES_PER_S
        self.in_saves, self.saves = 0.0, 0
        self.started = self.last_step = self.last_save = clock()
        seconds = every.seconds or (CARD_SECONDS if card else SECONDS)
        self.interval = seconds
        # After the last step the state is only for adding epochs, seconds before the adapter is saved anyway: on a card only
        # where that is cheap, by the plan's figures, so that several cards decide alike.
        self.save_last = not card or self.save_seconds <= SHARE * step_seconds * steps
        self.every_steps = every.steps or (max(1, round(seconds / step_seconds)) if cards > 1 else None)

    def begin(self) -> None:
        """The first step starts now (loading and compiling lie behind)."""
        self.started = self.last_step = self.last_save = self.clock()

    @property
    def interrupted(self) -> bool:
        return self.interrupt.number is not None

    def step_ended(self, step: int) -> None:
        """Measure a step: the longest of the last few counts, since a step that passes the cap is not excused by a mean."""
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
        rest = self.save_seconds / SHARE if self.saves else 0.0
        return self.clock() - self.last_save >= max(self.interval, rest)

    def saved(self, seconds: float) -> None:
        self.saves, self.in_saves = self.saves + 1, self.in_saves + seconds
        self.save_seconds = max(seconds, 0.5 * self.save_seconds)
        self.last_save = self.last_step = self.clock()

    def near_cap(self) -> bool:
        """Whether another step, a save and leaving might pass what was agreed."""
        return (
            self.budget is not None
            and self.budget.left_seconds() < 1.2 * self.step_seconds + 1.5 * self.save_seconds + EXIT_SECONDS
        )

    def require_space(self, folder: Path) -> None:
        require_space(folder, self.state_bytes, "saving the trainer's state")

    def share(self) -> float:
        """Of the training time so far, what saving took."""
        return self.in_saves / max(self.clock() - self.started, 1e-9)
