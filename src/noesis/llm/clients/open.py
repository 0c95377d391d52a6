"""From a ModelSpec to a client: the one place that knows which class serves which kind of model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from noesis.core.config import TribunalSection
from noesis.core.errors import UsageError
from noesis.core.i18n import _
from noesis.llm.clients.protocol import ModelClient
from noesis.llm.clients.spec import ModelSpec
from noesis.llm.clients.spending import Spending


@dataclass(frozen=True)
class Slots:
    """A GGUF model's capacity: concurrent requests, and the tokens of each with its reply."""

    parallel: int
    context: int


JUDGE_SLOTS = Slots(2, 8192)  # a Portuguese rubric takes about 4,500 tokens of a small English vocabulary
WRITER_SLOTS = Slots(8, 6144)


def open_client(
    spec: ModelSpec,
    section: TribunalSection,
    spending: Spending,
    *,
    own: Path | None = None,
    slots: Slots = JUDGE_SLOTS,
) -> ModelClient:
    """A client of the model that `spec` names.

    Args:
        section: how endpoints are called, and their prices.
        own: the GGUF file that `self` means.

    Raises:
        UsageError: `self` without `own`.
        ModelError: the model can't be loaded, or an endpoint has no price though a cap was given.
    """
    if spec.kind == "openai":
        from noesis.llm.clients.openai_client import OpenAIClient

        return OpenAIClient(spec, section, spending)
    if spec.kind == "torch":
        from noesis.llm.clients.torch_client import TorchClient

        return TorchClient(spec.model)
    from noesis.llm.clients.gguf_client import GgufClient

    if spec.kind == "gguf":
        return GgufClient(Path(spec.model), parallel=slots.parallel, context=slots.context)
    if own is None:
        raise UsageError(_("--judge self needs a run: name a GGUF file instead, --judge gguf:PATH"))
    return GgufClient(own, name="self", parallel=slots.parallel, context=slots.context)


def open_clients(
    specs: Sequence[ModelSpec],
    section: TribunalSection,
    spending: Spending,
    *,
    own: Path | None = None,
    slots: Slots = JUDGE_SLOTS,
) -> list[ModelClient]:
    """A client for each spec, in order; equal specs share one. Raises as `open_client` does."""
    opened = {spec: open_client(spec, section, spending, own=own, slots=slots) for spec in dict.fromkeys(specs)}
    return [opened[spec] for spec in specs]


async def close_clients(clients: Sequence[ModelClient]) -> None:
    """Close each client once."""
    for client in {id(c): c for c in clients}.values():
        await client.close()
