"""The plan and the quote of a run on Modal, before anything starts: `modal run scripts/modal_train.py --dry-run`.

The plan is that of `noesis plan --gpu …`. Added here: judging each epoch while the next one trains, and the trial
before a served judge. Its answers go by the rates that decoding was fitted to, on other GPUs; its judge by the data
sheet of its own: vLLM was not measured here. A judge is taken to score items without writing, its rubric to be read
once (prefix caching), and every prompt of the part to be asked; a trial that a look ends earlier takes less.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from noesis.cloud.limits import FETCH_MACHINE, ORCHESTRATOR_MACHINE, function_seconds, worst_case
from noesis.cloud.request import CloudRequest, export_command, gpu_to_rent
from noesis.constitution.document import load_constitution
from noesis.core.config import Config, ModalSection
from noesis.core.console import duration
from noesis.core.errors import UsageError
from noesis.core.i18n import N_, _, ngettext
from noesis.core.project import Project
from noesis.dataset.load import read_train_export
from noesis.pipeline.stages.plan import plan_without_run
from noesis.planning.budget import Budget, budget_of, in_reais, quote
from noesis.planning.display import dollars, plan_lines, stage_title
from noesis.planning.gpus import gpu_of, prices, rented_gpu
from noesis.planning.plan import Plan
from noesis.planning.pricing import (
    CHOOSE_START,
    DECODE_START,
    DECODE_TRAFFIC,
    JUDGE_MACHINE,
    MERGED_LOAD,
    StageCost,
    usd_for,
)
from noesis.planning.speed import CONTAINER_SECONDS, RENTED_IMPORT_SECONDS, VOLUME_BYTES_PER_S
from noesis.tribunal.suite import read_suite

JUDGE_GPU = "A10"
BATCH = 32  # conversations answered together
JUDGE_PARAMETERS = 7.6e9  # Qwen2.5-7B; where a judge's name says no size
SIZE_IN_NAME = re.compile(r"(?<![\w.])(\d{1,3}(?:\.\d{1,2})?)b(?![a-z])", re.IGNORECASE)
VLLM_START_S = 60.0  # from its call to its first reply, the weights aside (an estimate)
READING = 0.8  # of the GPU's arithmetic, while a judge reads (an estimate)
SCORED_TOKENS = 730  # of one answer for one judge: question, answer and notes 630, eight items' ends 100
FETCH_BYTES_PER_S = 2e8
ORCHESTRATOR = "orchestrator"
FETCH, TRIAL = N_("fetch weights"), N_("trial, estimated")


def not_exported() -> str:
    """What is said where there is nothing to quote for."""
    return _(
        "  no dataset was exported here, so there is no quote: make one with  {export_command}",
        export_command=export_command(),
    )


class ExtraCost(NamedTuple):
    """What a run in the cloud does in addition to the plan's stages."""

    name: str
    seconds: float
    usd: float


@dataclass(frozen=True)
class CloudQuote:
    """The plan of a run on Modal, what the cloud adds to it, and what it costs at most.

    worst_usd: for each function, if every call hung until its last time-out; the cap left aside
    """

    plan: Plan
    extra: list[ExtraCost]
    budget: Budget
    worst_usd: Mapping[str, float]

    @property
    def whole(self) -> Plan:
        """The plan with the extra costs; only the orchestrator's wait adds to the time."""
        waits = next(cost.seconds for cost in self.extra if cost.name == ORCHESTRATOR)
        added = StageCost(ORCHESTRATOR, "cloud", waits - self.plan.stage_seconds, 0.0)
        usd = self.plan.usd + sum(cost.usd for cost in self.extra)
        return replace(self.plan, usd=usd, stages=(*self.plan.stages, added))

    @property
    def at_most_usd(self) -> float:
        """The largest bill: the worst case, or the cap."""
        worst, cap = sum(self.worst_usd.values()), self.budget.max_usd
        return worst if cap is None else min(worst, cap)

    def lines(self) -> list[str]:
        """For the terminal."""
        lines = ["", *plan_lines(self.plan, everything=True, brl_per_usd=self.budget.brl_per_usd), ""]
        for i, cost in enumerate(self.extra):
            label = _("besides") if i == 0 else ""
            lines.append(f"  {label:9} {stage_title(cost.name):15} {duration(cost.seconds):>13}  {dollars(cost.usd)}")
        capped = self.at_most_usd == self.budget.max_usd
        why = (
            _("the cap: no call starts whose time-outs it would not pay for")
            if capped
            else _("if every function hung until its time-out and was tried again")
        )
        return [
            *lines,
            *quote(self.whole, self.budget),
            _(
                "  at most   {at_most_usd:.2f} USD{reais}, {why}",
                at_most_usd=self.at_most_usd,
                reais=in_reais(self.at_most_usd, self.budget.brl_per_usd),
                why=why,
            ),
        ]

    def to_json(self) -> dict[str, Any]:
        whole = self.whole
        return {
            "usd": whole.usd,
            "seconds": whole.stage_seconds,
            "at_most_usd": self.at_most_usd,
            "cap_usd": self.budget.max_usd,
            "besides": [cost._asdict() for cost in self.extra],
            "worst_usd": dict(self.worst_usd),
            "plan": self.plan.to_json(),
        }


