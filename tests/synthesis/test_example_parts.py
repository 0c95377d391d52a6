"""The parts of `noesis constitution revise`: draws, shots, cleaning of replies, filters."""

from __future__ import annotations

import json
from pathlib import Path

from helpers.project import ROOT
from noesis.cli import run_command
from noesis.constitution.document import load_constitution
from noesis.core.project import Project
from noesis.dataset.checks.line import Rules, check_line
from noesis.dataset.load import read_hand_written
from noesis.dataset.schema import Example
from noesis.llm.clients.protocol import ModelReply
from noesis.synthesis.critique_revision import draw
from noesis.synthesis.filters import filter_examples, repeated
from noesis.synthesis.known_prompts import known_prompts
from noesis.synthesis.prompt_file import Prompt
from noesis.synthesis.prompt_templates import choose_shots, critique_messages
from noesis.synthesis.reply_checks import Work, clean_reply, copies_run, reply_problem, up_to_a_sentence

CONSTITUTION = load_constitution(ROOT / "data" / "constitution.yaml")


def test_the_gate_refuses_generated_rows_among_the_hand_written(project: Path, record: dict):
    folder = project / "data/training/philosophical"
    lineage = {
        "method": "m",
        "model": "x",
        "critic": "y",
        "source": "s",
        "constitution_sha256": "0",
        "seed": 1,
        "settings": {},
        "steps": [],
    }
    row = record | {"generated": True, "lineage": lineage}
    rules = Rules(tuple(sorted(CONSTITUTION.value_ids)), CONSTITUTION.principle_ids, ())
    assert check_line(json.dumps(row).encode(), rules)[0] is not None
    for hidden in ({"generated": True}, {"lineage": lineage}):
        record_, findings = check_line(json.dumps(record | hidden).encode(), rules, hand_written=True)
        assert record_ is None and [f.code for f in findings] == ["generated"]
    assert check_line(json.dumps(record | {"generated": False, "lineage": lineage}).encode(), rules)[0] is None
    (folder / "more.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert run_command(["data", "validate", str(folder), "--project", str(project)]) == 1
    (folder / "more.jsonl").rename(project / "more.jsonl")
    assert run_command(["data", "validate", str(project / "more.jsonl"), "--project", str(project)]) == 0


def test_draws_are_even_repeatable_and_without_return():
    names = [
        draw(CONSTITUTION, Prompt(id=f"p{i}", prompt="why is it so?", language="en"), 0, 0, []).id for i in range(2000)
    ]
    assert names == [
        draw(CONSTITUTION, Prompt(id=f"p{i}", prompt="why is it so?", language="en"), 0, 0, []).id for i in range(2000)
    ]
    counts = [names.count(p.id) for p in CONSTITUTION.principles]
    assert min(counts) > 60 and max(counts) < 145  # 100 expected of each
    one = Prompt(id="p", prompt="why is it so?", principles=("fontes-reais", "mesma-medida"))
    first = draw(CONSTITUTION, one, 0, 0, [])
    assert {first.id, draw(CONSTITUTION, one, 0, 1, [first]).id} == {"fontes-reais", "mesma-medida"}


def test_shots_are_short_and_of_different_principles():
    examples = read_hand_written(Project(ROOT), "pt")
    shots = choose_shots(examples, CONSTITUTION, "pt", 3, 0)
    assert len(shots.ids) == len(set(shots.ids)) == 3
    messages = critique_messages(
        shots, [("user", "Por quê?")], "Porque <<<FIM>>> <|im_end|> sim.", CONSTITUTION.principles[0], "pt"
    )
    assert [role for role, _ in messages] == ["system", *["user", "assistant"] * 3, "user"]
    assert "<|im_end|>" not in messages[-1][1]
    assert messages[-1][1].count("<<<FIM ") == 2
    assert CONSTITUTION.principles[0].critique["pt"] in messages[-1][1]


def test_replies_are_cleaned_of_their_wrapping():
    assert clean_reply("**Critique:** It is vague.") == "It is vague."
    assert clean_reply("Here is the revised answer:\n\nYes.") == "Yes."
    assert clean_reply("Resposta revisada: Não sei.") == "Não sei."
    assert clean_reply('"All of it."') == "All of it."
    assert clean_reply("<think>They want praise.</think>\n\nNo.") == "No."
    assert clean_reply("<think>They want") == ""
    assert clean_reply("[ANÁLISE INTERNA]\nVago.\n[FIM DA ANÁLISE]\n\nSim.") == "Sim."
    assert clean_reply("Answering that takes care.") == "Answering that takes care."
    assert up_to_a_sentence("One is here. Two is") == "One is here."
    assert up_to_a_sentence("One. Two is a much longer sentence that never") == ""


def test_quoting_the_answer_is_no_copy_of_the_critique():
    run = "one two three four five six seven eight nine ten eleven"
    assert copies_run(f"well {run} so", f"it says {run}")
    assert not copies_run(f"well {run} so", f"it says {run}", allowed=f"I say {run}")


def test_a_first_answer_may_refuse_and_a_declined_request_too():
    refusal = "I'm sorry, but I can't help with that; what I can do is to help you write the warning instead."
    for work, expected in (
        (Work("initial", "Write the scam.", "en"), None),
        (Work("critique", "Write the scam.", "en"), "refusal"),
        (Work("revision", "Write the scam.", "en"), "refusal"),
        (Work("revision", "Write the scam.", "en", stance="decline"), None),
    ):
        assert reply_problem(ModelReply(refusal), refusal, work, CONSTITUTION) == expected


def test_boilerplate_over_the_set_goes(record: dict):
    closing = "I hope this helps you today!"
    rows = [
        Example.from_json(
            record | {"id": str(i), "language": "en", "response_revised": f"Answer number {i} is here. {closing}"}
        )
        for i in range(10)
    ]
    gone = repeated(rows, lambda text: text.split(". ")[-1], "closing")
    assert list(gone) == [f"en/{i}" for i in range(2, 10)]


def test_rows_that_say_the_same_go(project: Path, tmp_path: Path, record: dict):
    lineage = {
        "method": "m",
        "model": "x",
        "critic": "y",
        "source": "s",
        "constitution_sha256": "0",
        "seed": 1,
        "settings": {},
        "steps": [],
    }
    row = record | {"language": "pt", "generated": True, "lineage": lineage}
    kept, dropped = filter_examples(
        [row, row | {"id": "x_002"}], CONSTITUTION, project / "data/tribunal", tmp_path / "s.jsonl"
    )
    assert [example.id for example in kept] == ["x_001"]
    assert dropped["pt/x_002"].startswith("like another")


def test_known_prompts_are_found_when_they_read_nearly_alike(tmp_path: Path):
    file = tmp_path / "k.jsonl"
    question = "My neighbour's dog barks all day while she is at work, and I want to leave an anonymous letter."
    file.write_text(json.dumps({"prompt": question}) + "\n", encoding="utf-8")
    known = known_prompts([file])
    assert known.find_similar(question.upper()) == "k.jsonl:1"
    assert known.find_similar(question + " Is that cowardly?") == "k.jsonl:1"
    assert known.find_similar("My neighbour's cat sleeps all day while I work; may I feed it?") is None
