"""Faults of the control plane itself: an RPC that is refused, hangs, or is done but its answer lost; by hand or by a seeded plan."""

from __future__ import annotations

import asyncio
import collections
import fnmatch
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from grpclib import Status

from ..rpc import refuse

COMMAND_LINE = "command line"  # who calls, where it is no container
SDK_TRIES = 4  # of most calls: the first, and three more after a status that the SDK takes for a passing one
STREAMS = ("AppGetLogs", "VolumeListFiles", "VolumeListFiles2", "WorkspaceBillingReport")


@dataclass
class RpcFault:
    """What happens to `times` calls of `rpc` by `caller`, from the one of number `nth` on.

    Attributes:
        rpc, caller: names or patterns; the caller is a container's function, or "command line".
        status: refused with it; None: answered as always.
        hang: seconds of the plane's clock before that.
        lost: it is done, but the caller is told `status` instead of the answer.
        struck: how many calls it has met.
    """

    rpc: str
    caller: str = "*"
    nth: int = 1
    times: int = 1
    status: Status | None = Status.UNAVAILABLE
    hang: float = 0.0
    lost: bool = False
    seen: int = 0
    struck: int = 0

    def meets(self, rpc: str, caller: str) -> bool:
        """Whether this call is one of those; each is to be asked about once."""
        if not (fnmatch.fnmatch(rpc, self.rpc) and fnmatch.fnmatch(caller, self.caller)):
            return False
        self.seen += 1
        if not self.nth <= self.seen < self.nth + self.times:
            return False
        self.struck += 1
        return True

    def __str__(self) -> str:
        status = "answered" if self.status is None else self.status.name
        how = f"hangs {self.hang:g} s, {status}" if self.hang else f"done, then {status}" if self.lost else status
        return f"{self.caller}: {self.rpc} number {self.nth}, {self.times} times: {how}"


class RpcFaults:
    """The faults of a plane's RPCs."""

    def __init__(self, plane: Any) -> None:
        self.plane = plane
        self.all: list[RpcFault] = []

    async def before(self, rpc: str, task_id: str) -> RpcFault | None:
        """Called as an RPC arrives.

        Returns:
            the fault that loses its answer, if there is one.

        Raises:
            GRPCError: it is refused.
        """
        caller = self.caller(task_id)
        for fault in [fault for fault in self.all if fault.meets(rpc, caller)]:
            if fault.hang:
                await asyncio.sleep(self.plane.real(fault.hang))
            if fault.lost:
                return fault
            self.refuse(fault, rpc)
        return None

    @staticmethod
    def refuse(fault: RpcFault, rpc: str) -> None:
        """Raises GRPCError, where the fault has a status."""
        if fault.status is not None:
            raise refuse(fault.status, f"{rpc}: a fault of the test ({fault.status.name})")

    def caller(self, task_id: str) -> str:
        return str(self.plane.tasks[task_id].function.name) if task_id else COMMAND_LINE


# What can befall a call: statuses that the SDK retries by itself, once or longer than it does; one that it does not; silence.
KINDS: tuple[dict[str, Any], ...] = (
    {"status": Status.UNAVAILABLE},
    {"status": Status.UNAVAILABLE, "times": 2 * SDK_TRIES},
    {"status": Status.INTERNAL, "times": SDK_TRIES},
    {"status": Status.DEADLINE_EXCEEDED, "times": SDK_TRIES, "hang": 5.0},
    {"status": Status.RESOURCE_EXHAUSTED},
    {"status": None, "hang": 60.0},
    {"status": Status.UNAVAILABLE, "lost": True},
    {"status": Status.UNAVAILABLE, "lost": True, "times": SDK_TRIES},
)


def fault_plan(calls: Iterable[tuple[str, str]], count: int, seed: int = 1) -> list[RpcFault]:
    """Single faults for `count` whole runs, over every (RPC, caller) that an undisturbed one showed, all kinds equally.

    Args:
        calls: (RPC, caller) of the undisturbed run, in order.
    """
    rng = random.Random(seed)
    often = collections.Counter(calls)
    pairs = sorted(often)
    rng.shuffle(pairs)
    plan: list[RpcFault] = []
    deck: list[dict[str, Any]] = []
    for i in range(count):
        rpc, caller = pairs[i % len(pairs)]
        deck = deck or rng.sample(KINDS, len(KINDS))
        kind = deck.pop()
        if rpc in STREAMS and kind.get("lost"):
            kind = KINDS[0]  # the answers of a stream are read as they come
        plan.append(RpcFault(rpc, caller, rng.randint(1, often[rpc, caller]), **kind))
    return plan