def cloud_quote(project: Project, config: Config, request: CloudRequest, section: ModalSection) -> CloudQuote | None:
    """Plan and quote; None: nothing was exported here.

    Raises:
        TrainingError: it does not fit the GPU; the message names what does.
        UsageError: more GPUs than this method uses.
    """
    found = _planned(project, config, request, section)
    if found is None:
        return None
    plan, extra = found
    asked = replace(request, seconds=_function_seconds(plan, extra, request))
    budget = budget_of(config.training.budget, usd_per_s=0.0, spent_usd=0.0, spent_seconds=0.0)
    return CloudQuote(plan, extra, budget, worst_case(asked, section, plan.epochs))


def quote_lines(project: Project, config: Config, request: CloudRequest, section: ModalSection) -> list[str]:
    """The lines of plan and quote.

    Raises:
        NoesisError: as `cloud_quote`.
    """
    found = cloud_quote(project, config, request, section)
    return [not_exported()] if found is None else found.lines()


def quoted_seconds(
    project: Project, config: Config, request: CloudRequest, section: ModalSection
) -> dict[str, float] | None:
    """The quoted seconds of each function, from which its time-out follows; None: nothing was exported here.

    Raises:
        NoesisError: as `cloud_quote`.
    """
    found = _planned(project, config, request, section)
    return None if found is None else _function_seconds(*found, request)


def _function_seconds(plan: Plan, extra: list[ExtraCost], request: CloudRequest) -> dict[str, float]:
    seconds = {cost.name: cost.seconds for cost in extra}
    return function_seconds(plan, seconds[FETCH], seconds.get(TRIAL, 0.0), request.shards)


def _planned(
    project: Project, config: Config, request: CloudRequest, section: ModalSection
) -> tuple[Plan, list[ExtraCost]] | None:
    """The plan, and what the cloud adds to it; None: nothing was exported here."""
    if not (project.exports / "train.jsonl").is_file():
        return None
    gpu, _colon, count = (gpu_to_rent(request, section) or section.train_gpu[0]).partition(":")
    gpus = int(count or 1) * request.nodes
    if config.training.method != "sft" and gpus > 1:
        raise UsageError(
            _(
                "--gpus {gpus}: method {method} runs on one GPU, and all of them would be paid for",
                gpus=gpus,
                method=config.training.method,
            )
        )
    constitution = load_constitution(project.constitution)
    dataset = read_train_export(project, config, constitution)
    plan, require_fit = plan_without_run(config, dataset, constitution, gpu=gpu, gpus=gpus)
    if request.nodes > 1 and plan.setup.gpus != gpus:
        raise UsageError(
            _(
                "--nodes {nodes}: {gpus} GPUs can't share a step's {sequences_per_step} sequences, and "
                "all of them would be paid for: in training_config.yaml make per_device_train_batch_size × "
                "gradient_accumulation_steps a multiple of {gpus}, or train on one machine, without --nodes",
                nodes=request.nodes,
                gpus=gpus,
                sequences_per_step=plan.setup.sequences_per_step,
            )
        )
    require_fit()
    return plan, extra_costs(project, config, request, plan)


