"""What requests to models have cost, and the cap."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from noesis.core.errors import CapError
from noesis.llm.clients.protocol import ModelReply


@dataclass
class Spending:
    """Tokens and USD of all clients of one command together, and the cap.

    unpriced: replies of models without a price
    reserved: USD of the requests under way, each at the longest reply that it allows
    """

    max_usd: float | None = None
    usd: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    requests: int = 0
    retries: int = 0
    unpriced: int = 0
    reserved: float = field(default=0.0, repr=False)

    def reserve(self, usd: float) -> bool:
        """Reserve `usd` for a request; False where it must wait until requests under way are settled.

        Raises:
            CapError: the request could exceed the cap.
        """
        if self.max_usd is not None and self.usd + self.reserved + usd > self.max_usd:
            if self.reserved > 1e-9:
                return False
            raise CapError(
                f"stopped before the cap of {self.max_usd:.2f} USD: {self.usd:.4f} spent, and the next request may "
                f"cost {usd:.4f}; every reply so far is stored, and the same command with a higher --max-usd continues"
            )
        self.reserved += usd
        return True

    def release(self, reserved: float) -> None:
        """Give back what was reserved for a request that cost nothing."""
        self.reserved -= reserved

    def settle(self, reserved: float, reply: ModelReply) -> None:
        """Book what a request has cost in place of what was reserved for it."""
        self.release(reserved)
        self.requests += 1
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens
        self.usd += reply.usd or 0.0
        self.unpriced += reply.usd is None

    def to_json(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "retries": self.retries,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "usd": round(self.usd, 6) if not self.unpriced else None,
            "max_usd": self.max_usd,
        }
