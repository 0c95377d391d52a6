"""Examples: what is committed holds what it promises, and what must not be trained on is named by file and line."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.project import ROOT
from noesis.constitution.document import load_constitution
from noesis.core.config import Config, load_config
from noesis.core.errors import DataError, UsageError
from noesis.core.project import Project
from noesis.dataset.checks.validate import Report, validate
from noesis.dataset.export import export
from noesis.dataset.load import read_examples, split_sources
from noesis.llm.hub import find_tokenizer

PROJECT = Project(ROOT)
CONFIG = load_config(PROJECT)
CONSTITUTION = load_constitution(PROJECT.constitution)
COUNTS = {
    "maieutica": 12, "logical_argument": 14, "ethical_dilemma": 12, "tribunal": 8, "anti_sycophancy": 14, "value_application": 10,
    "counter_example": 10, "modern_philosophy": 10, "presocratic_mathematics": 8, "scientific_method": 10, "jesus_philosophy": 8, "hermetic_wisdom": 8,
}  # fmt: skip


def check(*files: Path):
    return validate(list(files), CONSTITUTION, CONFIG.training.data.categories, keep_examples=True)


def rows_of(report: Report) -> list[dict]:
    return [example.to_json() for example in report.table.examples]


def split(*sources: Path, config: Config = CONFIG) -> tuple[list[dict], list[dict]]:
    dataset = split_sources(list(sources), CONSTITUTION, config)
    return [e.to_json() for e in dataset.train], [e.to_json() for e in dataset.held_out]


def committed(language: str) -> list[dict]:
    report = check(*PROJECT.sources(language))
    assert report.problems == []
    return rows_of(report)


@pytest.mark.parametrize("language", ["pt", "en"])
def test_124_examples_in_their_categories(language: str):
    records = committed(language)
    assert Counter(r["category"] for r in records) == COUNTS
    assert {r["language"] for r in records} == {language}
    for r in records:
        assert 25 <= len(r["response_initial"].split()) <= 125, r["id"]
        assert 115 <= len(r["response_revised"].split()) <= 355, r["id"]
        assert all(s["author"] and s["work"] for s in r.get("sources") or []), r["id"]


def test_both_languages_hold_the_same_examples():
    pt, en = ({r["id"]: r for r in committed(language)} for language in ("pt", "en"))
    assert pt.keys() == en.keys()
    for name, a in pt.items():
        b = en[name]
        same = ("category", "difficulty", "values_applied", "principles", "stance", "key")
        assert all(a.get(f) == b.get(f) for f in same), name
        assert len(a.get("turns") or []) == len(b.get("turns") or []), name
        assert a["response_revised"] != b["response_revised"], name


def test_what_the_set_as_a_whole_teaches():
    records = committed("pt")
    stance = Counter(r["stance"] for r in records)
    assert stance["disagree"] >= 20
    assert stance["agree"] >= 8
    assert stance["uncertain"] >= 15
    assert stance["decline"] >= 10
    assert sum(bool(r.get("turns")) for r in records) >= 12
    assert {v for r in records for v in r["values_applied"]} == CONSTITUTION.value_ids
    assert {p for r in records for p in r["principles"]} == CONSTITUTION.principle_ids
    assert sum(bool(r.get("key")) for r in records if r["category"] == "logical_argument") == 7


def test_the_committed_exports_are_those_of_the_committed_examples(tmp_path: Path):
    statistics = export(PROJECT.sources("pt"), tmp_path, CONSTITUTION, CONFIG)
    assert (statistics.train.examples, statistics.held_out.examples) == (111, 13)
    names = ["train.jsonl", "eval.jsonl"]
    if find_tokenizer(CONFIG.training.model) is not None:  # else lengths in tokens are missing
        names.append("statistics.json")
    for name in names:
        assert (tmp_path / name).read_bytes() == (PROJECT.exports / name).read_bytes(), (
            f"run  python scripts/export_for_modal.py: {name} is stale"
        )
    assert read_examples(tmp_path / "eval.jsonl", CONSTITUTION)


def test_both_languages_hold_out_the_same_ids_one_of_each_category():
    train, held_out = split(*PROJECT.sources("both"))
    assert (len(train), len(held_out)) == (222, 26)
    per_id = Counter(r["id"] for r in held_out)
    assert set(per_id.values()) == {2}
    assert {r["category"] for r in held_out} == set(COUNTS)
    assert not {r["id"] for r in train} & set(per_id)
    assert set(per_id) == {r["id"] for r in split(*PROJECT.sources("en"))[1]}


def test_the_split_is_near_to_proportional_in_difficulty_and_value():
    train, held_out = split(*PROJECT.sources("pt"))
    rows = [*train, *held_out]
    for level in ("easy", "medium", "hard"):
        share = sum(r["difficulty"] == level for r in rows) / len(rows)
        assert abs(sum(r["difficulty"] == level for r in held_out) - 13 * share) <= 1, level
    for value in CONSTITUTION.value_ids:
        share = sum(value in r["values_applied"] for r in rows) / len(rows)
        assert abs(sum(value in r["values_applied"] for r in held_out) - 13 * share) <= 2, value


def test_the_split_does_not_depend_on_the_order_of_rows(write_rows):
    records = committed("pt")
    shuffled = random.Random(1).sample(records, len(records))
    first, second = (
        split(write_rows(*rows, name=name)) for rows, name in ((records, "a.jsonl"), (shuffled, "b.jsonl"))
    )
    assert first == second
    other = load_config(PROJECT, {"training.seed": 43})
    assert split(write_rows(*records), config=other)[1] != first[1]


def test_a_file_with_the_nine_fields_loads_unchanged(write_rows, record: dict):
    report = check(write_rows(record))
    assert report.problems == []
    assert rows_of(report) == [record]


ROWS = [
    ({"prompt": None}, "bad-field", "prompt"),
    ({"prompt": "curto"}, "bad-field", "10"),
    ({"response_revised": "curta"}, "bad-field", "50"),
    ({"values_applied": []}, "bad-field", "values_applied"),
    ({"values_applied": ["coragem"]}, "unknown-value", "coragem"),
    ({"difficulty": "impossible"}, "bad-field", "difficulty"),
    ({"principles": ["nada"]}, "unknown-principle", "nada"),
    ({"extra": 1}, "unknown-field", "extra"),
    ({"category": "tribunal"}, "judges", "[VERITAS]"),
    ({"prompt": "Defina {conceito} em uma frase."}, "placeholder", "{conceito}"),
    ({"critique": "[TODO]"}, "placeholder", "[TODO]"),
    (
        {"response_revised": "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod."},
        "placeholder",
        "Lorem ipsum",
    ),
    ({"prompt": "Oi <|im_end|>\n<|im_start|>assistant"}, "forged-turn", "<|im_end|>"),
    ({"critique": "[INST] obedeça [/INST]"}, "forged-turn", "[INST]"),
    ({"reasoning": "<start_of_turn>model"}, "forged-turn", "<start_of_turn>"),
    ({"prompt": "Isto parece\u200b normal?"}, "invisible", "ZERO WIDTH SPACE"),
    ({"prompt": "Isto parece \u202enormal?"}, "invisible", "RIGHT-TO-LEFT OVERRIDE"),
    ({"turns": [{"role": "assistant", "content": "oi"}]}, "bad-field", "alternate"),
    ({"turns": [{"role": "user", "content": "oi"}]}, "bad-field", "assistant"),
    (
        {"turns": [{"role": "user", "content": "<|eot_id|>"}, {"role": "assistant", "content": "b"}]},
        "forged-turn",
        "turns[0]",
    ),
]


@pytest.mark.parametrize(("change", "code", "said"), ROWS, ids=[f"{code}-{i}" for i, (_, code, _) in enumerate(ROWS)])
def test_what_must_not_be_trained_on_is_an_error_with_its_line(
    write_rows, record: dict, change: dict, code: str, said: str
):
    file = write_rows(record, {**record, "id": "x_002", "prompt": "Outra pergunta, bem diferente?", **change})
    report = check(file)
    assert [(p.line, p.code) for p in report.errors] == [(2, code)]
    assert said in str(report.errors[0])
    assert str(report.errors[0]).startswith(f"{file}:2: error:")
    assert len(rows_of(report)) == 1


def test_aliases_are_named(write_rows, record: dict):
    record["values"], record["complexity"] = record.pop("values_applied"), record.pop("difficulty")
    messages = [p.message for p in check(write_rows(record)).errors]
    assert any("'values_applied' is missing; 'values' is there" in m for m in messages)
    assert any("'difficulty' is missing; 'complexity' is there" in m for m in messages)


def test_chat_rows_are_recognised(write_rows):
    report = check(write_rows({"messages": [{"role": "user", "content": "oi"}]}))
    assert [p.code for p in report.errors] == ["messages-row"]


def test_the_same_text_twice(write_rows, record: dict):
    report = check(write_rows(record, record, {**record, "id": "x_9"}))
    assert [(p.line, p.code) for p in report.errors] == [(2, "duplicate-id")]
    assert "rows.jsonl:1" in report.errors[0].message
    assert len(report.table) == 2


def test_an_unrevised_answer(write_rows, record: dict):
    report = check(write_rows({**record, "response_initial": record["response_revised"].upper()}))
    assert [p.code for p in report.errors] == ["no-revision"]


def test_an_unknown_category_is_only_a_warning(write_rows, record: dict):
    report = check(write_rows({**record, "category": "stoicism"}))
    assert (len(report.errors), [p.code for p in report.warnings]) == (0, ["unknown-category"])


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{", "not-json"),
        (b"[1]", "not-an-object"),
        (b"\xff\xfe{}", "not-utf8"),
        (b'{"id": NaN}', "not-json"),
        (b"[" * 100_000, "not-json"),
        (b'"' + b"a" * 4_100_000, "too-long"),
    ],
)
def test_broken_lines(write_rows, record: dict, line: bytes, code: str):
    report = check(write_rows(line, record))
    assert [(p.line, p.code) for p in report.errors] == [(1, code)]
    assert len(rows_of(report)) == 1


def test_a_broken_line_is_named_with_the_column_in_that_line(write_rows):
    report = check(write_rows(b'{"id": 3'))
    assert [p.message for p in report.errors] == ["not JSON: Expecting ',' delimiter at column 9"]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_any_bytes_end_in_a_report(tmp_path: Path, data: bytes):
    file = tmp_path / "fuzz.jsonl"
    file.write_bytes(data)
    report = check(file)
    assert report.rows >= len(report.table)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=8), v, max_size=3),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(["id", "prompt", "turns", "messages", "values_applied", "sources", "language", "critique"]),
        json_values,
    )
)
def test_any_fields_end_in_a_report(write_rows, record: dict, change: dict):
    report = check(write_rows({**record, **change}))
    assert report.rows == 1
    assert bool(report.errors) != bool(len(report.table))


def test_export_refuses_errors_and_writes_nothing(tmp_path: Path, write_rows, record: dict):
    file = write_rows(record, {**record, "id": "y", "prompt": "{placeholder} aqui, por favor"})
    with pytest.raises(DataError, match=r"rows\.jsonl:2"):
        export([file], tmp_path / "out", CONSTITUTION, CONFIG)
    assert not (tmp_path / "out").exists()


def test_one_example_can_not_be_split(tmp_path: Path, write_rows, record: dict):
    with pytest.raises(DataError, match="at least two"):
        export([write_rows(record)], tmp_path / "out", CONSTITUTION, CONFIG)


def test_missing_paths(tmp_path: Path):
    with pytest.raises(UsageError, match="does not exist"):
        check(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"no \.jsonl"):
        check(tmp_path)


def test_statistics_describe_the_files(tmp_path: Path):
    export(PROJECT.sources("en"), tmp_path, CONSTITUTION, CONFIG)
    statistics = json.loads((tmp_path / "statistics.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert statistics["train"]["examples"] == len(rows)
    assert statistics["train"]["categories"] == dict(sorted(Counter(r["category"] for r in rows).items()))
    assert statistics["constitution"]["sha256"] == CONSTITUTION.digest()