def extra_costs(project: Project, config: Config, request: CloudRequest, plan: Plan) -> list[ExtraCost]:
    """What a run in the cloud does besides the plan's stages: downloads, judging epochs, trial, orchestrator."""
    p, judge = prices(), max(map(judge_parameters, request.served_judges), default=0.0)
    fetching = 2 * (plan.parameters + judge) / FETCH_BYTES_PER_S
    found = [ExtraCost(FETCH, fetching, usd_for(None, fetching, 0, FETCH_MACHINE))]
    waits = plan.stage_seconds + fetching
    if plan.epochs > 1:
        n = plan.epochs - 1
        seconds = n * epoch_seconds(config, plan)
        found.append(
            ExtraCost(ngettext("judge {count} epoch", "judge {count} epochs", n), seconds, _on_judge_gpu(seconds))
        )
    if judge:
        probe = CONTAINER_SECONDS + judge_start_seconds(judge)  # while training runs
        found.append(ExtraCost(_("try the judge"), probe, _on_judge_gpu(probe)))
        seconds = trial_seconds(config, plan, len(read_suite(project.tribunal, "dev")), judge)
        found.append(ExtraCost(TRIAL, seconds, _on_judge_gpu(seconds)))
        waits += seconds
    cores, gib = ORCHESTRATOR_MACHINE
    return [*found, ExtraCost(ORCHESTRATOR, waits, waits * (cores * p.cpu_core_per_s + gib * p.memory_gib_per_s))]


def _on_judge_gpu(seconds: float) -> float:
    return usd_for(rented_gpu(JUDGE_GPU), seconds, 1, JUDGE_MACHINE)


def judge_parameters(name: str) -> float:
    """Weights of a served judge by its name (`Qwen2.5-7B-Instruct`: 7e9); those of the default where it says none."""
    found = SIZE_IN_NAME.search(name.replace("_", "-"))
    return float(found[1]) * 1e9 if found else JUDGE_PARAMETERS


def epoch_seconds(config: Config, plan: Plan) -> float:
    """Scoring the held-out examples by the base and by one epoch, on a GPU of its own."""
    gpu, rows = gpu_of(rented_gpu(JUDGE_GPU)), 2 * config.training.data.eval_examples
    passes = 2 * rows * 2 * plan.parameters * plan.tokens_per_epoch / plan.rows / gpu.half
    return CONTAINER_SECONDS + RENTED_IMPORT_SECONDS + CHOOSE_START["cuda"] + _loading(plan.parameters) + passes


def judge_start_seconds(parameters: float) -> float:
    """From the call of a judge's server to its first reply."""
    return VLLM_START_S + _loading(parameters)


def _loading(parameters: float) -> float:
    return 2 * parameters / VOLUME_BYTES_PER_S


def answering_seconds(config: Config, plan: Plan, items: int) -> float:
    """Both models' answers by one engine, loaded once and switched once; a batch's token is a pass over the weights."""
    tribunal, gpu, weights = config.training.tribunal, gpu_of(rented_gpu(JUDGE_GPU)), plan.parameters
    token = DECODE_TRAFFIC * 2 * weights / gpu.bandwidth
    batches = math.ceil(items * tribunal.samples / BATCH)
    models = _loading(weights) + 2 * MERGED_LOAD * weights
    return models + 2 * batches * (DECODE_START + tribunal.trial_tokens * token)


def scoring_seconds(config: Config, items: int, parameters: float) -> float:
    """A judge's start and its reading of both models' answers in three roles."""
    tokens = 2 * items * config.training.tribunal.samples * 3 * SCORED_TOKENS
    return judge_start_seconds(parameters) + tokens * 2 * parameters / (READING * gpu_of(rented_gpu(JUDGE_GPU)).half)


def trial_seconds(config: Config, plan: Plan, items: int, parameters: float = JUDGE_PARAMETERS) -> float:
    """Seconds of a trial on the judging GPU, after the stage judge in the same container.

    Args:
        items: prompts, all of which are judged.
        parameters: of the judge.
    """
    return answering_seconds(config, plan, items) + scoring_seconds(config, items, parameters)
