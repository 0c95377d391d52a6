"""Never more than agreed: the cap in USD and minutes, the quote before training starts, and what would fit where the plan does not. Torch-free.

What was spent is in the run's ledger (meter.py) and counts across restarts; a cap is on the whole run, all its stages.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from noesis.core.config import BudgetSection
from noesis.core.console import duration
from noesis.core.errors import CapError
from noesis.planning.gpus import prices


@dataclass(frozen=True)
class Budget:
    """What is left of the agreed amounts, from the moment it was made."""

    usd_per_s: float  # of this machine; 0: it costs nothing
    spent_usd: float  # before
    spent_seconds: float
    max_usd: float | None
    max_seconds: float | None
    started: float
    clock: Callable[[], float] = time.monotonic

    def usd(self) -> float:
        """Spent up to now."""
        return self.spent_usd + self.elapsed() * self.usd_per_s

    def seconds(self) -> float:
        """Worked up to now."""
        return self.spent_seconds + self.elapsed()

    def elapsed(self) -> float:
        return max(self.clock() - self.started, 0.0)

    def left_seconds(self) -> float:
        """Until the first of the caps; infinite where none binds."""
        left = math.inf
        if self.max_usd is not None and self.usd_per_s > 0:
            left = (self.max_usd - self.usd()) / self.usd_per_s
        if self.max_seconds is not None:
            left = min(left, self.max_seconds - self.seconds())
        return left

    def describe(self) -> str:
        """Spent of what was agreed: `1.20 of 90.00 USD, 12 min 30 s of 60 min 00 s`."""
        parts = []
        if self.usd_per_s > 0 or self.spent_usd > 0:
            parts.append(f"{self.usd():.2f}" + (f" of {self.max_usd:.2f}" if self.max_usd is not None else "") + " USD")
        if self.max_seconds is not None:
            parts.append(f"{duration(self.seconds())} of {duration(self.max_seconds)}")
        return ", ".join(parts)

    def projected(self, seconds: float) -> str:
        """`spent …, … at the end` for the progress line; empty where nothing is paid and no time was agreed."""
        if not self.describe():
            return ""
        end = (
            f"{self.usd() + seconds * self.usd_per_s:.2f} USD"
            if self.usd_per_s > 0
            else duration(self.seconds() + seconds)
        )
        return f" · spent {self.describe()}; {end} at the end"

    def as_json(self) -> dict[str, Any]:
        """For another process of this machine, whose clock is the same one."""
        return {
            key: getattr(self, key)
            for key in ("usd_per_s", "spent_usd", "spent_seconds", "max_usd", "max_seconds", "started")
        }


def budget_of(
    section: BudgetSection, *, usd_per_s: float, spent_usd: float, spent_seconds: float, since: float | None = None
) -> Budget:
    """The budget of a run that goes on now, or that has been at work `since` then."""
    minutes = section.max_minutes
    return Budget(
        usd_per_s,
        spent_usd,
        spent_seconds,
        section.max_usd,
        None if minutes is None else minutes * 60,
        time.monotonic() if since is None else since,
    )


def quote(plan: dict[str, Any], budget: Budget) -> list[str]:
    """What the run is expected to cost, the cap, and whether the month's free USD cover it."""
    seconds = sum(float(stage["seconds"]) for stage in plan["stages"])
    usd = float(plan["usd"]) if plan["rented"] else seconds * budget.usd_per_s
    if usd == 0:
        return [
            f"  cost      nothing on this machine ({duration(seconds)})"
            + (f"; agreed: {duration(budget.max_seconds)}" if budget.max_seconds else "")
        ]
    cap = "no cap" if budget.max_usd is None else f"cap {budget.max_usd:.2f} USD"
    lines = [f"  cost      {usd:.2f} USD in {duration(seconds)} expected, {budget.spent_usd:.2f} spent before; {cap}"]
    if plan["rented"]:
        free = prices().free_usd_per_month
        whole = budget.spent_usd + usd
        covered = (
            f"cover it, if {whole:.2f} of them are left"
            if whole <= free
            else f"do not cover it: {whole - free:.2f} USD are to pay"
        )
        lines.append(f"            Modal's free {free:.0f} USD a month {covered}")
    return lines


def require_affordable(plan: dict[str, Any], budget: Budget, *, done: float = 0.0) -> None:
    """Refuse to start training whose expected end lies beyond a cap.

    Args:
        done: share of the steps that are done.

    Raises:
        CapError: naming what would fit.
    """
    left = budget.left_seconds()
    start, per_epoch = (
        float(plan["start_seconds"]),
        (float(plan["seconds"]) - float(plan["start_seconds"])) / plan["epochs"],
    )
    needed = start + per_epoch * plan["epochs"] * (1 - done)
    if needed <= left:
        return
    spent = f" ({budget.describe()} spent)" if budget.spent_seconds else ""
    amount = f"{needed * budget.usd_per_s:.2f} USD" if budget.usd_per_s > 0 else duration(needed)
    allowed = f"{max(left, 0) * budget.usd_per_s:.2f} USD" if budget.usd_per_s > 0 else duration(max(left, 0))
    fits = []
    epochs = int((left - start) // per_epoch) if per_epoch > 0 else 0
    if done == 0 and 1 <= epochs < plan["epochs"]:
        fits.append(f"--epochs {epochs} ({duration(start + per_epoch * epochs)})")
    fits += [
        f"{a['device']} ({duration(a['seconds'])}, {a['usd']:.2f} USD)" for a in _smaller_machines(plan, budget)[:1]
    ]
    fits.append("a higher --max-usd or --max-minutes")
    raise CapError(
        f"training is expected to take {amount} more and {allowed} of what was agreed is left{spent}; what would fit: {', or '.join(fits)}"
    )


def require_remaining(budget: Budget, what: str) -> None:
    """Refuse to start a stage when nothing is left.

    Raises:
        CapError: the agreed amount is spent.
    """
    if budget.left_seconds() <= 0:
        raise CapError(
            f"{what} was not started: what was agreed is spent ({budget.describe()}); agree to more with --max-usd or --max-minutes"
        )


def _smaller_machines(plan: dict[str, Any], budget: Budget) -> list[dict[str, Any]]:
    """Other machines on which the whole training would stay within what is left, the cheapest first."""
    if not plan["rented"]:
        return []
    usd = math.inf if budget.max_usd is None else budget.max_usd - budget.spent_usd
    seconds = math.inf if budget.max_seconds is None else budget.max_seconds - budget.spent_seconds
    return sorted(
        (a for a in plan["alternatives"] if a["fits"] and 0 < a["usd"] <= usd and a["seconds"] <= seconds),
        key=lambda a: a["usd"],
    )
