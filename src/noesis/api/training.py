"""`plan` and `train`. Both take settings as keyword arguments: `model="smollm2"`, `epochs=1`, … (`Settings`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from noesis.constitution.document import load_constitution
from noesis.core.console import heading
from noesis.core.errors import UsageError
from noesis.core.i18n import _
from noesis.core.libraries import silence_libraries
from noesis.core.overrides import Overrides, Settings
from noesis.core.project import Project
from noesis.dataset.load import read_train_export
from noesis.llm.addresses import spare_loopback_from_proxies
from noesis.pipeline.registry import PipelineOptions, run_all, training_stages
from noesis.pipeline.stages.plan import measure_speed, plan_without_run
from noesis.pipeline.start_run import from_exports, from_sources, start_run
from noesis.planning.plan import Plan
from noesis.run.directory import Run
from noesis.run.lock import locked
from noesis.training.backends.nodes import leading, on_all
from noesis.training.distributed import Nodes


def plan(
    project: Project,
    *,
    exports: str | Path | None = None,
    gpu: str | None = None,
    gpus: int | None = None,
    measure: bool = False,
    **settings: Unpack[Settings],
) -> Plan:
    """What a training would do, and the memory, time and money that it should take; nothing is trained.

    >>> plan = noesis.plan(project, epochs=2)
    >>> plan.steps > 0, plan.seconds > 0, plan.usd
    (True, True, 0.0)

    Args:
        exports: a folder with train.jsonl, as `noesis data export` writes it; default: the project's examples.
        gpu: plan for this GPU, which need not be here: `L40S`, `A100-80GB`, …; default: this machine.
        gpus: how many; default: all that are here, or 1.
        measure: train a few steps first; their speed goes into this and later plans.

    Raises:
        TrainingError: it does not fit into memory; the message names the nearest plan that does.
        UsageError: an unknown GPU.
    """
    found, require_fit = draft(project, exports=exports, gpu=gpu, gpus=gpus, measure=measure, **settings)
    require_fit()
    return found


def draft(
    project: Project,
    *,
    exports: str | Path | None = None,
    gpu: str | None = None,
    gpus: int | None = None,
    measure: bool = False,
    **settings: Unpack[Settings],
) -> tuple[Plan, Callable[[], None]]:
    """As `plan`, whether it fits or not; the function raises the TrainingError if it does not."""
    if measure and gpu is not None:
        raise UsageError(_("--measure measures this machine, and --gpu {gpu} is another: give one of the two", gpu=gpu))
    config = Overrides(**settings).configure(project)
    constitution = load_constitution(project.constitution)
    if exports is None:
        dataset = from_sources(project, config)
    else:
        dataset = read_train_export(project, config, constitution, Path(exports))
    if measure:
        measure_speed(config, dataset, constitution)
    return plan_without_run(config, dataset, constitution, gpu=gpu, gpus=gpus)


def train(
    project: Project,
    run: str | Path | None = None,
    *,
    exports: str | Path | None = None,
    judges: Sequence[str] | None = None,
    fresh: bool = False,
    resume: bool = False,
    fork: str | Path | None = None,
    nodes: Nodes | None = None,
    **settings: Unpack[Settings],
) -> Run:
    """Train, and choose the epoch and the strength at which its adapter is used.

    The same call goes on where it was stopped. Another run in the folder is moved to .archive/; nothing is deleted.

    >>> run = noesis.train(project, "runs/mine", epochs=1)
    >>> run.adapter().name, run.state("train")
    ('epoch_0', 'done')

    Args:
        run: its folder; default: runs/<output_name> in the project.
        exports: a folder with train.jsonl and eval.jsonl; default: the project's examples, checked and split.
        judges: SPECs of judges that choose the epoch; default: those that the project seats; (): the held-out examples.
        fresh: start a new run even if this one is there.
        resume: refuse if another run is there; more epochs are added to this one.
        fork: start from the adapter of this run.
        nodes: this machine's place where several train together; default: it is alone.

    Raises:
        DataError: examples that must not be trained on.
        TrainingError: it does not fit into memory, or a loss that is not finite.
        CapError: `max_usd` or `max_minutes` is reached; a higher one goes on.
        KeyboardInterrupt: stopped; the last whole step is saved.
    """
    silence_libraries()
    spare_loopback_from_proxies()
    config = Overrides(**settings).configure(project)
    path = project.runs / config.training.output_name if run is None else Path(run)
    nodes = nodes or Nodes()
    with locked(path), leading(nodes):
        what = _("the examples, checked and split") if exports is None else _("the exported examples, checked again")
        heading(1, 1 + len(training_stages()), "data", what)
        data = from_sources(project, config) if exports is None else from_exports(Path(exports), project)
        parent = None if fork is None else Path(fork)
        s = start_run(project, config, path, data, fresh=fresh, resume=resume, fork=parent)
        s = replace(s, device=on_all(nodes, s.device))
        named = tuple(config.training.tribunal.judges if judges is None else judges)
        run_all(s, PipelineOptions(project, named), stages=training_stages(), done=1)
    return s.run
