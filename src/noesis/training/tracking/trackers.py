"""Experiment trackers (`report_to` in training_config.yaml), by transformers' own callbacks.

They are told what metrics.jsonl is told, a step at a time, and the figures of later stages. Each is set up as its
makers say (WANDB_API_KEY, MLFLOW_TRACKING_URI, …); TensorBoard writes into the run's folder `tensorboard/`. A tracker
that fails is left out from then on: no training ends because a chart could not be drawn.

https://huggingface.co/docs/transformers/main_classes/callback
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from noesis.core.config import Config
from noesis.core.console import complain
from noesis.core.errors import UsageError
from noesis.core.i18n import _
from noesis.run.manifest_file import read_manifest

FOLDER = "tensorboard"  # in the run directory
LONGEST_REASON = 200  # characters


class Trackers:
    """The trackers of one run, while something reports to them."""

    def __init__(self, names: Sequence[str], config: Config, run: Path, arguments: Any) -> None:
        """Start them.

        Args:
            run: the run directory, which names the run.
            arguments: `transformers.TrainingArguments`, which trackers keep as the run's settings.
        """
        from transformers import TrainerControl, TrainerState
        from transformers.integrations import get_reporting_integration_callbacks

        arguments.run_name, arguments.project = run.name, config.training.output_name
        self._arguments, self._state, self._control = arguments, TrainerState(), TrainerControl()
        self._environment = {name: value for name, value in _wandb(config, run).items() if name not in os.environ}
        os.environ.update(self._environment)
        self._callbacks: dict[str, Any] = {}
        for name, make in zip(names, get_reporting_integration_callbacks(list(names)), strict=True):
            with self._forgiven(name):
                self._callbacks[name] = make()
        if "tensorboard" in self._callbacks:
            self._callbacks["tensorboard"].logging_dir = str(run / FOLDER)
        self._tell("on_train_begin")

    def log(self, figures: Mapping[str, float], *, step: int, epoch: float | None = None) -> None:
        """Report figures of a step; names that begin with `eval_` are of measurements, the others of training."""
        self._state.global_step, self._state.epoch = step, epoch
        self._tell("on_log", logs=dict(figures))

    def close(self) -> None:
        """Flush and end them."""
        self._tell("on_train_end")
        for name in self._environment:
            os.environ.pop(name, None)

    def _tell(self, event: str, **what: Any) -> None:
        for name, callback in list(self._callbacks.items()):
            with self._forgiven(name):
                getattr(callback, event)(self._arguments, self._state, self._control, **what)

    @contextmanager
    def _forgiven(self, name: str) -> Iterator[None]:
        """The boundary to other people's programs: what fails in them is said once, and they are left out."""
        try:
            yield
        except Exception as error:
            self._callbacks.pop(name, None)
            reason = " ".join(str(error).split())[:LONGEST_REASON]
            complain(
                _(
                    "{name} failed and is told nothing more of this run ({kind}: {reason})",
                    name=name,
                    kind=type(error).__name__,
                    reason=reason,
                )
            )


def _wandb(config: Config, run: Path) -> dict[str, str]:
    """What W&B takes from the environment alone, so that all stages of a run, and a resumed training, are one run."""
    found = {"WANDB_PROJECT": config.training.output_name, "WANDB_SILENT": "true"}
    if (manifest := read_manifest(run)) is not None:
        own = hashlib.sha256(f"{run.resolve()} {manifest.created}".encode()).hexdigest()[:16]
        found |= {"WANDB_RUN_ID": own, "WANDB_RESUME": "allow"}
    return found


def require_trackers(names: Sequence[str]) -> None:
    """Check that each tracker is installed.

    Raises:
        UsageError: one is not; the message has the command.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UsageError(
                _(
                    "report_to in training_config.yaml names {name}, which is not installed: run  pip install {name}  "
                    "or take it out of the list",
                    name=name,
                )
            )


def report(names: Sequence[str], config: Config, run: Path, lines: Iterable[tuple[int, Mapping[str, float]]]) -> None:
    """Report figures that were found without a trainer.

    Args:
        lines: (step, figures).
    """
    from transformers import TrainingArguments

    training = config.training
    arguments = TrainingArguments(
        output_dir=str(run),
        learning_rate=training.learning_rate,
        num_train_epochs=training.num_train_epochs,
        seed=training.seed,
        use_cpu=True,
        report_to=[],
    )
    trackers = Trackers(names, config, run, arguments)
    for step, figures in lines:
        trackers.log(figures, step=step)
    trackers.close()
