"""What trainers on pairs of answers share: DPO (`preference_trainer.py`) and reward models (`training/reward/`)."""

from __future__ import annotations

from noesis.core.files import write_jsonl
from noesis.llm.token_rows import TokenPair
from noesis.training.backends.stepwise import WholeStepTrainer

HELD_OUT_FIGURES = ("held_out_reward_accuracy", "held_out_reward_margin", "held_out_loss")


class PairTrainer(WholeStepTrainer):
    """Trains on pairs that are tokens already, and measures held-out pairs after each epoch."""

    rows: list[TokenPair]

    def measure_held_out(self) -> dict[str, float]:
        """Figures of the held-out pairs: `HELD_OUT_FIGURES`; empty without such pairs, or after a signal."""
        raise NotImplementedError

    def measure_after_step(self, step: int) -> dict[str, float]:
        return self.measure_held_out() if step % len(self.sampler) == 0 else {}

    def on_state_loaded(self) -> None:
        """Make the end-of-epoch measurement that a signal prevented."""
        lines = self.metrics.earlier_lines
        if lines and lines[-1]["step"] % len(self.sampler) == 0 and HELD_OUT_FIGURES[0] not in lines[-1]:
            lines[-1] |= self.measure_held_out()
            write_jsonl(self.metrics.file, lines)

    def locate(self, members: list[int]) -> str:
        return ", ".join(self.rows[m].name for m in members)
