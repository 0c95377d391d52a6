"""What each function may cost at most: its time-out follows from its quote, and all together stay below the cap.

Modal charges for a container that hangs as for one that works. So every call gets a time-out of a few times what was
quoted and few tries, and is only started if its worst case fits into what the cap leaves. Being preempted costs no try.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from noesis.cloud.request import CloudRequest, gpu_to_rent
from noesis.core.config import ModalSection
from noesis.core.console import duration
from noesis.core.errors import CapError
from noesis.core.i18n import _
from noesis.planning.gpus import rented_gpu
from noesis.planning.plan import Plan
from noesis.planning.pricing import (
    CHOOSE_AND_JUDGE,
    JUDGE_MACHINE,
    MERGE_AND_GGUF,
    MERGE_MACHINE,
    train_machine,
    usd_for,
)

FACTOR = 4.0  # of the quoted time: quotes are estimates
FLOOR_S = 3600.0  # the shortest time-out: a cold start downloads the weights
SHORTEST_S = 300.0  # a call that could not work so long is not started
TRIES = 2  # of a call that fails or times out
QUEUE_S = 6 * 3600.0  # longest wait for a card, which costs only the orchestrator
OPTIONAL_S = 900.0  # longest that a needed stage waits for an optional one
ORCHESTRATOR_MACHINE = (0.25, 1.0)  # cores and GiB of the container that waits
FETCH_MACHINE = (2, 8)  # cores and GiB of the container that fetches the weights
DAY = 24 * 3600.0
UNQUOTED_S = {
    "prepare": 900.0,
    "judge_epoch": 900.0,
    "judge": 3600.0,
    "judge_served": 3600.0,
    "answer_shard": 3600.0,
    "merge": 1800.0,
}
PROBE = "probe_judge"
PROBE_S = 1800.0  # the server's longest start, and a question; cut short, or tried twice, it would tell nothing
JUDGING = ("judge", "judge_served", "judge_epoch", "answer_shard", PROBE)  # functions on the judge's card


@dataclass(frozen=True)
class CallLimit:
    """How long one try of a call may take, how often it is tried, and what its container costs."""

    timeout_s: float
    tries: int
    usd_per_s: float

    @property
    def seconds(self) -> float:
        """Of all tries, each until its time-out."""
        return self.timeout_s * self.tries

    @property
    def usd(self) -> float:
        return self.seconds * self.usd_per_s


def function_seconds(plan: Plan, fetch_s: float, trial_s: float, shards: int) -> dict[str, float]:
    """The quoted seconds of each function, but for the probe's, which has a limit of its own.

    Args:
        fetch_s: of the download of the weights.
        trial_s: of the trial before a judge that the run serves; 0.0: there is none.
    """
    stages = {stage.name: stage.seconds for stage in plan.stages}
    return {
        "prepare": fetch_s,
        "train": stages["train"],
        "judge_epoch": stages[CHOOSE_AND_JUDGE],
        "judge": stages[CHOOSE_AND_JUDGE] + trial_s,
        "judge_served": stages[CHOOSE_AND_JUDGE] + trial_s,
        "answer_shard": trial_s / shards,
        "merge": stages[MERGE_AND_GGUF],
    }


def price_of(function: str, request: CloudRequest, section: ModalSection) -> float:
    """USD per second of a function's container, on the dearest of the cards that it may get."""
    if function == "train":
        wanted = gpu_to_rent(request, section)
        cards = (wanted,) if wanted else section.train_gpu
    elif function in JUDGING:
        cards = section.judge_gpu
    else:
        return usd_for(None, 1.0, 0, FETCH_MACHINE if function == "prepare" else MERGE_MACHINE)
    names = [(name, int(count or 1)) for name, _, count in (card.partition(":") for card in cards)]
    most = max(count for _, count in names)  # a function's machine is declared for the largest of its cards
    machine = train_machine(most) if function == "train" else JUDGE_MACHINE
    machines = request.nodes if function == "train" else 1
    return machines * max(usd_for(rented_gpu(name), 1.0, count, machine) for name, count in names)


def call_limit(function: str, request: CloudRequest, section: ModalSection) -> CallLimit:
    """The limit of one call, the cap left aside."""
    quoted = (request.seconds or {}).get(function)
    longest = section.timeout_hours * 3600
    if function == PROBE:
        return CallLimit(min(PROBE_S, longest), 1, price_of(function, request, section))
    if quoted is None:
        quoted = longest if function == "train" else UNQUOTED_S[function]
    timeout = min(max(FACTOR * quoted, FLOOR_S), longest)
    return CallLimit(math.ceil(timeout), TRIES, price_of(function, request, section))


def orchestrator_limit() -> CallLimit:
    """Of the container that waits: it may be needed for a day, and again."""
    return CallLimit(DAY, TRIES, usd_for(None, 1.0, 0, ORCHESTRATOR_MACHINE))


def within(limit: CallLimit, left_usd: float, what: str, *, whole: bool = False) -> CallLimit:
    """`limit`, made smaller where what the cap leaves does not pay for its worst case.

    Args:
        whole: a smaller one is of no use.

    Raises:
        CapError: it would be too short to be of use.
    """
    if limit.usd <= left_usd or limit.usd_per_s == 0:
        return limit
    seconds = min(limit.timeout_s, left_usd / limit.usd_per_s)
    shortest = limit.timeout_s if whole else min(SHORTEST_S, limit.timeout_s)
    if seconds < shortest:
        raise CapError(
            _(
                "{what} was not started: {left_usd:.2f} USD are left below the cap, less than "
                "{shortest} of its machine ({usd_per_s:.2f} USD); raise it with --max-usd",
                what=what,
                left_usd=max(left_usd, 0.0),
                shortest=duration(shortest),
                usd_per_s=limit.usd_per_s * shortest,
            )
        )
    return CallLimit(math.floor(seconds), 1, limit.usd_per_s)


def worst_case(request: CloudRequest, section: ModalSection, epochs: int) -> Mapping[str, float]:
    """USD of each function where every call hangs until its last time-out."""
    judge = "judge_served" if request.served_judges else "judge"
    calls = {"prepare": 1, "train": 1, "judge_epoch": max(epochs - 1, 0), judge: 1, "merge": 1}
    calls[PROBE] = 1 if request.served_judges else 0
    if request.judges and request.shards > 1:
        calls["answer_shard"] = request.shards
    found = {name: count * call_limit(name, request, section).usd for name, count in calls.items() if count}
    return found | {"orchestrator": orchestrator_limit().usd}
