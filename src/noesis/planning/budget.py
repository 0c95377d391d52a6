"""The caps on a run in USD and minutes, the quote before it starts, and what would fit if it does not. Torch-free.

The run's ledger (`run/ledger.py`) records what was spent, across restarts. A cap applies to the whole run, all stages
together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from noesis.core.config import BudgetSection
from noesis.core.console import duration
from noesis.core.errors import CapError
from noesis.core.i18n import _, joined
from noesis.planning.gpus import prices
from noesis.planning.plan import Plan
from noesis.planning.pricing import MachineOption


@dataclass(frozen=True)
class Budget:
    """What is left of the agreed amounts, counted from `started`.

    usd_per_s: price of this machine; 0: it costs nothing
    spent_usd, spent_seconds: before `started`
    max_usd, max_seconds: the caps; None: no cap
    started: in seconds of `clock`
    brl_per_usd: to tell sums in R$ as well; None: they are not
    """

    usd_per_s: float
    spent_usd: float
    spent_seconds: float
    max_usd: float | None
    max_seconds: float | None
    started: float
    clock: Callable[[], float] = time.monotonic
    brl_per_usd: float | None = None

    def usd(self) -> float:
        """USD spent up to now."""
        return self.spent_usd + self.elapsed() * self.usd_per_s

    def seconds(self) -> float:
        """Seconds worked up to now."""
        return self.spent_seconds + self.elapsed()

    def elapsed(self) -> float:
        """Seconds since `started`."""
        return max(self.clock() - self.started, 0.0)

    def left_seconds(self) -> float:
        """Seconds until the first of the caps; infinite without one."""
        left = math.inf
        if self.max_usd is not None and self.usd_per_s > 0:
            left = (self.max_usd - self.usd()) / self.usd_per_s
        if self.max_seconds is not None:
            left = min(left, self.max_seconds - self.seconds())
        return left

    def describe(self) -> str:
        """What was spent of the caps: `1.20 of 90.00 USD, 12 min 30 s of 60 min 00 s`; empty without price and cap."""
        parts = []
        if self.usd_per_s > 0 or self.spent_usd > 0:
            if self.max_usd is None:
                parts.append(_("{usd:.2f} USD", usd=self.usd()))
            else:
                parts.append(_("{usd:.2f} of {max_usd:.2f} USD", usd=self.usd(), max_usd=self.max_usd))
        if self.max_seconds is not None:
            parts.append(
                _(
                    "{seconds} of {max_seconds}",
                    seconds=duration(self.seconds()),
                    max_seconds=duration(self.max_seconds),
                )
            )
        return joined(", ", parts)

    def projected(self, seconds: float) -> str:
        """`spent …, … at the end` for the progress line; empty if nothing is paid or capped.

        Args:
            seconds: the time that the work still takes.
        """
        if not self.describe():
            return ""
        paid = self.usd_per_s > 0
        end = f"{self.usd() + seconds * self.usd_per_s:.2f} USD" if paid else duration(self.seconds() + seconds)
        return _(" · spent {describe}; {end} at the end", describe=self.describe(), end=end)

    def amount(self, seconds: float) -> str:
        """What this much time of the machine costs, or the time itself if it costs nothing."""
        return f"{seconds * self.usd_per_s:.2f} USD" if self.usd_per_s > 0 else duration(seconds)

    def to_json(self) -> dict[str, float | None]:
        """For another process of this machine, whose clock is the same."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "clock"}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Budget:
        return cls(**value)


def budget_of(
    section: BudgetSection, *, usd_per_s: float, spent_usd: float, spent_seconds: float, since: float | None = None
) -> Budget:
    """The budget of a run that continues now, or has been working since `since` (seconds of the monotonic clock)."""
    return Budget(
        usd_per_s=usd_per_s,
        spent_usd=spent_usd,
        spent_seconds=spent_seconds,
        max_usd=section.max_usd,
        max_seconds=None if section.max_minutes is None else section.max_minutes * 60,
        started=time.monotonic() if since is None else since,
        brl_per_usd=section.brl_per_usd,
    )


