"""From the name of a model to a client that asks it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from noesis.core.config import TribunalSection
from noesis.core.errors import UsageError
from noesis.llm.clients.openai_client import OpenAIClient
from noesis.llm.clients.protocol import ModelClient
from noesis.llm.clients.spec import ModelSpec, parse_spec
from noesis.llm.clients.spending import Spending
from noesis.llm.clients.torch_client import TorchClient

SLOTS, SLOT_CONTEXT = 8, 6144  # of a GGUF model: requests at once, tokens of each
FORMS = "openai:BASE_URL:MODEL, gguf:PATH, or torch:NAME (smollm2, a model folder, a Hub name)"


def open_clients(texts: Sequence[tuple[str, str]], section: TribunalSection, spending: Spending) -> list[ModelClient]:
    """A client for each (option, SPEC), in order; the same SPEC is opened once.

    Raises:
        UsageError: a SPEC is none of the forms. ModelError: a model can't be loaded, or has no price where a cap was given.
    """
    opened: dict[str, ModelClient] = {}
    for option, text in texts:
        if text not in opened:
            opened[text] = _open(option, text, section, spending)
    return [opened[text] for _, text in texts]


def _open(option: str, text: str, section: TribunalSection, spending: Spending) -> ModelClient:
    if text.startswith("torch:") and len(text) > 6:
        if option == "--judge":
            raise UsageError(
                f"{option} {text}: a judge writes structured verdicts, which torch: does not do; name a gguf: file or an endpoint"
            )
        return TorchClient(text[6:])
    if text == "self" or not text.startswith(("openai:", "gguf:")):
        raise UsageError(f"{option} {text!r} is not understood: use {FORMS}")
    spec = parse_spec(text, option)
    if spec.kind == "openai":
        return OpenAIClient(spec, section, spending)
    from noesis.llm.clients.gguf_client import GgufClient

    return GgufClient(Path(spec.model), parallel=SLOTS, context=SLOT_CONTEXT)


async def close_all(clients: Sequence[ModelClient]) -> None:
    """Close each client once."""
    for client in {id(c): c for c in clients}.values():
        await client.close()


def open_judges(
    specs: Sequence[ModelSpec], section: TribunalSection, spending: Spending, *, own: Path | None = None
) -> list[ModelClient]:
    """A client for each judge. `own`: the GGUF that `self` means."""
    clients: list[ModelClient] = []
    for spec in specs:
        if spec.kind == "openai":
            clients.append(OpenAIClient(spec, section, spending))
        else:
            from noesis.llm.clients.gguf_client import GgufClient

            if spec.kind == "self" and own is None:
                raise UsageError("--judge self needs a run: name a GGUF file instead, --judge gguf:PATH")
            path = own if spec.kind == "self" and own else Path(spec.model)
            clients.append(GgufClient(path, name="self" if spec.kind == "self" else None))
    names = [client.identity for client in clients]
    if len(set(names)) < len(names):
        raise UsageError("the same judge is named twice: two seats of one model are one vote")
    return clients


async def close_clients(clients: Sequence[ModelClient]) -> None:
    for client in clients:
        await client.close()
