"""From the name of a model to a client that asks it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from noesis.core.config import TribunalSection
from noesis.core.errors import UsageError
from noesis.llm.clients.openai_client import Endpoint
from noesis.llm.clients.protocol import Client
from noesis.llm.clients.spec import Spec, parse_spec
from noesis.llm.clients.spending import Spending
from noesis.llm.clients.torch_client import PackedVoice

SLOTS, SLOT_CONTEXT = 8, 6144  # of a GGUF model: requests at once, tokens of each
FORMS = "openai:BASE_URL:MODEL, gguf:PATH, or torch:NAME (smollm2, a model folder, a Hub name)"


def open_voices(texts: Sequence[tuple[str, str]], section: TribunalSection, spending: Spending) -> list[Client]:
    """A client for each (option, SPEC), in order; the same SPEC is opened once.

    Raises:
        UsageError: a SPEC is none of the forms. ModelError: a model can't be loaded, or has no price where a cap was given.
    """
    opened: dict[str, Client] = {}
    for option, text in texts:
        if text not in opened:
            opened[text] = _open(option, text, section, spending)
    return [opened[text] for _, text in texts]


def _open(option: str, text: str, section: TribunalSection, spending: Spending) -> Client:
    if text.startswith("torch:") and len(text) > 6:
        if option == "--judge":
            raise UsageError(
                f"{option} {text}: a judge writes structured verdicts, which torch: does not do; name a gguf: file or an endpoint"
            )
        return PackedVoice(text[6:])
    if text == "self" or not text.startswith(("openai:", "gguf:")):
        raise UsageError(f"{option} {text!r} is not understood: use {FORMS}")
    spec = parse_spec(text, option)
    if spec.kind == "openai":
        return Endpoint(spec, section, spending)
    from noesis.llm.clients.gguf_client import LocalJudge

    return LocalJudge(Path(spec.model), parallel=SLOTS, context=SLOT_CONTEXT)


async def close_all(clients: Sequence[Client]) -> None:
    """Close each client once."""
    for client in {id(c): c for c in clients}.values():
        await client.close()


def seat(
    specs: Sequence[Spec], section: TribunalSection, spending: Spending, *, own: Path | None = None
) -> list[Client]:
    """A client for each judge. `own`: the GGUF that `self` means."""
    clients: list[Client] = []
    for spec in specs:
        if spec.kind == "openai":
            clients.append(Endpoint(spec, section, spending))
        else:
            from noesis.llm.clients.gguf_client import LocalJudge

            if spec.kind == "self" and own is None:
                raise UsageError("--judge self needs a run: name a GGUF file instead, --judge gguf:PATH")
            path = own if spec.kind == "self" and own else Path(spec.model)
            clients.append(LocalJudge(path, name="self" if spec.kind == "self" else None))
    names = [client.identity for client in clients]
    if len(set(names)) < len(names):
        raise UsageError("the same judge is named twice: two seats of one model are one vote")
    return clients


async def _close(clients: Sequence[Client]) -> None:
    for client in clients:
        await client.close()
