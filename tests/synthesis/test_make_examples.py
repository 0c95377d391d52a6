"""`noesis constitution revise` before a scripted endpoint: good critics, and critics that say nothing, refuse, loop or change the language."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.judge_server import Asked, JudgeServer, Raw
from helpers.project import ROOT
from noesis.cli import run_command
from noesis.constitution.document import load_constitution
from noesis.core.errors import CapError, DataError, ModelError, RunError, UsageError
from noesis.core.project import Project
from noesis.dataset.checks.line import Rules, check_line
from noesis.dataset.load import read_hand_written
from noesis.dataset.schema import Example
from noesis.llm.clients.protocol import ModelReply
from noesis.llm.clients.spec import WRITER_KINDS, parse_spec
from noesis.synthesis.critique_revision import Settings, draw
from noesis.synthesis.filters import filter_examples, repeated
from noesis.synthesis.known_prompts import known_prompts
from noesis.synthesis.make_examples import ExamplesRequest, make_examples
from noesis.synthesis.prompt_file import Prompt
from noesis.synthesis.prompt_templates import choose_shots, critique_messages
from noesis.synthesis.reply_checks import Work, clean_reply, copies_run, reply_problem, up_to_a_sentence

CONSTITUTION = load_constitution(ROOT / "data" / "constitution.yaml")
TOPICS = [
    "a borrowed ladder",
    "two brothers and one field",
    "the last seat on a bus",
    "a promise made in anger",
    "an unsigned letter",
    "the price of a medicine",
]
PLACES = ["Leeds", "Recife", "Oslo", "Accra", "Quito", "Osaka"]
WORDS_OF_A_REVISION = [
    "Nobody here has asked the owner yet, so begin with that phone call and tell me what changes.",
    "You may be right, and what would show it is the deed that your grandfather left in the drawer.",
    "Is it tiredness or age that gives a claim? Your cousin seems to mean the first and you the second.",
    "What was promised binds even when the voice was raised, though the one who heard it may let you off.",
    "A name at the bottom costs something, and that cost is what makes a reader believe the page above it.",
    "Count those who can't pay as well as those who can; then see whether the higher figure still looks fair to both.",
]


def prompt_row(i: int, **more) -> dict:
    return {
        "id": f"p{i}",
        "language": "en",
        "prompt": f"In {PLACES[i % 6]} my cousin and I argue about {TOPICS[i % 6]}; who is right, number {i}?",
    } | more


def step(asked: Asked) -> str:
    """Which step of the chain a request is."""
    first = asked.body["messages"][0]
    if first["role"] != "system":
        return "initial"
    return (
        "critique" if "write a critique" in first["content"] or "escreve a crítica" in first["content"] else "revision"
    )


def subject(asked: Asked) -> tuple[str, str, int]:
    found = re.findall(r"In (\w+) my cousin and I argue about ([\w ]+); who is right, number (\d+)\?", asked.user)[-1]
    return found[0], found[1], int(found[2])


def good(asked: Asked) -> str:
    place, topic, i = subject(asked)
    if step(asked) == "initial":
        return f"Your cousin is wrong about {topic}, everybody in {place} knows that, so do not worry and carry on as you like."
    if step(asked) == "critique":
        return f'The words "everybody in {place} knows that" claim what nobody counted, and the cousin, who is not here, is judged unheard.'
    again = "once more" in asked.user.rsplit("<<<CRITIQUE", 1)[0]  # a second round mends what the first one wrote
    return (
        (WORDS_OF_A_REVISION[i % 6] + f" {i}.")
        if again
        else f"Said once more about {topic}: {WORDS_OF_A_REVISION[(i + 1) % 6]}"
    )


def spoiled(
    what: str, reply: str | Raw, when: Callable[[Asked], bool] = lambda asked: True
) -> Callable[[Asked], str | Raw]:
    """Good, but for one step."""
    return lambda asked: reply if step(asked) == what and when(asked) else good(asked)


@pytest.fixture
def prompts(tmp_path: Path):
    def write(rows: list[dict]) -> Path:
        file = tmp_path / "prompts.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return file

    return write


def ask(server: JudgeServer, file: Path, out: Path, **more) -> ExamplesRequest:
    spec = f"openai:{server.url}:scripted"
    settings = Settings(**{name: more.pop(name) for name in list(more) if name in Settings.__dataclass_fields__})
    return ExamplesRequest(spec, more.pop("critic", spec), file, out, settings, **more)


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_good_models_give_examples_that_the_gate_lets_pass(project: Path, tmp_path: Path, prompts):
    out = tmp_path / "out"
    with JudgeServer(good) as server:
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


def test_work_goes_on_where_a_dead_endpoint_ended_it(project: Path, tmp_path: Path, prompts):
    rows, out = prompts([prompt_row(i) for i in range(40)]), tmp_path / "out"
    with JudgeServer(lambda asked: good(asked) if asked.number <= 60 else Raw(400, "down")) as server:
        url, first = server.url, ask(server, rows, out)
        with pytest.raises(ModelError, match="is down"):
            make_examples(Project(project), first)
        answered = sum(1 for _ in server.requests[:60])
    port = int(url.split(":")[2].split("/")[0])
    with JudgeServer(good, port=port) as server:
        report = make_examples(Project(project), first)
        again = len(server.requests)
    assert report["made"] == 40
    assert again <= 120 - answered + 3  # what was answered before is not asked again
    with JudgeServer(good, port=port) as server:
        assert make_examples(Project(project), first)["made"] == 40
        assert server.requests == []


@pytest.mark.timing
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_killed_command_goes_on(project: Path, tmp_path: Path, prompts, number: signal.Signals, code: int):
    rows, out = prompts([prompt_row(i) for i in range(70)]), tmp_path / "out"
    with JudgeServer(lambda asked: Raw(text=good(asked), wait=0.02)) as server:
        command = [
            "constitution",
            "revise",
            "--model",
            f"openai:{server.url}:scripted",
            "--prompts",
            str(rows),
            "--out",
            str(out),
            "--project",
            str(project),
        ]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        process = subprocess.Popen(
            [sys.executable, "-m", "noesis", *command], env=environment, stdout=subprocess.DEVNULL
        )
        while len(server.requests) < 130:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(timeout=120) == code
        before = len(server.requests)
        assert run_command(command) == 0
        assert len(server.requests) <= 210 + 16  # those under way when it was killed are asked again
        assert len(server.requests) > before
    assert len(lines(out / "examples.jsonl")) + len(lines(out / "left_out.jsonl")) == 70


def test_the_same_work_gives_the_same_files(project: Path, tmp_path: Path, prompts):
    rows = prompts([prompt_row(i) for i in range(5)])
    with JudgeServer(good) as server:
        for name in ("one", "two"):
            make_examples(Project(project), ask(server, rows, tmp_path / name, rounds=2))
    assert (tmp_path / "one/examples.jsonl").read_bytes() == (tmp_path / "two/examples.jsonl").read_bytes()


def test_another_plan_in_the_same_folder_is_refused(project: Path, tmp_path: Path, prompts):
    rows = prompts([prompt_row(0)])
    with JudgeServer(good) as server:
        make_examples(Project(project), ask(server, rows, tmp_path / "out"))
        with pytest.raises(RunError, match="settings"):
            make_examples(Project(project), ask(server, rows, tmp_path / "out", seed=5))


def test_nothing_is_written_among_the_hand_written(project: Path, prompts):
    with JudgeServer(good) as server, pytest.raises(UsageError, match="hand-written"):
        make_examples(
            Project(project), ask(server, prompts([prompt_row(0)]), project / "data/training/philosophical_en/more")
        )


def test_the_cap_stops_before_it_is_passed(project: Path, tmp_path: Path, prompts):
    config = project / "data/training/training_config.yaml"
    text = config.read_text(encoding="utf-8")
    config.write_text(
        text.replace("prices: {}", "prices: {scripted: {prompt: 1.0, completion: 10.0}}", 1), encoding="utf-8"
    )
    assert config.read_text(encoding="utf-8") != text
    rows, out = prompts([prompt_row(i) for i in range(6)]), tmp_path / "out"
    with JudgeServer(good) as server:
        with pytest.raises(CapError):
            make_examples(Project(project), ask(server, rows, out, max_usd=0.05))
        stopped = len(server.requests)
        assert 0 < stopped < 18
        report = make_examples(Project(project), ask(server, rows, out, max_usd=1.0))
        assert len(server.requests) == 18
    assert report["kept"] == 6
    assert report["spending"]["usd"] == pytest.approx((18 - stopped) * (1000 * 1 + 200 * 10) / 1e6)


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


# --- parts


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
    assert CONSTITUTION.principles[0].critique.pt in messages[-1][1]


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
