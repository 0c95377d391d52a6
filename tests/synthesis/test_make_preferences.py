"""Soft preference labels: probabilities in both orders, clamped after reasoning, and refused where an endpoint gives none."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from helpers.judge_server import Asked, JudgeServer, Raw
from helpers.project import ROOT
from noesis.core.errors import DataError, ModelError, UsageError
from noesis.core.project import Project
from noesis.llm.clients.protocol import ModelReply
from noesis.synthesis.make_preferences import make_preferences
from noesis.synthesis.preference_labels import NoLabel, PreferencesRequest, p_of_a


def logprobs(*tokens: tuple[str, float]) -> tuple[tuple[tuple[str, float], ...], ...]:
    return (tuple((token, math.log(p)) for token, p in tokens),)


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def answers(asked: Asked) -> tuple[str, str]:
    """What stands as (A) and as (B)."""
    text = next(m["content"] for m in asked.body["messages"] if "(A)" in m["content"])
    first, second = re.findall(r"<<<(?:ANSWER|RESPOSTA) \w+>>>\n(.*?)\n<<<(?:END|FIM)", text, re.DOTALL)
    return first, second


def critic(quality: float, liking: float):
    """Finds the answer with "better" in it better with this probability, whatever the order, plus a liking for the first place."""

    def part(asked: Asked) -> Raw | str:
        if not asked.body.get("logprobs"):
            return "The first says one thing and the second says another about what the principle asks for."
        first, _ = answers(asked)
        p = (quality if "better" in first else 1 - quality) + liking
        return Raw(text="A", letters=((" A", p * 0.8), ("B", (1 - p) * 0.8), ("The", 0.2)))

    return part


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [
        {
            "id": f"d{i}",
            "language": "en",
            "prompt": f"What do I owe the neighbour of house {i}?",
            "a": f"Less than he thinks, {i}.",
            "b": f"Ask him, better, {i}.",
        }
        for i in range(4)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def ask(server: JudgeServer, out: Path, **more) -> PreferencesRequest:
    return PreferencesRequest(f"openai:{server.url}:scripted", out, **more)


def test_a_liking_for_the_first_place_cancels_out(project: Path, tmp_path: Path, pairs: Path):
    with JudgeServer(critic(0.7, 0.2)) as server:
        report = make_preferences(Project(project), ask(server, tmp_path / "out", pairs=pairs))
    rows = lines(tmp_path / "out/pairs.jsonl")
    assert len(server.requests) == 8
    assert [row["chosen"] for row in rows] == [f"Ask him, better, {i}." for i in range(4)]
    assert [row["rejected"] for row in rows] == [f"Less than he thinks, {i}." for i in range(4)]
    assert [row["p_chosen"] for row in rows] == pytest.approx([0.7] * 4)
    assert report["first_place"]["mean"] == pytest.approx(0.7)
    assert {tuple(row) for row in rows} == {
        ("id", "language", "prompt", "chosen", "rejected", "p_chosen", "principle", "generated", "lineage")
    }
    assert all(row["lineage"]["settings"]["orders"] == pytest.approx([0.5, 0.1]) for row in rows)


def test_reasoning_is_clamped(project: Path, tmp_path: Path, pairs: Path):
    with JudgeServer(critic(0.95, 0.0)) as server:
        make_preferences(Project(project), ask(server, tmp_path / "out", pairs=pairs, reasoning=True))
        letter = next(asked for asked in server.requests if asked.body.get("logprobs"))
    assert [row["p_chosen"] for row in lines(tmp_path / "out/pairs.jsonl")] == pytest.approx([0.6] * 4)
    assert [m["role"] for m in letter.body["messages"]] == ["system", "user", "assistant", "user"]


def test_an_endpoint_without_logprobs_is_told(project: Path, tmp_path: Path, pairs: Path):
    with JudgeServer(lambda asked: "A") as server, pytest.raises(ModelError, match="gives no log-probabilities"):
        make_preferences(Project(project), ask(server, tmp_path / "out", pairs=pairs))
    refusing = lambda asked: Raw(400, "logprobs is not supported") if asked.body.get("logprobs") else "A"  # noqa: E731
    with JudgeServer(refusing) as server, pytest.raises(ModelError, match="gives no log-probabilities"):
        make_preferences(Project(project), ask(server, tmp_path / "out2", pairs=pairs))


def test_records_are_pairs_of_revision_and_initial_answer(project: Path, tmp_path: Path):
    part = critic(0.9, 0.0)
    examples = ROOT / "data/training/philosophical_en/maieutica.jsonl"
    wanted = [row["response_revised"] for row in lines(examples)]

    def prefers_the_revision(asked: Asked):
        first, _ = answers(asked)
        return Raw(text="A", letters=(("A", 0.9 if first in wanted else 0.1), ("B", 0.1 if first in wanted else 0.9)))

    assert part
    with JudgeServer(prefers_the_revision) as server:
        report = make_preferences(Project(project), ask(server, tmp_path / "out", pairs=examples, count=5))
    assert report["revised_preferred"] == {"count": 5, "of": 5}


def test_a_model_answers_twice(project: Path, tmp_path: Path, pairs: Path):
    def part(asked: Asked) -> Raw | str:
        if asked.body["messages"][0]["role"] == "user":
            return f"With the seed {asked.body['seed']} I would first ask the neighbour what he remembers of it all."
        return Raw(
            text="A",
            letters=(("A", 0.6), ("B", 0.4)) if max(answers(asked)) == answers(asked)[0] else (("A", 0.4), ("B", 0.6)),
        )

    with JudgeServer(part) as server:
        spec = f"openai:{server.url}:scripted"
        report = make_preferences(Project(project), ask(server, tmp_path / "out", prompts=pairs, model=spec))
    assert report["labelled"] == 4
    assert all(
        row["p_chosen"] == pytest.approx(0.6) and row["chosen"] > row["rejected"]
        for row in lines(tmp_path / "out/pairs.jsonl")
    )


def test_equal_answers_and_wrong_options_are_refused(project: Path, tmp_path: Path, pairs: Path):
    same = tmp_path / "same.jsonl"
    same.write_text(
        json.dumps({"id": "x", "prompt": "What is owed here?", "a": "This.", "b": "This."}) + "\n", encoding="utf-8"
    )
    with JudgeServer(critic(0.9, 0.0)) as server:
        with pytest.raises(DataError, match=r"same\.jsonl:1: two different answers"):
            make_preferences(Project(project), ask(server, tmp_path / "out", pairs=same))
        with pytest.raises(UsageError, match="--pairs"):
            make_preferences(Project(project), ask(server, tmp_path / "out"))
        with pytest.raises(UsageError, match="--model"):
            make_preferences(Project(project), ask(server, tmp_path / "out", prompts=pairs))


def test_letters_are_found_however_they_are_written():
    assert p_of_a(
        ModelReply("A", top_logprobs=logprobs((" A", 0.3), ("(A", 0.3), ("**B**", 0.2), ("The", 0.2)))
    ) == pytest.approx(0.75)
    after_a_mark = (((("**", math.log(0.99)),)), *logprobs(("B", 0.5), ("A", 0.25)))
    assert p_of_a(ModelReply("**B", top_logprobs=after_a_mark)) == pytest.approx(1 / 3)
    with pytest.raises(NoLabel, match="neither letter"):
        p_of_a(ModelReply("Both", top_logprobs=logprobs(("Both", 0.9), ("Apple", 0.1))))
