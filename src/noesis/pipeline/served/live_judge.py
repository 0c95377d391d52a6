"""Judging one answer at a time, for the chat and the served page: `noesis chat|serve RUN --judge SPEC`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from noesis.constitution.document import Constitution
from noesis.core.errors import UsageError
from noesis.core.i18n import _, retold
from noesis.core.messages import Message
from noesis.core.project import Project
from noesis.llm.clients.spec import parse_spec
from noesis.llm.clients.spending import Spending
from noesis.pipeline.consent import tribunal_settings
from noesis.pipeline.served.files import find_base_gguf
from noesis.run.directory import Run
from noesis.tribunal.court import Opinion, opinion
from noesis.tribunal.judge import JudgeCase
from noesis.tribunal.offline_screen import NAME, ScreenedPrompt, screen
from noesis.tribunal.panel import JudgePanel, open_panel
from noesis.tribunal.reading.asking import judge_kinds
from noesis.tribunal.verdict import Unscored, Verdict


@dataclass(frozen=True)
class AnswerOpinion:
    """What is thought of one answer.

    judge: the judges' names, or the screen's
    flags: what the offline screen saw
    opinion, band: the court's opinion and the verdict that it amounts to; None without judges
    verdicts: each judge's, or why it gave none
    """

    judge: str
    flags: tuple[str, ...]
    opinion: Opinion | None = None
    band: str | None = None
    verdicts: tuple[Verdict | Unscored, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As the served page reads it."""
        found: dict[str, Any] = {"judge": self.judge, "flags": list(self.flags), "verdict": self.band}
        if self.opinion is None:
            return found
        found |= {name: value for name, value in self.opinion.to_json().items() if name != "case"}
        return found | {
            "said": [
                {
                    "judge": v.judge,
                    "model": v.model,
                    "reasoning": v.reasoning if isinstance(v, Verdict) else "",
                    "unscored": "" if isinstance(v, Verdict) else v.reason,
                }
                for v in self.verdicts
            ]
        }


class LiveJudge:
    """The judges that were named, loaded and ready for single answers; with none, the offline screen."""

    def __init__(
        self,
        run: Run,
        project: Project,
        constitution: Constitution,
        judges: Sequence[str] = (),
        *,
        max_usd: float | None = None,
    ) -> None:
        """Load the judges.

        Args:
            judges: SPECs, as given with --judge.

        Raises:
            UsageError: a SPEC that is not understood. ModelError: a judge that can't be loaded.
        """
        self._constitution = constitution
        config = run.config()
        self._section = tribunal_settings(config, project) if judges else config.training.tribunal
        self._stack = ExitStack()
        self._panel: JudgePanel | None = None
        self.name = NAME
        if not judges:
            return
        specs = [parse_spec(text, kinds=judge_kinds(self._section.ask)) for text in judges]
        own = find_base_gguf(run) if any(spec.kind == "self" for spec in specs) else None
        spending = Spending(max_usd=max_usd)
        self._panel = self._stack.enter_context(open_panel(project, specs, self._section, spending, own=own))
        self.name = ", ".join(self._panel.names)

    async def judge_answer(self, dialogue: list[Message], answer: str, language: str) -> dict[str, Any]:
        """What `judge` returns, as the served page reads it: JSON."""
        return (await self.judge(dialogue, answer, language)).to_json()

    async def judge(self, dialogue: list[Message], answer: str, language: str) -> AnswerOpinion:
        """The court's opinion of one answer, or, without judges, the screen's flags.

        Args:
            dialogue: the messages before the answer, without the system prompt; the last is the user's.

        Raises:
            UsageError: there is no answer to judge. CapError: the judges' cap is reached.
        """
        if not answer.strip() or not dialogue or dialogue[-1]["role"] != "user":
            raise UsageError(_("there is no answer to judge yet"))
        flags = tuple(screen(answer, ScreenedPrompt(dialogue[-1]["content"], language), self._constitution))
        if self._panel is None:
            return AnswerOpinion(self.name, flags)
        turns = tuple((m["role"], m["content"]) for m in dialogue)
        (verdicts,) = await self._panel.judge(
            [JudgeCase("conversation", language, turns, answer, {"language": language})]
        )
        found = opinion("conversation", verdicts, self._section)
        return AnswerOpinion(self.name, flags, found, found.band(self._section), tuple(verdicts))

    async def close(self) -> None:
        if self._panel is not None:
            await self._panel.close()
        self._stack.close()


def format_opinion(found: AnswerOpinion) -> list[str]:
    """An opinion as lines for a terminal."""
    flags = (
        _("the screen saw: {flags}", flags=", ".join(map(retold, found.flags)))
        if found.flags
        else _("the screen saw nothing")
    )
    if found.opinion is None:
        return [
            f"{retold(found.judge)}: {flags}",
            _("it flags or abstains, it never approves; name a judge with --judge to ask the Tribunal"),
        ]
    mean = _("below quorum") if found.opinion.mean is None else _range(*found.opinion.mean)
    lines = [
        _(
            "{band} ({mean}); judge: {judge}; one answer, no interval: an impression, not a trial",
            band=found.band,
            mean=mean,
            judge=found.judge,
        )
    ]
    for verdict in found.verdicts:
        if isinstance(verdict, Verdict):
            score, why = _range(*found.opinion.judges[verdict.judge]), verdict.reasoning
        else:
            score, why = _("no verdict"), retold(verdict.reason)
        lines.append(f"  {verdict.judge:<8} {score}  {why}")
    if found.opinion.vetoes:
        lines.append(_("  vetoes: {vetoes}", vetoes=", ".join(found.opinion.vetoes)))
    return [*lines, f"  {flags}"]


def _range(low: float, high: float) -> str:
    return f"{low:.2f}" if low == high else _("{low:.2f} to {high:.2f}", low=low, high=high)
