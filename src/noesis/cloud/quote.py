"""The plan and the quote of a run on Modal, before anything starts: `modal run scripts/modal_train.py --dry-run`.

The plan is that of `noesis plan --gpu …`. Added here: judging each epoch while the next one trains, and the trial
before a served judge, which is estimated from the judging GPU's bandwidth and arithmetic and was not measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from noesis.cloud.limits import FETCH_MACHINE, ORCHESTRATOR_MACHINE, function_seconds, worst_case
from noesis.cloud.request import CloudRequest, export_command, gpu_to_rent
from noesis.constitution.document import load_constitution
from noesis.core.config import Config, ModalSection
from noesis.core.console import duration
from noesis.core.errors import UsageError
from noesis.core.project import Project
from noesis.dataset.load import read_train_export
from noesis.pipeline.stages.plan import plan_without_run
from noesis.planning.budget import Budget, budget_of, quote
from noesis.planning.display import plan_lines
from noesis.planning.gpus import gpu_of, prices, rented_gpu
from noesis.planning.plan import Plan
from noesis.planning.pricing import CHOOSE_AND_JUDGE, JUDGE_MACHINE, StageCost, usd_for
from noesis.planning.speed import CONTAINER_SECONDS
from noesis.tribunal.suite import read_suite

JUDGE_GPU = "A10"
UTILISATION = 0.5  # of the GPU's bandwidth and arithmetic, while it answers and judges
BATCH = 32  # conversations answered together
JUDGE_PARAMETERS, JUDGE_LOADS_S = 7.6e9, 300.0  # Qwen2.5-7B; its start, download included
PROMPT_TOKENS, REPLY_TOKENS = 2500, 350  # of one question to a judge
FETCH_BYTES_PER_S = 2e8
ORCHESTRATOR = "orchestrator"
FETCH, TRIAL = "fetch weights", "trial, estimated"


def not_exported() -> str:
    """What is said where there is nothing to quote for."""
    return f"  no dataset was exported here, so there is no quote: make one with  {export_command()}"


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
        lines = ["", *plan_lines(self.plan, everything=True), ""]
        for i, cost in enumerate(self.extra):
            label = "besides" if i == 0 else ""
            lines.append(f"  {label:9} {cost.name:15} {duration(cost.seconds):>13}  {cost.usd:8.2f} USD")
        capped = self.at_most_usd == self.budget.max_usd
        why = (
            "the cap: no call starts whose time-outs it would not pay for"
            if capped
            else "if every function hung until its time-out and was tried again"
        )
        return [*lines, *quote(self.whole, self.budget), f"  at most   {self.at_most_usd:.2f} USD, {why}"]

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
    gpu, _, count = (gpu_to_rent(request, section) or section.train_gpu[0]).partition(":")
    gpus = int(count or 1) * request.nodes
    if config.training.method != "sft" and gpus > 1:
        raise UsageError(
            f"--gpus {gpus}: preference training (method: {config.training.method}) runs on one GPU, "
            "and all of them would be paid for"
        )
    constitution = load_constitution(project.constitution)
    dataset = read_train_export(project, config, constitution)
    plan, require_fit = plan_without_run(config, dataset, constitution, gpu=gpu, gpus=gpus)
    if request.nodes > 1 and plan.setup.gpus != gpus:
        raise UsageError(
            f"--nodes {request.nodes}: {gpus} GPUs can't share a step's {plan.setup.sequences_per_step} sequences, and "
            "all of them would be paid for: in training_config.yaml make per_device_train_batch_size × "
            f"gradient_accumulation_steps a multiple of {gpus}, or train on one machine, without --nodes"
        )
    require_fit()
    return plan, extra_costs(project, config, request, plan)


def extra_costs(project: Project, config: Config, request: CloudRequest, plan: Plan) -> list[ExtraCost]:
    """What a run in the cloud does besides the plan's stages: downloads, judging epochs, trial, orchestrator."""
    p, served = prices(), bool(request.served_judges)
    fetching = 2 * (plan.parameters + (JUDGE_PARAMETERS if served else 0)) / FETCH_BYTES_PER_S
    found = [ExtraCost(FETCH, fetching, usd_for(None, fetching, 0, FETCH_MACHINE))]
    judging = next(stage for stage in plan.stages if stage.name == CHOOSE_AND_JUDGE)
    waits = plan.stage_seconds + fetching
    if plan.epochs > 1:
        n = plan.epochs - 1
        found.append(ExtraCost(f"judge {n} epoch{'s' if n > 1 else ''}", n * judging.seconds, n * judging.usd))
    if served:
        probe = CONTAINER_SECONDS + JUDGE_LOADS_S  # while training runs
        found.append(ExtraCost("try the judge", probe, usd_for(rented_gpu(JUDGE_GPU), probe, 1, JUDGE_MACHINE)))
        seconds = trial_seconds(config, plan, len(read_suite(project.tribunal, "dev")))
        usd = usd_for(rented_gpu(JUDGE_GPU), seconds, 1, JUDGE_MACHINE)
        found.append(ExtraCost(TRIAL, seconds, usd))
        waits += seconds
    cores, gib = ORCHESTRATOR_MACHINE
    return [*found, ExtraCost(ORCHESTRATOR, waits, waits * (cores * p.cpu_core_per_s + gib * p.memory_gib_per_s))]


def trial_seconds(config: Config, plan: Plan, items: int) -> float:
    """Seconds of a trial on the judging GPU.

    Base and tuned model answer in batches, each token a pass over the weights; then three judges read each answer.
    """
    tribunal, gpu = config.training.tribunal, gpu_of(rented_gpu(JUDGE_GPU))
    answers = items * tribunal.samples
    seconds_per_token = 2 * plan.parameters / (UTILISATION * gpu.bandwidth)
    answering = 2 * math.ceil(answers / BATCH) * tribunal.trial_tokens * seconds_per_token
    questions = 2 * answers * 3
    reading = questions * 2 * JUDGE_PARAMETERS * PROMPT_TOKENS / (UTILISATION * gpu.half)
    judge_seconds_per_token = 2 * JUDGE_PARAMETERS / (UTILISATION * gpu.bandwidth)
    writing = questions / tribunal.concurrency * REPLY_TOKENS * judge_seconds_per_token
    return CONTAINER_SECONDS + answering + JUDGE_LOADS_S + reading + writing
