"""What people write into examples: the right verdict of the data gate on each. Inputs: cases/*.jsonl; sources: README.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.data_gate import BARE, CONFIG, CONSTITUTION, EXAMPLES, check
from noesis.core.errors import DataError
from noesis.dataset.checks.invisible import invisible
from noesis.dataset.checks.judges import find_judges
from noesis.dataset.checks.placeholders import placeholder
from noesis.dataset.export import export
from noesis.dataset.load import read_exports

CASES = Path(__file__).parent / "cases"


def errors(name: str) -> list[tuple[int, str]]:
    return [(p.line, p.code) for p in check(CASES / f"{name}.jsonl").errors]


def warnings(name: str) -> set[tuple[int, str]]:
    return {(p.line, p.code) for p in check(CASES / f"{name}.jsonl").warnings}


@pytest.mark.parametrize(
    "name",
    ["zwj", "joiners", "latex", "braces_that_are_text", "line_breaks", "wrong_encoding", "judges_as_people_write"],
)
def test_ordinary_text_is_accepted(name: str):
    assert errors(name) == []


@pytest.mark.parametrize(
    ("name", "code"),
    [("hidden", "invisible"), ("placeholders", "placeholder"), ("todo", "placeholder"), ("judges_missing", "judges")],
)
def test_every_row_that_hides_or_lacks_something_is_refused(name: str, code: str):
    rows = sum(1 for line in (CASES / f"{name}.jsonl").read_bytes().split(b"\n") if line)
    assert [line for line, found in errors(name) if found == code] == list(range(1, rows + 1))


def test_judges_are_recognised_and_an_unusual_form_is_a_warning():
    assert errors("judge_headings") == []
    assert warnings("judge_headings") == {(1, "judges")}
    assert {line for line, code in warnings("judges_as_people_write") if code == "judges"} == set(range(1, 7))
    report = check(CASES / "judges_missing.jsonl")
    assert (report.total("error"), report.total("warning")) == (2, 1)  # of one code
    first, second = report.errors
    assert "missing: [DIKE]" in first.message and "missing: [DIKE]" in second.message


@pytest.mark.parametrize(
    "critique",
    [
        "A verdade (VERITAS): falta.\nA sabedoria (SOPHIA): basta.\nA justiça (DIKE): basta.",
        "Pela Veritas, falta. Pela Sophia, basta. Pela Dikē, não.",
        "Do ponto de vista de Veritas, falta. Do ponto de vista de Sophia, basta. Do ponto de vista de Dikē, não.",
        "Já Veritas diz que falta. E Sophia discorda. Quanto a Dikē, nada.",
        "According to Veritas it fails. In Sophia's view it will do. Under Dike, no.",
        "A Veritas repugna a certeza. À Sophia agrada o resto. À Dikē choca.",
    ],
)
def test_a_judge_opens_a_sentence_as_people_open_one(critique: str):
    found = find_judges(critique)
    assert (found.absent, found.unusual) == ((), ("VERITAS", "SOPHIA", "DIKE"))


@pytest.mark.parametrize(
    "text",
    [
        "Os conjuntos {Platão} e {Aristóteles} são disjuntos.",
        "The power set of {a} has two members.",
        "[Todo] homem deseja saber por natureza.",
        "They watched Super Bowl XXX together.",
    ],
)
def test_sets_and_words_that_only_look_unfilled_are_text(text: str):
    assert placeholder(text) is None


def with_shares(critique: str) -> str:
    for name, share in (("VERITAS", 40), ("SOPHIA", 30), ("DIKE", 30)):
        critique = critique.replace(f"[{name}]", f"[{name} - {share}%]")
    return critique


def test_124_examples_of_which_three_have_unusual_headings_export_111_and_13(write_rows, tmp_path: Path):
    tribunal = [row["id"] for row in EXAMPLES if row["category"] == "tribunal"][:3]
    rows = [row | {"critique": with_shares(row["critique"])} if row["id"] in tribunal else row for row in EXAMPLES]
    statistics = export([write_rows(*rows)], tmp_path / "out", CONSTITUTION, CONFIG)
    assert len(tribunal) == 3
    assert (statistics.train.examples, statistics.held_out.examples) == (111, 13)
    dataset = read_exports(tmp_path / "out", CONSTITUTION)
    assert (len(dataset.train), len(dataset.held_out)) == (111, 13)


def test_ids_that_look_alike_or_cannot_be_seen_are_named():
    report = check(CASES / "ids_alike.jsonl")
    assert [(p.line, p.code) for p in report.errors] == [
        (2, "duplicate-id"),
        (3, "bad-id"),
        (4, "bad-id"),
        (5, "bad-id"),
    ]
    assert "looks the same, in other code points, as the one at" in report.errors[0].message
    assert "U+000A" in report.errors[1].message and "'a\\nb'" in report.errors[1].message
    assert "NO-BREAK SPACE" in report.errors[2].message


def test_line_breaks_and_wrong_encodings_are_for_a_person_to_look_at():
    assert warnings("line_breaks") >= {(1, "line-break")}
    assert {line for line, code in warnings("wrong_encoding") if code == "encoding"} == {1, 2}  # AMANHÃ” is Portuguese


def test_blank_texts_are_no_texts(write_rows, record: dict):
    for name in ("prompt", "response_initial", "critique", "response_revised"):
        (error,) = check(write_rows(record | {name: " \n" * 60})).errors
        assert error.code == "bad-field" and error.message.startswith(name)


def hostile_texts() -> Iterator[str]:
    for piece in (
        "{",
        "{a",
        "`",
        "``a",
        "$x_",
        "\\(",
        "\\[",
        "f'",
        "[INSERT",
        "~~~",
        "{A} ",
        "[VERITAS",
        "X = {",
        "\u200d",
        "👩\u200d",
    ):
        yield piece * (400_000 // len(piece))
    yield "`" + "{a} " * 100_000


@pytest.mark.parametrize("text", hostile_texts(), ids=lambda text: ascii(text[:8]))
def test_a_long_line_made_to_be_slow_is_read_in_linear_time(text: str):
    from time import process_time

    from noesis.dataset.checks.judges import find_judges

    start = process_time()
    placeholder(text)
    invisible(text)
    find_judges(text)
    assert process_time() - start < 5


def test_a_set_is_known_from_another_field_of_its_row_only(write_rows, record: dict):
    defined = record | {"prompt": "Seja A = {Sócrates}. O que se segue?", "reasoning": "Todo membro é {Sócrates}."}
    assert not check(write_rows(defined)).errors
    assert [p.code for p in check(write_rows(record | {"reasoning": "Todo membro é {Sócrates}."})).errors] == [
        "placeholder"
    ]


def test_nothing_of_the_hand_written_data_changed():
    from helpers.data_gate import PROJECT

    report = check(PROJECT.training / "philosophical")
    assert (report.errors, report.warnings, report.rows) == ([], [], len(BARE))


def test_an_export_with_a_hidden_character_writes_nothing(tmp_path: Path):
    with pytest.raises(DataError, match="invisible"):
        export([CASES / "hidden.jsonl"], tmp_path / "out", CONSTITUTION, CONFIG)
    assert not (tmp_path / "out").exists()
