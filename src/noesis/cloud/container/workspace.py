"""How a container works: the run is copied to its own disk, worked on, and published to the volume."""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from noesis.cloud.container.spending import read_charges, write_charges
from noesis.cloud.request import modal_run
from noesis.cloud.volume.layout import guard_volume
from noesis.cloud.volume.sync import HEAVY, VolumeSync, publishing
from noesis.cloud.volume.writer import Writer, this_input
from noesis.core.console import complain, complain_traceback
from noesis.core.errors import CapError, NoesisError, RunError, TrainingError
from noesis.core.files import copy_file, copy_folder
from noesis.core.i18n import N_, _, in_english
from noesis.core.project import Project
from noesis.run.directory import Run, load_run
from noesis.run.ledger import LedgerEntry

BESIDE = "containers"  # in the ledger: starts, downloads, waiting
NO_MEMORY = N_(
    "Out of memory: in training_config.yaml set per_device_train_batch_size: 1 and gradient_accumulation_steps: 8, "
    "or take a larger GPU, for example --gpu A100-80GB (modal: judge_gpu for judging)"
)


@dataclass(frozen=True)
class CallResult:
    """What a call of a Modal function returns. An error is a result too: an exception Modal would retry, at a price.

    value: the stage's result; {} where it failed
    code: the command's exit code
    lost: the container gave no result: it was killed, timed out, or was cancelled
    """

    value: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    code: int = 0
    lost: bool = False

    @classmethod
    def failed(cls, error: NoesisError) -> CallResult:
        return cls(error=str(error), code=error.exit_code)

    @property
    def capped(self) -> bool:
        """Whether the run stopped at its cap of USD or minutes."""
        return self.code == CapError.exit_code

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = in_english(asdict(self))
        return found

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> CallResult:
        return cls(**value)


@dataclass(frozen=True)
class ContainerContext:
    """Where a container works.

    root: the mounted volume with the run
    reload, commit: show here what other containers committed; show others what was written here
    commit_weights: the same for the second volume, with the models' weights
    began: when this container took its call, by the monotonic clock
    """

    root: Path
    project: Project
    reload: Callable[[], None]
    commit: Callable[[], None]
    commit_weights: Callable[[], None]
    began: float = field(default_factory=time.monotonic)


def run_guarded(context: ContainerContext, work: Callable[[], CallResult]) -> CallResult:
    """Do the work on the volume's newest state and commit what it wrote, whatever happens.

    Errors come back as results, since Modal would retry an exception ten times, each at the price of a GPU.
    KeyboardInterrupt, which Modal raises on preemption, is passed on: that call is to be retried.
    """
    try:
        context.reload()
        guard_volume(context.root)
        result = work()
    except NoesisError as error:
        result = CallResult.failed(error)
    except Exception as error:
        complain_traceback(error)
        what = f"{type(error).__name__}: {error}"
        message = N_("{what} (the traceback is in  modal app logs)", what=what)
        result = CallResult.failed(RunError(message))
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, on a GPU
            result = CallResult.failed(TrainingError(NO_MEMORY))
    except BaseException:
        _commit_all(context)
        raise
    return _commit_all(context) or result


def _commit_all(context: ContainerContext) -> CallResult | None:
    """Commit both volumes; a failure, where what was written here could not be committed."""
    try:
        context.commit()
    except NoesisError as error:
        return CallResult.failed(error)
    try:
        context.commit_weights()
    except NoesisError as error:  # only a download that the next container repeats
        complain(_("  the weights were not kept: {error}", error=error))
    return None


@contextmanager
def staged_run(context: ContainerContext, turn: float = 0.0, *, link: tuple[str, ...] = HEAVY) -> Iterator[Run]:
    """The run on this container's own disk, published to the volume during the block and at its end.

    Args:
        turn: when the orchestrator started this call: of two that write the same run, the later goes on.

    Raises:
        SupersededError: a newer container writes the run.
    """
    name = load_run(context.root).manifest.output_name
    with tempfile.TemporaryDirectory(prefix="noesis-") as folder:
        sync = VolumeSync(context.root, Path(folder) / name, context.commit)
        writer = Writer(context.root, context.commit, context.reload, turn, this_input())
        try:
            writer.take()
            sync.bring(link=link)
        except BaseException:
            writer.leave()
            raise
        with publishing(sync, writer), _metered(context, sync.local):
            yield load_run(sync.local)


@contextmanager
def _metered(context: ContainerContext, local: Path) -> Iterator[None]:
    """Book what containers cost that left nothing in the ledger, and what this one does beside its stages."""
    run = load_run(local)
    charges = read_charges(context.root)
    if charges:
        run.book(charges)
        write_charges(context.root, ())
    known = {entry.id for entry in run.manifest.ledger}
    started = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        yield
    finally:
        run = load_run(local)
        own = [entry for entry in run.manifest.ledger if entry.id not in known]
        idle = time.monotonic() - context.began - sum(entry.seconds for entry in own)
        if own and idle > 0:
            entry = LedgerEntry(f"{uuid.uuid4().hex}", BESIDE, started, own[-1].usd_per_s, 0.0, 0.0)
            run.book([entry.after(idle, "done")])


def copy_of_run(root: Path, target: Path, epoch: str | None = None) -> Path:
    """Copy what scoring and answering need: settings, data, and the adapter of `epoch` or the one the run uses."""
    run = load_run(root)
    for name in ("manifest.json", "config.json"):
        copy_file(root / name, target / name)
    copy_folder(run.data, target / "data")
    adapter = run.checkpoints / epoch if epoch else run.adapter()
    copy_folder(adapter, target / adapter.relative_to(run.path))
    return target


def require_trained_run(root: Path) -> None:
    """Raise RunError if the volume has no run, or none with a finished epoch, to judge or merge."""
    if not (root / "manifest.json").is_file():
        raise RunError(
            _("the volume holds no run yet: start one with  {modal_run}", modal_run=modal_run("--epochs", "3"))
        )
    if not list((root / "checkpoints").glob("epoch_[0-9]*")):
        raise RunError(
            _(
                "the run on the volume has no finished epoch yet: start one with  {modal_run}",
                modal_run=modal_run("--epochs", "3"),
            )
        )
