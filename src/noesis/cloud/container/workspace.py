"""Where a container works: the run brought to local disk, work done, results published."""

from __future__ import annotations

import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noesis.cloud.volume.sync import HEAVY, VolumeSync, publishing
from noesis.core.errors import CapError, NoesisError, RunError, TrainingError
from noesis.core.project import Project
from noesis.run.directory import Run, load_run

CallResult = dict[str, Any]


def failed(error: Exception) -> CallResult:
    """An error as a result: as an exception Modal would try the call again, at a price."""
    return {"error": str(error), "code": getattr(error, "exit_code", 1), "capped": isinstance(error, CapError)}


NO_MEMORY = (
    "Out of memory: in training_config.yaml set per_device_train_batch_size: 1 and gradient_accumulation_steps: 8, or take a larger card, "
    "for example --gpu A100-80GB (modal: judge_gpu for judging)"
)


@dataclass(frozen=True)
class ContainerContext:
    """Where a container works.

    root: the mounted volume; reload, commit: of that volume
    keep: commits the second volume, with the models' weights
    """

    root: Path
    project: Project
    reload: Callable[[], None]
    commit: Callable[[], None]
    keep: Callable[[], None]


def copy_of_run(root: Path, target: Path, epoch: str | None = None) -> Path:
    """What scoring and answering need of the run, with one adapter: that of `epoch`, or the one that the run uses."""
    target.mkdir()
    for name in ("manifest.json", "config.json"):
        shutil.copy2(root / name, target / name)
    shutil.copytree(root / "data", target / "data")
    adapter = root / "checkpoints" / epoch if epoch else load_run(root).adapter()
    shutil.copytree(adapter, target / "checkpoints" / adapter.name)
    return target


def run_guarded(place: ContainerContext, work: Callable[[], CallResult]) -> CallResult:
    """See what others committed, do the work, commit it whatever happens. An error comes back as a result.

    As an exception Modal would try it again, ten times, each at the price of a card; what is taken away (KeyboardInterrupt) is tried again.
    """
    place.reload()
    try:
        return work()
    except NoesisError as error:
        return failed(error)
    except Exception as error:
        traceback.print_exc()
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, of a card
            return failed(TrainingError(NO_MEMORY))
        return failed(RunError(f"{type(error).__name__}: {error} (its traceback is in  modal app logs)"))
    finally:
        place.commit()
        place.keep()


@contextmanager
def staged_run(place: ContainerContext, *, link: tuple[str, ...] = HEAVY) -> Iterator[Run]:
    """The run on this container's own disk, published to the volume while it is worked on and at the end."""
    name = load_run(place.root).manifest.output_name
    with tempfile.TemporaryDirectory(prefix="noesis-") as folder:
        staging = VolumeSync(place.root, Path(folder) / name, place.commit)
        staging.bring(link=link)
        with publishing(staging):
            yield load_run(staging.local)


def _require_run(place: ContainerContext) -> None:
    """Refuse to judge or merge what was never trained, in the words of the cloud."""
    if not (place.root / "manifest.json").is_file():
        raise RunError("the volume holds no run yet: type  modal run scripts/modal_train.py --epochs 3")
    if not list((place.root / "checkpoints").glob("epoch_[0-9]*")):
        raise RunError(
            "the run on the volume has no finished epoch yet: type  modal run scripts/modal_train.py --epochs 3"
        )
