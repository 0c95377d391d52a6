"""One answer before the judges: what the chat and the served page show."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from noesis.constitution.document import Constitution
from noesis.core.config import Config
from noesis.core.errors import UsageError
from noesis.core.project import Project, cache_folder, tribunal_folder
from noesis.llm.clients.open import open_judges
from noesis.llm.clients.reply_cache import open_cache
from noesis.llm.clients.spec import parse_spec
from noesis.llm.clients.spending import Spending
from noesis.pipeline.served_files import find_base_gguf
from noesis.run.directory import Run
from noesis.tribunal.court import opinion
from noesis.tribunal.judge import JudgeCase
from noesis.tribunal.offline_screen import NAME, ScreenedPrompt, screen
from noesis.tribunal.panel import JudgePanel
from noesis.tribunal.rubric import load_rubrics


class LiveJudge:
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
        self._seats: JudgePanel | None = None
        self.name = NAME
        if not judges:
            return
        specs = [parse_spec(text) for text in judges]
        own = find_base_gguf(run) if any(spec.kind == "self" for spec in specs) else None
        clients = open_judges(specs, self._section, Spending(max_usd=max_usd), own=own)
        cache = self._stack.enter_context(open_cache(cache_folder() / "tribunal" / "replies.sqlite"))
        self._seats = JudgePanel(load_rubrics(tribunal_folder(project) / "judges"), clients, cache)
        self.name = ", ".join(client.name for client in clients)

    async def judge_answer(self, said: list[dict[str, str]], answer: str, language: str) -> dict[str, Any]:
        """The court's opinion of one answer, or what the screen saw in it.

        Args:
            said: the conversation before the answer, the system prompt left out; it ends with the user.

        Raises:
            UsageError: there is no answer to judge. CapError: the judges' cap is reached.
        """
        if not answer.strip() or not said or said[-1]["role"] != "user":
            raise UsageError("there is no answer to judge yet")
        flags = screen(answer, ScreenedPrompt(said[-1]["content"], language), self._constitution)
        if self._seats is None:
            return {"judge": self.name, "flags": flags, "verdict": None}
        case = JudgeCase(
            "conversation", language, tuple((m["role"], m["content"]) for m in said), answer, {"language": language}
        )
        (verdicts,) = await self._seats.judge([case])
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


def format_opinion(heard: dict[str, Any]) -> list[str]:
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
