"""How a container works: the run is copied to its own disk, worked on, and published to the volume."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from noesis.cloud.volume.layout import guard_volume
from noesis.cloud.volume.sync import HEAVY, VolumeSync, publishing
from noesis.core.console import complain_traceback
from noesis.core.errors import CapError, NoesisError, RunError, TrainingError
from noesis.core.files import copy_file, copy_folder
from noesis.core.project import Project
from noesis.run.directory import Run, load_run

START = "start one with  modal run scripts/modal_train.py --epochs 3"
NO_MEMORY = (
    "Out of memory: in training_config.yaml set per_device_train_batch_size: 1 and gradient_accumulation_steps: 8, "
    "or take a larger GPU, for example --gpu A100-80GB (modal: judge_gpu for judging)"
)


@dataclass(frozen=True)
class CallResult:
    """What a call of a Modal function returns. An error is a result too: an exception Modal would retry, at a price.

    value: the stage's result; {} where it failed
    code: the command's exit code
    """

    value: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    code: int = 0

    @classmethod
    def failed(cls, error: NoesisError) -> CallResult:
        return cls(error=str(error), code=error.exit_code)

    @property
    def capped(self) -> bool:
        """Whether the run stopped at its cap of USD or minutes."""
        return self.code == CapError.exit_code

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> CallResult:
        return cls(**value)


@dataclass(frozen=True)
class ContainerContext:
    """Where a container works.

    root: the mounted volume with the run
    reload, commit: show here what other containers committed; show others what was written here
    commit_weights: the same for the second volume, with the models' weights
    """

    root: Path
    project: Project
    reload: Callable[[], None]
    commit: Callable[[], None]
    commit_weights: Callable[[], None]


def run_guarded(context: ContainerContext, work: Callable[[], CallResult]) -> CallResult:
    """Do the work on the volume's newest state and commit what it wrote, whatever happens.

    Errors come back as results, since Modal would retry an exception ten times, each at the price of a GPU.
    KeyboardInterrupt, which Modal raises on preemption, is passed on: that call is to be retried.
    """
    context.reload()
    try:
        guard_volume(context.root)
        return work()
    except NoesisError as error:
        return CallResult.failed(error)
    except Exception as error:
        complain_traceback(error)
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, on a GPU
            return CallResult.failed(TrainingError(NO_MEMORY))
        message = f"{type(error).__name__}: {error} (the traceback is in  modal app logs)"
        return CallResult.failed(RunError(message))
    finally:
        context.commit()
        context.commit_weights()


@contextmanager
def staged_run(context: ContainerContext, *, link: tuple[str, ...] = HEAVY) -> Iterator[Run]:
    """The run on this container's own disk, published to the volume during the block and at its end."""
    name = load_run(context.root).manifest.output_name
    with tempfile.TemporaryDirectory(prefix="noesis-") as folder:
        sync = VolumeSync(context.root, Path(folder) / name, context.commit)
        sync.bring(link=link)
        with publishing(sync):
            yield load_run(sync.local)


def copy_of_run(root: Path, target: Path, epoch: str | None = None) -> Path:
    """Copy what scoring and answering need: settings, data, and the adapter of `epoch` or the one the run uses."""
    run = load_run(root)
    for name in ("manifest.json", "config.json"):
        copy_file(root / name, target / name)
    copy_folder(run.data, target / "data")
    adapter = run.checkpoints / epoch if epoch else run.adapter()
    copy_folder(adapter, target / "checkpoints" / adapter.name)
    return target


def require_trained_run(root: Path) -> None:
    """Raise RunError if the volume has no run, or none with a finished epoch, to judge or merge."""
    if not (root / "manifest.json").is_file():
        raise RunError(f"the volume holds no run yet: {START}")
    if not list((root / "checkpoints").glob("epoch_[0-9]*")):
        raise RunError(f"the run on the volume has no finished epoch yet: {START}")
