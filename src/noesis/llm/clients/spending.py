"""What requests to models have cost, and the cap.

The most that a request can cost is reserved before it is sent, and stays spent unless the endpoint says what it took,
or can't have worked on it. So neither requests at once, nor replies without a usage, nor lost ones pass the cap.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Protocol

from noesis.core.errors import CapError, UsageError
from noesis.core.i18n import _

WAIT_S = 0.05  # between two looks at whether requests under way cost less than was reserved for them


class Ledger(Protocol):
    """Remembers what the commands that work on the same have spent."""

    def spent(self) -> float:
        """USD."""

    def add_spent(self, usd: float) -> None: ...


@dataclass
class Spending:
    """Tokens and USD of all clients of one command together, and the cap.

    before: USD that earlier commands spent on the same work; the cap counts them
    unpriced: replies of models without a price
    uncounted: requests that had no reply, or one without a usage that can be believed: their reservation is spent
    reserved: USD of the requests under way, each at the longest reply that it allows
    """

    max_usd: float | None = None
    usd: float = 0.0
    before: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    requests: int = 0
    retries: int = 0
    unpriced: int = 0
    uncounted: int = 0
    reserved: float = field(default=0.0, repr=False)
    _ledger: Ledger | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.max_usd is not None and not self.max_usd >= 0:  # NaN, too
            raise UsageError(_("--max-usd {max_usd:g}: give an amount in USD, 0 or more", max_usd=self.max_usd))

    def resume(self, ledger: Ledger) -> None:
        """Count what `ledger` says was spent before, and remember there what will be.

        What is reserved is remembered as spent, so that a killed command loses nothing.
        """
        self.before, self._ledger = ledger.spent(), ledger

    async def reserve(self, usd: float) -> Reservation:
        """Reserve `usd` for a request; waits while requests under way may yet leave room for it.

        Raises:
            CapError: the request could exceed the cap.
        """
        while self.max_usd is not None and self.before + self.usd + self.reserved + usd > self.max_usd:
            if self.reserved <= 1e-9:
                raise CapError(
                    _(
                        "stopped before the cap of {max_usd:.2f} USD: {before:.4f} spent, and the "
                        "next request may cost {usd:.4f}; every reply so far is stored, and the same command with a "
                        "higher --max-usd continues",
                        max_usd=self.max_usd,
                        before=self.before + self.usd,
                        usd=usd,
                    )
                )
            await asyncio.sleep(WAIT_S)
        self.reserved += usd
        self._remember(usd)
        return Reservation(self, usd)

    def book(self, reserved: float, usd: float) -> None:
        """Replace what was reserved for a request by what it has cost."""
        self.reserved -= reserved
        self.usd += usd
        self._remember(usd - reserved)

    def _remember(self, usd: float) -> None:
        if self._ledger is not None and usd:
            self._ledger.add_spent(usd)

    def to_json(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "retries": self.retries,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "uncounted": self.uncounted,
            "usd": round(self.usd, 6) if not self.unpriced else None,
            "usd_before": round(self.before, 6),
            "max_usd": self.max_usd,
        }


@dataclass
class Reservation:
    """USD for one request: `with await spending.reserve(usd) as reservation:`. Left as it is, it stays spent."""

    spending: Spending
    usd: float
    _open: bool = field(default=True, repr=False)

    def free(self) -> None:
        """The endpoint can't have worked on the request: it cost nothing."""
        self._close(0.0)

    def settle(self, usd: float | None, prompt_tokens: int, completion_tokens: int, *, counted: bool) -> None:
        """The request has its reply.

        Args:
            usd: what it cost; None where no price is known.
            counted: the endpoint gave its tokens.
        """
        self._close(self.usd if usd is None else usd)
        self.spending.requests += 1
        self.spending.prompt_tokens += prompt_tokens
        self.spending.completion_tokens += completion_tokens
        self.spending.unpriced += usd is None
        self.spending.uncounted += not counted

    def _close(self, usd: float) -> None:
        if self._open:
            self._open = False
            self.spending.book(self.usd, usd)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open:
            self._close(self.usd)
            self.spending.uncounted += 1
