"""Which files of a run are served, and who judges their answers: what `noesis serve`, `chat` and `connect` have in common.

Brings together what the stages left: the certificates of `release`, the base of `pipeline`, the judges of `tribunal`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from noesis.constitution.document import load_constitution
from noesis.core.console import command, say
from noesis.core.errors import NoesisError, RunError
from noesis.core.messages import Message
from noesis.llm.clients.chat_client import Completion, LLMClient
from noesis.llm.embedded import EMBEDDED
from noesis.llm.hub import find_tokenizer
from noesis.llm.llama_cpp import LlamaServer
from noesis.pipeline.gguf_files import base_gguf
from noesis.pipeline.session import reopen_run
from noesis.run.directory import Run
from noesis.serving.probe import ask_endpoint, distance, same_model_verdict
from noesis.serving.server import ModelFiles

BEST_FIRST = ("f16", "q8_0", "q4_k_m", "f32")  # what is served unless a quantisation is asked for


def certified_gguf(run: Run, quant: str | None = None) -> Path:
    """The GGUF file of the run that is to be served: one that was shown to behave like the model that was trained.

    Raises:
        RunError: there is none, or it is not the one that was certified.
    """
    done = (run.result("gguf") or {}).get("files", {})
    kinds = [quant] if quant else [*BEST_FIRST, *done]
    best = next((k for k in kinds if k != "adapter" and done.get(k, {}).get("passed")), None)
    if best is None:
        which = f"no {quant} GGUF file" if quant else "no GGUF file"
        raise RunError(
            f"{run.path} holds {which} that was shown to behave like the model: run  {command('gguf', run.path)}  first"
        )
    file = run.gguf / f"{run.merged.name}-{best}.gguf"
    if wrong := [name for name in run.changed("gguf") if name.startswith(f"gguf/{file.name}:")]:
        raise RunError(f"{run.path}: {wrong[0]} since it was certified: run  {command('gguf', run.path, '--again')}")
    return file


def served_files(run: Run, *, quant: str | None = None, base: Path | None = None, lazily: bool = False) -> ModelFiles:
    """What is loaded: base and certified adapter where the run has them, else the merged model and, where it is at hand, the base.

    Args:
        lazily: look for the base only if the adapter needs it.
    """
    adapter = run.gguf / f"{run.merged.name}-adapter.gguf"
    passed = ((run.result("gguf") or {}).get("adapter") or {}).get("passed")
    sound = (
        quant is None and passed and adapter.is_file() and not any(adapter.name in name for name in run.changed("gguf"))
    )
    if not (lazily and not sound):
        base = base or find_base_gguf(run)
    if sound and base is not None:
        return ModelFiles(None, base, adapter)
    tuned = certified_gguf(run, quant)
    if base is None and not lazily:
        say("  the base is not at hand, so noesis-base is not served; name its GGUF file with --base")
    return ModelFiles(tuned, base)


def find_base_gguf(run: Run) -> Path | None:
    """The run's base as a GGUF file: from the cache, or written for the embedded model; a large one is not fetched for this."""
    name, revision = run.manifest["identity"]["base_model"], run.config().training.revision
    here = find_tokenizer(name, revision) if name != EMBEDDED else None
    if name != EMBEDDED and (here is None or not any(here.glob("*.safetensors"))):
        return None
    try:
        return base_gguf(reopen_run(run.path))
    except (NoesisError, ImportError) as error:
        say(f"  {error}")
        return None


def probe_endpoint(run: Run, client: LLMClient, *, base: Path | None = None, samples: int = 6) -> dict[str, Any]:
    """Does the endpoint answer as this run's model? A chat, and a parity sample against the run's certified GGUF file."""
    constitution = load_constitution(run.data / "constitution.yaml")
    system: Message = {"role": "system", "content": constitution.system_prompt.pt}
    asked = [text for p in constitution.principles[: samples // 2] for text in (p.pt, p.en)]
    conversations = [[system, {"role": "user", "content": text}] for text in asked]
    ours = any(m.get("id") == client.model and m.get("owned_by") == "noesis" for m in client.models())
    plain = {"repeat_penalty": 1.0, "include_analysis": True} if ours else {}  # what another endpoint does of itself
    chat = client.complete(conversations[0], max_tokens=32)
    found = ask_endpoint(client, conversations, **plain)
    file, base = certified_gguf(run), base or find_base_gguf(run)
    tuned = distance(_reference(file, conversations), found)
    other = distance(_reference(base, conversations), found) if base else None
    same, why = same_model_verdict(tuned, other)
    usage = {
        "prompt_tokens": chat.prompt_tokens,
        "completion_tokens": chat.completion_tokens,
        "total_tokens": chat.total_tokens,
    }
    return {
        "same": same,
        "why": why,
        "chat": chat.text,
        "usage": usage,
        "reference": file.name,
        "tuned": vars(tuned),
        "base": vars(other) if other else None,
    }


def _reference(file: Path, conversations: list[list[Message]]) -> list[Completion]:
    """What the file itself answers."""
    backend = LlamaServer(file, parallel=1)
    client = LLMClient(backend.url + "/v1", backend.key, "reference")
    try:
        return ask_endpoint(client, conversations, repeat_penalty=1.0, cache_prompt=False)
    finally:
        client.close()
        backend.stop(10.0)
