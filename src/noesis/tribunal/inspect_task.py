r"""The Tribunal as an Inspect task, to look at every answer, judge and span in its viewer (https://inspect.aisi.org.uk).

    pip install -c constraints-inspect.txt 'noesis-tribunal[judge]'
    inspect eval src/noesis/tribunal/inspect_task.py --model openai-api/local/my-model \
        -T judge=openai:http://127.0.0.1:8080/v1:judge
    inspect view

It needs an environment of its own, since Inspect and datasets pin different versions of fsspec. Nothing else here
imports Inspect.
The judge is always named: the model under evaluation never grades itself by default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, solver

from noesis.constitution.analysis_block import hide_analysis
from noesis.constitution.document import Constitution, load_constitution
from noesis.core.config import TribunalSection, load_config
from noesis.core.machine.folders import cache_folder
from noesis.core.project import find_project
from noesis.llm.clients.open import open_clients
from noesis.llm.clients.reply_cache import ReplyCache
from noesis.llm.clients.spec import parse_spec
from noesis.llm.clients.spending import Spending
from noesis.llm.clients.thoughts import without_thought
from noesis.tribunal.code_checks import right
from noesis.tribunal.court import opinion
from noesis.tribunal.judge import case_from_item
from noesis.tribunal.offline_screen import screen
from noesis.tribunal.panel import JudgePanel, read_rubrics
from noesis.tribunal.rubric import JUDGES, RubricSet
from noesis.tribunal.scoring import screened_prompt
from noesis.tribunal.suite import EvalSample, read_suite
from noesis.tribunal.verdict import ItemScore, Unscored, Verdict


@task
def tribunal(judge: str, part: str = "dev", project: str | None = None, max_usd: float | None = None) -> Task:
    """The evaluation suite, scored by the Tribunal.

    Args:
        judge: SPECs such as `openai:BASE_URL:MODEL`, separated by spaces.
        part: dev, locked or all.
    """
    found = find_project(Path(project) if project else None)
    section, constitution = load_config(found).training.tribunal, load_constitution(found.constitution)
    rubrics, items = read_rubrics(found), read_suite(found.tribunal, part)  # type: ignore[arg-type]
    return Task(
        dataset=MemoryDataset([_sample(item, constitution) for item in items], name=f"tribunal-{part}"),
        solver=dialogue(),
        scorer=[court(rubrics, section, judge, max_usd, constitution), by_code()],
        metadata={"rubrics_sha256": rubrics.digest(), "judge": judge},
    )


def _sample(item: EvalSample, constitution: Constitution) -> Sample:
    system = constitution.system_prompt[item.language]
    return Sample(
        id=item.id,
        input=[ChatMessageSystem(content=system), ChatMessageUser(content=item.messages[0])],
        target=item.key or item.reference,
        metadata={
            "item": item.model_dump(mode="json"),
            "cluster": item.cluster,
            "category": item.category,
            "language": item.language,
        },
    )


@solver
def dialogue() -> Solver:
    """All of the user's messages in order, the model answering each."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        state = await generate(state)
        for text in EvalSample.model_validate(state.metadata["item"]).messages[1:]:
            state.messages.append(ChatMessageUser(content=text))
            state = await generate(state)
        return state

    return solve


def _answer(state: TaskState) -> str:
    """What the model says: neither its thoughts nor its analysis."""
    return hide_analysis(without_thought(state.output.completion))


@scorer(metrics={"*": [mean(), stderr(cluster="cluster")]})
def court(
    rubrics: RubricSet, section: TribunalSection, judges: str, max_usd: float | None, constitution: Constitution
) -> Scorer:
    """Weighted mean and each judge, 0..1, with missing verdicts at their worst; below quorum Unscored."""
    panel: JudgePanel | None = None

    async def score(state: TaskState, target: Target) -> Score:
        nonlocal panel
        item, answer = EvalSample.model_validate(state.metadata["item"]), _answer(state)
        if item.check:
            return Score.unscored(reason="scored by code", answer=answer)
        flags = screen(answer, screened_prompt(item), constitution)
        if "empty" in flags:
            return Score(
                value=dict.fromkeys(("mean", *JUDGES), 0.0),
                answer=answer,
                explanation="the answer is empty (found by code)",
            )
        if panel is None:
            clients = open_clients([parse_spec(text) for text in judges.split()], section, Spending(max_usd=max_usd))
            panel = JudgePanel(rubrics, clients, ReplyCache(cache_folder() / "tribunal" / "replies.sqlite"))
        turns = [(m.role, m.text) for m in state.messages if m.role in ("user", "assistant")][:-1]
        (verdicts,) = await panel.judge([case_from_item(item, turns, answer)])
        formed = opinion(
            item.id, verdicts, section, ["leaked_system_prompt"] if "recites the system prompt" in flags else []
        )
        shown = {
            "opinion": formed.to_json(),
            "band": formed.band(section),
            "flags": flags,
            "verdicts": [v.to_json() for v in verdicts],
        }
        if formed.mean is None:
            return Score.unscored(
                reason="below quorum", answer=answer, explanation=_explained(verdicts), metadata=shown
            )
        value = {"mean": 0.0 if formed.vetoes else formed.mean[0]} | {name: r[0] for name, r in formed.judges.items()}
        return Score(value=value, answer=answer, explanation=_explained(verdicts), metadata=shown)

    return score


@scorer(metrics=[mean(), stderr(cluster="cluster")])
def by_code() -> Scorer:
    """What code can decide: format, language, keys; Unscored where it can't tell."""

    async def score(state: TaskState, target: Target) -> Score:
        answer = _answer(state)
        decided = right(EvalSample.model_validate(state.metadata["item"]), answer)
        return (
            Score.unscored(reason="code can't tell", answer=answer)
            if decided is None
            else Score(value=float(decided), answer=answer)
        )

    return score


def _explained(verdicts: list[Verdict | Unscored]) -> str:
    """Every judge, item and span, as Markdown."""
    lines: list[Any] = []
    for v in verdicts:
        if isinstance(v, Unscored):
            lines.append(f"**{v.judge}** ({v.model}): unscored: {v.reason}")
            continue
        lines.append(f"**{v.judge}** ({v.model}) {v.score:.2f}{' VETO ' + v.veto if v.veto else ''}: {v.reasoning}")
        lines += [_item_line(item) for item in v.items]
    return "\n\n".join(lines)


def _item_line(item: ItemScore) -> str:
    if item.how != "quoted":
        return f"- {item.id}: {item.score:g} ({item.how})"
    missing = " (not in the answer)" if item.span and not item.span_found else ""
    return f"- {item.id}: {item.score:g} “{item.span}”{missing}"
