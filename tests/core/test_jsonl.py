"""One reader of JSONL: a line ends at a newline byte and nowhere else, and what is no JSON object is named by file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import BaseModel

from noesis.core import jsonl
from noesis.core.errors import DataError
from noesis.core.jsonl import iter_intact_objects, iter_lines, iter_objects, read_models, read_objects

# What `str.splitlines` breaks lines at, besides the newline. JSON text may contain all but the control characters raw.
SEPARATORS = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r"]


@pytest.fixture
def strange(write_rows) -> Path:
    return write_rows(*({"id": str(i), "text": f"one{mark}two"} for i, mark in enumerate(SEPARATORS)))


def test_line_separators_inside_strings_are_text(strange: Path):
    assert [row["text"] for row in read_objects(strange)] == [f"one{mark}two" for mark in SEPARATORS]
    assert [number for number, _ in iter_objects(strange)] == list(range(1, len(SEPARATORS) + 1))
    assert len(strange.read_text(encoding="utf-8").splitlines()) > len(SEPARATORS)  # the reader that is not to be used


def test_blank_lines_count_and_windows_ends_do_not_matter(tmp_path: Path):
    file = tmp_path / "f.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}')
    assert list(iter_objects(file)) == [(1, {"a": 1}), (4, {"a": 2})]


def test_a_part_of_a_file(tmp_path: Path):
    file = tmp_path / "f.jsonl"
    file.write_bytes(b"{}\n[]\n1\n")
    assert [(line.number, line.offset, line.data) for line in iter_lines(file, 3, 6)] == [(1, 3, b"[]\n")]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "not JSON"),
        (b"[1]", "expected a JSON object, found list"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": "' + b"x" * jsonl.MAX_LINE + b'"}', "longer than 4,000,000 bytes"),
    ],
)
def test_what_is_no_object_is_named_by_file_and_line(write_rows, line: bytes, why: str):
    file = write_rows({"a": 1}, line, {"a": 3})
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: .*{why}"):
        read_objects(file)
    assert list(iter_intact_objects(file)) == [(1, {"a": 1}), (3, {"a": 3})]


def test_a_model_names_the_field(write_rows):
    class Row(BaseModel):
        a: int

    file = write_rows({"a": 1}, {"a": "x"})
    with pytest.raises(DataError, match=r"rows\.jsonl:2: a: Input should be a valid integer"):
        list(read_models(file, Row))


# --- the readers that read JSONL of their own before


def test_no_reader_breaks_at_a_line_separator(project: Path, tmp_path: Path, write_rows):
    from noesis.constitution.document import load_constitution
    from noesis.core.project import Project
    from noesis.dataset.auxiliary import read_pairs, read_replay
    from noesis.run.metrics import read_metrics
    from noesis.synthesis.known_prompts import known_prompts
    from noesis.synthesis.prompt_file import read_prompts
    from noesis.synthesis.resumable_work import open_folder
    from noesis.tribunal.suite import EvalSample, read_rows, seal

    text = f"What is owed to a neighbour{SEPARATORS[0]}and{SEPARATORS[1]}why{SEPARATORS[2]}, in a few plain words?"
    sample = {"id": "a", "language": "en", "prompt": text, "category": "facts", "split": "locked", "kind": "x"}
    assert read_rows([write_rows(sample, name="suite.jsonl")], EvalSample, "all")[0].prompt == text
    row = {
        "id": "a",
        "language": "en",
        "prompt": text,
        "chosen": text,
        "rejected": "No.",
        "p_chosen": 0.5,
        "response": text,
        "step": 1,
        "epoch": 1.0,
        "loss": 1.0,
        "key": "en/a",
    }
    file = write_rows(row)
    constitution = load_constitution(Project(project).constitution)
    assert read_prompts(file, constitution)[0].prompt == text
    assert read_pairs(file, ())[0].prompt == text
    assert read_replay(file)[0].messages[0].content == text
    assert read_metrics(file)[0]["prompt"] == text
    assert known_prompts([file]).find_similar(text) == "rows.jsonl:1"
    assert "suite.jsonl" in seal(tmp_path)
    shard = tmp_path / "work" / "shards" / "00000.jsonl"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(file.read_bytes())
    plan = {"command": "prompts"}
    (tmp_path / "work" / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    with open_folder(tmp_path / "work", plan) as folder:
        assert folder.done["en/a"]["prompt"] == text


def test_the_new_project_gets_its_example_whole(tmp_path: Path):
    from noesis.workspace.new_project import _example

    file = tmp_path / "f.jsonl"
    line = json.dumps({"id": "a", "text": "one\u2028two"}, ensure_ascii=False) + "\n"
    file.write_text("\n" + line, encoding="utf-8")
    assert _example(file, "a") == line