def in_reais(usd: float, brl_per_usd: float | None) -> str:
    """` (R$ 12.34)` where the settings give a rate (budget: brl_per_usd), else nothing."""
    return "" if brl_per_usd is None else _(" (R$ {brl:,.2f})", brl=usd * brl_per_usd)


def quote(plan: Plan, budget: Budget) -> list[str]:
    """What the run is expected to cost, the cap, and whether the month's free USD cover it."""
    seconds = plan.stage_seconds
    usd = plan.usd if plan.rented else seconds * budget.usd_per_s
    if usd == 0:
        cap = _("; cap {max_seconds}", max_seconds=duration(budget.max_seconds)) if budget.max_seconds else ""
        return [_("  cost      nothing on this machine ({seconds}){cap}", seconds=duration(seconds), cap=cap)]
    cap = _("no cap")
    if budget.max_usd is not None:
        reais = in_reais(budget.max_usd, budget.brl_per_usd)
        cap = _("cap {max_usd:.2f} USD{reais}", max_usd=budget.max_usd, reais=reais)
    lines = [
        _(
            "  cost      {usd:.2f} USD{reais} in {seconds} expected, {spent_usd:.2f} spent before; {cap}",
            usd=usd,
            reais=in_reais(usd, budget.brl_per_usd),
            seconds=duration(seconds),
            spent_usd=budget.spent_usd,
            cap=cap,
        )
    ]
    if plan.rented:
        free, whole = prices().free_usd_per_month, budget.spent_usd + usd
        covered = _("cover it, if {whole:.2f} of them are left", whole=whole)
        if whole > free:
            covered = _("do not cover it: {whole:.2f} USD remain to be paid", whole=whole - free)
        lines.append(_("            Modal's free {free:.0f} USD a month {covered}", free=free, covered=covered))
    return lines


def require_affordable(plan: Plan, budget: Budget, *, done: float = 0.0) -> None:
    """Refuse to start training that is expected to pass a cap.

    Args:
        done: share of the steps that is already done.

    Raises:
        CapError: naming what would fit.
    """
    left = budget.left_seconds()
    per_epoch = (plan.seconds - plan.start_seconds) / plan.epochs
    needed = plan.start_seconds + per_epoch * plan.epochs * (1 - done)
    if needed <= left:
        return
    fits = []
    epochs = int((left - plan.start_seconds) // per_epoch) if per_epoch > 0 else 0
    if done == 0 and 1 <= epochs < plan.epochs:
        fits.append(
            _(
                "--epochs {epochs} ({start_seconds})",
                epochs=epochs,
                start_seconds=duration(plan.start_seconds + per_epoch * epochs),
            )
        )
    cheapest = min(_affordable_machines(plan, budget), key=lambda option: option.usd, default=None)
    if cheapest is not None:
        fits.append(
            _(
                "{device} ({time}, {usd:.2f} USD)",
                device=cheapest.device,
                time=duration(cheapest.seconds),
                usd=cheapest.usd,
            )
        )
    fits.append(_("a higher --max-usd or --max-minutes"))
    spent = _(" ({budget} spent)", budget=budget.describe()) if budget.spent_seconds else ""
    raise CapError(
        _(
            "training is expected to take {needed} more and {left} of the cap is left{spent}; what would fit: {fits}",
            needed=budget.amount(needed),
            left=budget.amount(max(left, 0)),
            spent=spent,
            fits=", or ".join(fits),
        )
    )


def require_remaining(budget: Budget, what: str) -> None:
    """Refuse to start a stage when nothing is left.

    Raises:
        CapError: the cap is reached.
    """
    if budget.left_seconds() <= 0:
        raise CapError(
            _(
                "{what} was not started: the cap is reached ({describe}); raise it with --max-usd or --max-minutes",
                what=what,
                describe=budget.describe(),
            )
        )


def _affordable_machines(plan: Plan, budget: Budget) -> list[MachineOption]:
    """Other machines on which the whole training would stay within the caps."""
    if not plan.rented:
        return []
    usd = math.inf if budget.max_usd is None else budget.max_usd - budget.spent_usd
    seconds = math.inf if budget.max_seconds is None else budget.max_seconds - budget.spent_seconds
    return [
        option for option in plan.alternatives if option.fits and 0 < option.usd <= usd and option.seconds <= seconds
    ]
