"""`noesis constitution revise` on a scripted endpoint: good and bad models, and what is refused before any request."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.judge_server import Asked, JudgeServer, Raw, together
from helpers.project import ROOT
from helpers.scripted_writer import ask, good, lines, prompt_row, spoiled, subject
from noesis.constitution.document import load_constitution
from noesis.core.errors import DataError, UsageError
from noesis.core.project import Project
from noesis.dataset.checks.line import Rules, check_line
from noesis.llm.clients.spec import WRITER_KINDS, parse_spec
from noesis.synthesis.make_examples import make_examples

CONSTITUTION = load_constitution(ROOT / "data" / "constitution.yaml")


def test_good_models_give_examples_that_the_gate_lets_pass(project: Path, tmp_path: Path, prompts):
    out = tmp_path / "out"
    with JudgeServer(together(good, 2)) as server:
        report = make_examples(Project(project), ask(server, prompts([prompt_row(i) for i in range(6)]), out, rounds=2))
    rows = lines(out / "examples.jsonl")
    assert (report["made"], report["kept"], len(rows)) == (6, 6, 6)
    rules = Rules(tuple(sorted(CONSTITUTION.value_ids)), CONSTITUTION.principle_ids, ())
    for row in rows:
        record, findings = check_line(json.dumps(row).encode(), rules)
        assert record is not None and findings == []
        assert row["generated"] is True
        assert len(row["principles"]) == 2
        assert row["response_initial"].startswith("Your cousin is wrong")
        assert [s["step"] for s in row["lineage"]["steps"]] == [
            "initial",
            "critique",
            "revision",
            "critique",
            "revision",
        ]
        assert len({s["seed"] for s in row["lineage"]["steps"]}) == 5
    assert sum(f["drawn"] for f in report["by_principle"].values()) == 12
    assert all(f["rate"] == 1.0 for f in report["by_principle"].values())
    assert server.most_at_once > 1
    trace = lines(next((out / "shards").glob("*.jsonl")))[0]["trace"]
    assert (
        trace[1]["messages"][0][0] == "system" and len(trace[1]["messages"]) == 2 + 2 * 2
    )  # system, two examples, the request


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "critique: empty"),
        ("I'm sorry, but I can't help with that request.", "critique: refusal"),
        (
            "A resposta não diz por que a pessoa está certa, e isso não é o que se pede dela quando há dúvida sobre o que aconteceu.",
            "critique: other language",
        ),
        ("It claims too much here. " * 20, "critique: loops"),
        (Raw(text="The answer claims and claims and", headers=(("X-Finish", "length"),)), "critique: cut off"),
    ],
)
def test_a_bad_critic_is_retried_counted_and_listed(
    project: Path, tmp_path: Path, prompts, reply: str | Raw, reason: str
):
    out = tmp_path / "out"
    with JudgeServer(spoiled("critique", reply, lambda asked: subject(asked)[2] == 1)) as server:
        report = make_examples(Project(project), ask(server, prompts([prompt_row(i) for i in range(3)]), out))
    assert [row["source"] for row in (r["lineage"] for r in lines(out / "examples.jsonl"))] == ["p0", "p2"]
    (left,) = lines(out / "left_out.jsonl")
    assert left["id"] == "p1"
    assert left["reason"] == f"{reason}, 3 times"
    assert report["failures"] == {reason: 3}
    assert report["left_out"] == {reason: 1}


def test_a_second_attempt_with_another_seed_makes_good(project: Path, tmp_path: Path, prompts):
    seen: set[int] = set()

    def first_fails(asked: Asked) -> bool:
        new = not seen
        seen.add(asked.body["seed"])
        return new

    with JudgeServer(spoiled("critique", "", first_fails)) as server:
        report = make_examples(Project(project), ask(server, prompts([prompt_row(0)]), tmp_path / "out"))
    assert len(seen) == 2
    assert (report["kept"], report["failures"]) == (1, {"critique: empty": 1})


@pytest.mark.parametrize(
    ("revision", "reason"),
    [
        (
            'The words "everybody in Leeds knows that" claim what nobody counted, and the cousin, who is not here, is judged unheard by all of us.',
            "copies the critique",
        ),
        (
            "Following the critique, I would say that I cannot know who is right until your cousin has told me what happened too.",
            "speaks of the critique",
        ),
        (
            "I can't tell from here who is right; ask your cousin what happened first, and tell me then what they said 😀",
            "emojis",
        ),
        (
            "Your cousin is wrong about a borrowed ladder, everybody in Leeds knows that, so do not worry and carry on as you like.",
            "says the same as before",
        ),
        ("Ask your cousin.", "empty"),
    ],
)
def test_a_bad_revision_is_left_out(project: Path, tmp_path: Path, prompts, revision: str, reason: str):
    with JudgeServer(spoiled("revision", revision)) as server:
        report = make_examples(Project(project), ask(server, prompts([prompt_row(0)]), tmp_path / "out"))
    assert report["kept"] == 0
    assert report["failures"] == {f"revision: {reason}": 3}


def test_nothing_is_written_among_the_hand_written(project: Path, prompts):
    with JudgeServer(good) as server, pytest.raises(UsageError, match="hand-written"):
        make_examples(
            Project(project), ask(server, prompts([prompt_row(0)]), project / "data/training/philosophical_en/more")
        )


def test_an_unfit_court_is_not_heard(project: Path, tmp_path: Path, prompts):
    with JudgeServer(good) as server:
        report = make_examples(
            Project(project),
            ask(server, prompts([prompt_row(0)]), tmp_path / "out", judges=(f"openai:{server.url}:judge",)),
        )
    assert report["court"].startswith("did not judge: judge not fit: judge was calibrated never")
    assert all("JSON" not in asked.user for asked in server.requests)


def test_questions_of_the_tribunal_are_not_asked(project: Path, tmp_path: Path, prompts):
    question = lines(ROOT / "data/tribunal/prompts/maieutics.jsonl")[1]
    with JudgeServer(good) as server:
        report = make_examples(
            Project(project),
            ask(server, prompts([prompt_row(0), prompt_row(1, prompt=question["prompt"])]), tmp_path / "out"),
        )
    assert report["kept"] == 1
    assert report["left_out"] == {"asks what the Tribunal asks": 1}
    assert all(question["prompt"] not in asked.user for asked in server.requests)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "a", "prompt": "short"}, "prompt"),
        ({"id": "a", "prompt": "long enough to be asked", "principles": ["coragem"]}, "coragem"),
        ({"id": "a", "prompt": "long enough to be asked", "category": "tribunal"}, "three judges"),
        ({"id": "a", "instruction": "write something"}, "instruction"),
    ],
)
def test_a_wrong_prompt_is_told_by_its_line(project: Path, tmp_path: Path, prompts, row: dict, said: str):
    with JudgeServer(good) as server, pytest.raises(DataError, match=rf"prompts\.jsonl:2: .*{said}"):
        make_examples(Project(project), ask(server, prompts([prompt_row(0), row]), tmp_path / "out"))


def test_a_spec_that_is_none_is_told_with_its_option():
    with pytest.raises(UsageError, match=r"--critic 'gpt' is not understood.*torch:NAME"):
        parse_spec("gpt", "--critic", WRITER_KINDS)
