"""Which files of a run are served, and whether an endpoint serves them: for `noesis serve`, `chat` and `connect`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from noesis.constitution.document import load_constitution
from noesis.core.console import command, say
from noesis.core.errors import NoesisError, RunError
from noesis.core.files import files_in
from noesis.core.i18n import _
from noesis.core.jsonl import read_objects
from noesis.core.messages import Message
from noesis.llm.clients.chat_client import Completion, LLMClient
from noesis.llm.embedded import EMBEDDED
from noesis.llm.hub import find_tokenizer
from noesis.llm.llama_cpp import LlamaServer
from noesis.pipeline.gguf_files import base_gguf
from noesis.pipeline.results import RunResults
from noesis.pipeline.session import reopen_run
from noesis.run.directory import Run
from noesis.serving.probe import AnswerDistance, answer_distance, ask_endpoint, same_model_verdict
from noesis.serving.server import ModelFiles

BEST_FIRST = ("f16", "q8_0", "q4_k_m", "f32")  # what is served unless a kind is asked for
PROBE_PROMPTS = 6  # half of them in each language
PROBE_STOP_S = 10.0


@dataclass(frozen=True)
class ProbeResult:
    """Whether an endpoint answers as a run's model."""

    same: bool
    why: str
    chat: str  # its answer to the first prompt
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    reference: str  # name of the run's own GGUF file
    tuned: AnswerDistance  # from the run's model
    base: AnswerDistance | None  # from its base, where that is at hand

    def to_json(self) -> dict[str, Any]:
        return {
            "same": self.same,
            "why": self.why,
            "chat": self.chat,
            "usage": {
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": self.completion_tokens,
                "total_tokens": self.total_tokens,
            },
            "reference": self.reference,
            "tuned": asdict(self.tuned),
            "base": asdict(self.base) if self.base else None,
        }


def certified_gguf(run: Run, quant: str | None = None) -> Path:
    """The run's GGUF file to serve: one that was shown to behave like the trained model.

    Args:
        quant: a kind (`q8_0`); default: the best that passed.

    Raises:
        RunError: there is none, or it was changed since.
    """
    certificate = RunResults(run).certificate
    passed = [kind for kind, comparison in certificate.files.items() if comparison.passed] if certificate else []
    best = next((kind for kind in ([quant] if quant else [*BEST_FIRST, *passed]) if kind in passed), None)
    if best is None:
        which = f"no {quant} GGUF file" if quant else "no GGUF file"
        raise RunError(
            _(
                "{path} holds {which} that was shown to behave like the model: run  {command}  first",
                path=run.path,
                which=which,
                command=command("gguf", run.path),
            )
        )
    file = run.gguf / f"{run.merged.name}-{best}.gguf"
    if not run.vouches_for("gguf", file):
        raise RunError(
            _(
                "{file} is missing, or was changed since it was certified: run  {command}",
                file=file,
                command=command("gguf", run.path, "--again"),
            )
        )
    return file


def served_files(run: Run, *, quant: str | None = None, base: Path | None = None, lazy: bool = False) -> ModelFiles:
    """The files to load: base and certified adapter where the run has both, else the merged model, and the base if it
    is at hand.

    Args:
        quant: serve this kind of the merged model, not the adapter.
        base: a GGUF file of the base; default: looked for.
        lazy: look for the base only if the adapter needs it.

    Raises:
        RunError: as `certified_gguf`.
    """
    adapter = None if quant else _certified_adapter(run)
    if base is None and (adapter is not None or not lazy):
        base = find_base_gguf(run)
    if adapter is not None and base is not None:
        return ModelFiles(None, base, adapter)
    tuned = certified_gguf(run, quant)
    if base is None and not lazy:
        say(_("  the base is not at hand, so it is not served; name its GGUF file with --base"))
    return ModelFiles(tuned, base)


def _certified_adapter(run: Run) -> Path | None:
    """The adapter's GGUF, if there is one, it passed, and it is unchanged."""
    certificate, file = RunResults(run).certificate, run.gguf / f"{run.merged.name}-adapter.gguf"
    if certificate is None or certificate.adapter is None or not certificate.adapter.passed or not file.is_file():
        return None
    return file if run.vouches_for("gguf", file) else None


def find_base_gguf(run: Run) -> Path | None:
    """The run's base as a GGUF file: cached, or written from weights on this machine; nothing is downloaded for it."""
    name, revision = run.identity.base_model, run.config().training.revision
    folder = find_tokenizer(name, revision) if name != EMBEDDED else None
    if name != EMBEDDED and (folder is None or not files_in(folder, ".safetensors")):
        return None
    try:
        return base_gguf(reopen_run(run.path))
    except (NoesisError, ImportError) as error:
        say(f"  {error}")
        return None


def probe_endpoint(run: Run, client: LLMClient, *, base: Path | None = None) -> ProbeResult:
    """Does the endpoint answer as this run's model? A chat, and a parity sample against the run's certified GGUF file.

    Args:
        base: a GGUF file of the base, to compare with; default: looked for.
    """
    conversations = _probe_conversations(run)
    ours = any(m.get("id") == client.model and m.get("owned_by") == "noesis" for m in client.models())
    plain = {"repeat_penalty": 1.0, "include_analysis": True} if ours else {}  # the default of other endpoints
    chat = client.complete(conversations[0], max_tokens=32)
    found = ask_endpoint(client, conversations, **plain)
    file, base = certified_gguf(run), base or find_base_gguf(run)
    from_tuned = answer_distance(_reference_answers(file, conversations), found)
    from_base = answer_distance(_reference_answers(base, conversations), found) if base else None
    same, why = same_model_verdict(from_tuned, from_base)
    return ProbeResult(
        same=same,
        why=why,
        chat=chat.text,
        prompt_tokens=chat.prompt_tokens,
        completion_tokens=chat.completion_tokens,
        total_tokens=chat.total_tokens,
        reference=file.name,
        tuned=from_tuned,
        base=from_base,
    )


def first_question(run: Run) -> str:
    """A question of the kind that the model was made for: the first that was held out."""
    for row in read_objects(run.data / "eval.jsonl"):
        if isinstance(row.get("prompt"), str):
            return " ".join(row["prompt"].split())
    return "?"


def _probe_conversations(run: Run) -> list[list[Message]]:
    """The constitution's first principles as prompts, in each of its languages."""
    constitution = load_constitution(run.data / "constitution.yaml")
    system: Message = {"role": "system", "content": constitution.system_prompt[constitution.languages[0]]}
    prompts = [text for p in constitution.principles[:PROBE_PROMPTS] for text in p.texts.values()][:PROBE_PROMPTS]
    return [[system, {"role": "user", "content": text}] for text in prompts]


def _reference_answers(file: Path, conversations: list[list[Message]]) -> list[Completion]:
    """What the file itself answers."""
    server = LlamaServer(file, parallel=1)
    client = LLMClient(server.url + "/v1", server.key, "reference", socket=server.socket)
    try:
        return ask_endpoint(client, conversations, repeat_penalty=1.0, cache_prompt=False)
    finally:
        client.close()
        server.stop(PROBE_STOP_S)
