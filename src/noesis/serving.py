"""Which files of a run are served, and who judges their answers: what `noesis serve`, `chat` and `connect` have in common.

Brings together what the stages left: the certificates of `release`, the base of `pipeline`, the judges of `tribunal`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from noesis.config import Config, Project
from noesis.console import say
from noesis.constitution.conversation import Message
from noesis.constitution.document import Constitution, load_constitution
from noesis.errors import NoesisError, RunError, UsageError
from noesis.judging import seat, tribunal_folder
from noesis.models import EMBEDDED, cache_folder, find_tokenizer
from noesis.releasing import base_gguf
from noesis.run import Run
from noesis.serve.backend import Backend
from noesis.serve.client import Completion, LLMClient
from noesis.serve.probe import ask, distance, judgement
from noesis.serve.server import Files
from noesis.sessions import session_of
from noesis.tribunal.cache import opened
from noesis.tribunal.client import parse_spec
from noesis.tribunal.court import Seats, opinion
from noesis.tribunal.endpoint import Spending
from noesis.tribunal.judge import Case
from noesis.tribunal.rubric import load_bench
from noesis.tribunal.screen import NAME, screen

BEST_FIRST = ("f16", "q8_0", "q4_k_m", "f32")  # what is served unless a quantisation is asked for


def certified(run: Run, quant: str | None = None) -> Path:
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
            f"{run.path} holds {which} that was shown to behave like the model: run  noesis gguf {run.path}  first"
        )
    file = run.gguf / f"{run.merged.name}-{best}.gguf"
    if wrong := [name for name in run.changed("gguf") if name.startswith(f"gguf/{file.name}:")]:
        raise RunError(f"{run.path}: {wrong[0]} since it was certified: run  noesis gguf {run.path} --again")
    return file


def files_of(run: Run, *, quant: str | None = None, base: Path | None = None, lazily: bool = False) -> Files:
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
        base = base or known_base(run)
    if sound and base is not None:
        return Files(None, base, adapter)
    tuned = certified(run, quant)
    if base is None and not lazily:
        say("  the base is not at hand, so noesis-base is not served; name its GGUF file with --base")
    return Files(tuned, base)


def known_base(run: Run) -> Path | None:
    """The run's base as a GGUF file: from the cache, or written for the embedded model; a large one is not fetched for this."""
    name, revision = run.manifest["identity"]["base_model"], run.config().training.revision
    here = find_tokenizer(name, revision) if name != EMBEDDED else None
    if name != EMBEDDED and (here is None or not any(here.glob("*.safetensors"))):
        return None
    try:
        return base_gguf(session_of(run.path))
    except (NoesisError, ImportError) as error:
        say(f"  {error}")
        return None


class Bar:
    """The judges that were named, ready to hear single answers; with none, the offline screen."""

    def __init__(
        self,
        run: Run,
        project: Project,
        constitution: Constitution,
        judges: Sequence[str] = (),
        *,
        max_usd: float | None = None,
    ) -> None:
        """Load or look up the judges.

        Raises:
            UsageError: a judge that is not understood. ModelError: one that can't be loaded.
        """
        self._constitution = constitution
        self._section = _section(run.config())
        self._stack = ExitStack()
        self._seats: Seats | None = None
        self.name = NAME
        if not judges:
            return
        specs = [parse_spec(text) for text in judges]
        own = known_base(run) if any(spec.kind == "self" for spec in specs) else None
        clients = seat(specs, self._section, Spending(max_usd=max_usd), own=own)
        cache = self._stack.enter_context(opened(cache_folder() / "tribunal" / "replies.sqlite"))
        self._seats = Seats(load_bench(tribunal_folder(project) / "judges"), clients, cache)
        self.name = ", ".join(client.name for client in clients)

    async def hear(self, said: list[dict[str, str]], answer: str, language: str) -> dict[str, Any]:
        """The court's opinion of one answer, or what the screen saw in it.

        Args:
            said: the conversation before the answer, the system prompt left out; it ends with the user.

        Raises:
            UsageError: there is no answer to judge. CapError: the judges' cap is reached.
        """
        if not answer.strip() or not said or said[-1]["role"] != "user":
            raise UsageError("there is no answer to judge yet")
        flags = screen(answer, {"prompt": said[-1]["content"], "language": language}, self._constitution)
        if self._seats is None:
            return {"judge": self.name, "flags": flags, "verdict": None}
        case = Case(
            "conversation", language, tuple((m["role"], m["content"]) for m in said), answer, {"language": language}
        )
        (verdicts,) = await self._seats.hear([case])
        found = opinion(case.id, verdicts, self._section)
        return {
            "judge": self.name,
            "flags": flags,
            "verdict": found.band(self._section),
            **{name: value for name, value in found.as_json().items() if name != "case"},
            "said": [
                {
                    "judge": v.judge,
                    "model": v.model,
                    "reasoning": getattr(v, "reasoning", ""),
                    "unscored": getattr(v, "reason", ""),
                }
                for v in verdicts
            ],
        }

    async def close(self) -> None:
        for client in self._seats.clients if self._seats else []:
            await client.close()
        self._stack.close()


def prove(run: Run, client: LLMClient, *, base: Path | None = None, samples: int = 6) -> dict[str, Any]:
    """Does the endpoint answer as this run's model? A chat, and a parity sample against the run's certified GGUF file."""
    constitution = load_constitution(run.data / "constitution.yaml")
    system: Message = {"role": "system", "content": constitution.system_prompt.pt}
    asked = [text for p in constitution.principles[: samples // 2] for text in (p.pt, p.en)]
    conversations = [[system, {"role": "user", "content": text}] for text in asked]
    ours = any(m.get("id") == client.model and m.get("owned_by") == "noesis" for m in client.models())
    plain = {"repeat_penalty": 1.0, "include_analysis": True} if ours else {}  # what another endpoint does of itself
    chat = client.complete(conversations[0], max_tokens=32)
    found = ask(client, conversations, **plain)
    file, base = certified(run), base or known_base(run)
    tuned = distance(_reference(file, conversations), found)
    other = distance(_reference(base, conversations), found) if base else None
    same, why = judgement(tuned, other)
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
    backend = Backend(file, parallel=1)
    client = LLMClient(backend.url + "/v1", backend.key, "reference")
    try:
        return ask(client, conversations, repeat_penalty=1.0, cache_prompt=False)
    finally:
        client.close()
        backend.stop(10.0)


def spoken(heard: dict[str, Any]) -> list[str]:
    """The opinion as lines for a terminal."""
    flags = f"the screen saw: {', '.join(heard['flags'])}" if heard["flags"] else "the screen saw nothing"
    if heard["verdict"] is None:
        return [
            f"{heard['judge']}: {flags}",
            "it flags or abstains, it never approves; name a judge with --judge to hear the Tribunal",
        ]
    mean = heard["mean"]
    figures = (
        "below quorum"
        if mean is None
        else f"{mean[0]:.2f}"
        if mean[0] == mean[1]
        else f"{mean[0]:.2f} to {mean[1]:.2f}"
    )
    lines = [
        f"{heard['verdict']} ({figures}); judge: {heard['judge']}; one answer, no interval: an impression, not a trial"
    ]
    for said in heard["said"]:
        low, high = heard["judges"][said["judge"]]
        score = "no verdict" if said["unscored"] else f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"
        lines.append(f"  {said['judge']:<8} {score}  {said['unscored'] or said['reasoning']}")
    return [*lines, *([f"  vetoes: {', '.join(heard['vetoes'])}"] if heard["vetoes"] else []), f"  {flags}"]


def _section(config: Config) -> Any:
    return config.training.tribunal
