"""The plan and the quote of a run in the cloud, before anything is started: `modal run scripts/modal_train.py --dry-run`.

The plan is that of `noesis plan --gpu …`. What this adds: judging each epoch beside the next, and the trial before a served judge, which
is estimated from the judging card's bandwidth and arithmetic and was not measured.
"""

from __future__ import annotations

import math

from noesis.cloud.request import LOCAL_JUDGE, CloudRequest, gpu_to_rent
from noesis.constitution.document import load_constitution
from noesis.core.config import Config, ModalSection
from noesis.core.console import duration
from noesis.core.errors import UsageError
from noesis.core.project import Project, tribunal_folder
from noesis.dataset.load import read_train_export
from noesis.pipeline.stages.plan import plan_without_run
from noesis.planning.budget import budget_of, quote
from noesis.planning.display import plan_lines
from noesis.planning.gpus import gpu_of, prices, rented_gpu
from noesis.planning.plan import Plan
from noesis.planning.pricing import JUDGE_MACHINE, usd_for
from noesis.planning.speed import CONTAINER_SECONDS
from noesis.tribunal.suite import read_suite

REACHED = 0.5  # of a card's bandwidth and arithmetic, while it answers and judges
BATCH = 32  # conversations that answer together
JUDGE_PARAMETERS, JUDGE_LOADS_S = 7.6e9, 300.0  # of Qwen2.5-7B; its start with the download
ASKED_TOKENS, REPLY_TOKENS = 2500, 350  # of one question to a judge
CONDUCTOR_NAME = "conductor"
CONDUCTOR = (0.25, 1.0)  # cores and GiB of the container that waits


def quote_lines(project: Project, config: Config, request: CloudRequest, section: ModalSection) -> list[str]:
    """The lines of plan and quote.

    Raises:
        TrainingError: it does not fit the card; the message names what does.
        UsageError: more cards than this method uses.
    """
    file = project.exports / "train.jsonl"
    if not file.is_file():
        return ["  no data set was exported here, so there is no quote:  python scripts/export_for_modal.py  makes one"]
    name, _, count = (gpu_to_rent(request, section) or section.train_gpu[0]).partition(":")
    if config.training.method != "sft" and int(count or 1) > 1:
        raise UsageError(
            f"--gpus {count}: preference training (method: {config.training.method}) runs on one card, and all of them would be paid for"
        )
    constitution = load_constitution(project.constitution)
    dataset = read_train_export(project, config, constitution)
    plan, require_fit = plan_without_run(config, dataset, constitution, gpu=name, gpus=int(count or 1))
    require_fit()
    p = plan.as_json()
    extra = extra_costs(project, config, request, plan)
    usd = sum(cost for _, _, cost in extra)
    seconds = next(s for what, s, _ in extra if what == CONDUCTOR_NAME) - sum(
        stage["seconds"] for stage in plan.stages
    )  # the others go on beside
    lines = ["", *plan_lines(p, everything=True), ""]
    lines += [
        f"  {'beside' if i == 0 else '':9} {what:15} {duration(s):>13}  {cost:8.2f} USD"
        for i, (what, s, cost) in enumerate(extra)
    ]
    budget = budget_of(config.training.budget, usd_per_s=0.0, spent_usd=0.0, spent_seconds=0.0)
    whole = p | {"usd": plan.usd + usd, "stages": [*p["stages"], {"seconds": seconds}]}
    return [*lines, *quote(whole, budget)]


def extra_costs(project: Project, config: Config, request: CloudRequest, plan: Plan) -> list[tuple[str, float, float]]:
    """(what, seconds, USD) of what a run in the cloud does beside the plan's stages."""
    found = []
    judging = next(s for s in plan.stages if s["name"] == "judge")
    if plan.epochs > 1:
        n = plan.epochs - 1
        found.append((f"judge {n} epoch{'s' if n > 1 else ''}", n * judging["seconds"], n * judging["usd"]))
    if any(judge.startswith(LOCAL_JUDGE) for judge in request.judges):
        seconds = trial_seconds(config, plan, len(read_suite(tribunal_folder(project), "dev")))
        found.append(("trial, estimated", seconds, usd_for(rented_gpu("A10"), seconds, 1, JUDGE_MACHINE)))
    waits = sum(stage["seconds"] for stage in plan.stages) + sum(s for what, s, _ in found if what.startswith("trial"))
    p = prices()
    return [
        *found,
        (CONDUCTOR_NAME, waits, waits * (CONDUCTOR[0] * p.cpu_core_per_s + CONDUCTOR[1] * p.memory_gib_per_s)),
    ]


def trial_seconds(config: Config, plan: Plan, items: int) -> float:
    """Answers of both models, a batch at a time, each token a pass over the weights; then every answer before three judges."""
    t, card = config.training.tribunal, gpu_of(rented_gpu("A10"))
    answers = items * t.samples
    a_pass = 2 * plan.parameters / (REACHED * card.bandwidth)
    answering = 2 * math.ceil(answers / BATCH) * t.trial_tokens * a_pass
    questions = 2 * answers * 3
    reading = questions * 2 * JUDGE_PARAMETERS * ASKED_TOKENS / (REACHED * card.half)
    writing = questions / t.concurrency * REPLY_TOKENS * 2 * JUDGE_PARAMETERS / (REACHED * card.bandwidth)
    return CONTAINER_SECONDS + answering + JUDGE_LOADS_S + reading + writing
