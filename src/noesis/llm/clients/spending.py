"""What the models that are asked have cost, and the cap."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from noesis.core.errors import CapError
from noesis.llm.clients.protocol import ModelReply


@dataclass
class Spending:
    """Tokens and USD of all judges of a command together, and the cap.

    reserved: USD of requests under way, taken from the longest reply that each may give
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
        """Put `usd` aside for a request; False where that must wait for requests under way.

        Raises:
            CapError: the request could go over the cap.
        """
        if self.max_usd is not None and self.usd + self.reserved + usd > self.max_usd:
            if self.reserved > 1e-9:
                return False
            raise CapError(
                f"stopped before the cap of {self.max_usd:.2f} USD: {self.usd:.4f} spent, and the next request may cost {usd:.4f}; "
                "what was judged is kept, and the same command with a higher --max-usd goes on from there"
            )
        self.reserved += usd
        return True

    def settle(self, reserved: float, reply: ModelReply) -> None:
        self.reserved -= reserved
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
