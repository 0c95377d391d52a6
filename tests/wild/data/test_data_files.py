"""What files people bring: names, encodings, JSON that is nearly JSON. Whatever JSON can carry comes out as it went in."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.data_gate import CONSTITUTION, check
from helpers.project import ROOT
from noesis.core.errors import DataError
from noesis.core.files import files_in, write_jsonl
from noesis.core.jsonl import id_key, iter_intact_objects, jsonl_files, parse_object, read_objects
from noesis.dataset.auxiliary import read_pairs, read_replay
from noesis.dataset.encode import replay_rows, training_rows
from noesis.dataset.load import read_examples, read_hand_written
from noesis.dataset.source_files import find_files, is_hand_written
from noesis.llm.row_encoder import RowEncoder
from noesis.llm.tokenizer import load_tokenizer
from noesis.synthesis.known_prompts import known_prompts
from noesis.synthesis.prompt_file import read_prompts
from noesis.tribunal.suite import EvalSample, read_rows, read_suite

CASES = Path(__file__).parent / "cases"
TEXT = "What do we owe to a neighbour whom we have never met?"
SAMPLE = {"id": "a", "language": "en", "category": "facts", "split": "dev", "kind": "x", "prompt": TEXT}
ANSWERS = {"response": "Much.", "chosen": "Much.", "rejected": "Little.", "p_chosen": 0.9}
ROWS = {"suite": SAMPLE, "pairs": SAMPLE | ANSWERS, "replay": SAMPLE | ANSWERS, "prompts": SAMPLE | ANSWERS}
READERS: dict[str, Callable[[Path], Any]] = {
    "pairs": lambda file: read_pairs(file, ()),
    "replay": read_replay,
    "prompts": lambda file: read_prompts(file, CONSTITUTION),
    "suite": lambda file: read_rows([file], EvalSample, "all"),
}


# --- files that are no data


def test_hidden_files_and_folders_are_no_data_and_capital_letters_do_not_matter(tmp_path: Path):
    for name in (
        ".#x.jsonl",
        "._x.jsonl",
        ".ipynb_checkpoints/x.jsonl",
        "X.JSONL",
        "a.jsonl",
        "x.jsonl~",
        "sub/b.jsonl",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "a.jsonl")
    names = ["X.JSONL", "a.jsonl", "link.jsonl"]
    assert [f.name for f in jsonl_files(tmp_path)] == [f.name for f in find_files([tmp_path])] == names
    assert [f.relative_to(tmp_path).as_posix() for f in jsonl_files(tmp_path, below=True)] == [*names, "sub/b.jsonl"]


def test_a_link_that_leads_nowhere_is_named_and_not_passed_over(tmp_path: Path):
    (tmp_path / "lost.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(FileNotFoundError, match=r"lost\.jsonl"):
        check(tmp_path)


def test_no_package_lists_files_by_a_pattern_that_hidden_files_fit():
    patterns = ('"*.jsonl"', '"*.safetensors"', '"*.json"', ".iterdir()):  # files")
    found = {f.name for f in (ROOT / "src").rglob("*.py") if any(p in f.read_text(encoding="utf-8") for p in patterns)}
    assert found <= {"hub.py", "merge_weights.py"}  # what to fetch from the Hub, and which of files_in to copy


def test_weights_of_a_mac_folder(tmp_path: Path):
    from noesis.llm.hub import find_model
    from noesis.llm.weights.tensors import _names_in_folder

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    clean = find_model(str(tmp_path)).revision
    (tmp_path / "._model.safetensors").write_bytes(b"\x00\x05\x16\x07")
    assert _names_in_folder(tmp_path) == ["model.safetensors"]
    assert find_model(str(tmp_path)).revision == clean


def test_whole_commands_pass_over_what_an_editor_left(project: Path):
    from noesis.core.project import Project

    found = Project(project)
    for folder in (*found.sources("en"), found.tribunal / "prompts"):
        (folder / "._x.jsonl").write_bytes(b"\x00\x05")
        (folder / "x.jsonl").mkdir()
    assert check(*found.sources("en")).rows == len(read_hand_written(found, "en")) == 124
    assert read_suite(found.tribunal)


@pytest.mark.parametrize("linked", ["folder", "file", "folder above", "to it from outside"])
def test_a_generated_row_is_refused_among_hand_written_ones_through_any_link(tmp_path: Path, linked: str):
    elsewhere, training = tmp_path / "elsewhere", tmp_path / "data" / "training"
    (elsewhere / "philosophical").mkdir(parents=True)
    row = (CASES / "generated_row.jsonl").read_bytes()
    (elsewhere / "philosophical" / "x.jsonl").write_bytes(row)
    training.parent.mkdir()
    file = training / "philosophical" / "x.jsonl"
    if linked == "folder above":
        training.symlink_to(elsewhere)
    else:
        training.mkdir()
    if linked == "folder":
        (training / "philosophical").symlink_to(elsewhere / "philosophical")
    elif linked == "file":
        file.parent.mkdir()
        file.symlink_to(elsewhere / "philosophical" / "x.jsonl")
    elif linked == "to it from outside":
        file.parent.mkdir()
        file.write_bytes(row)
        (tmp_path / "link.jsonl").symlink_to(file)
        file = tmp_path / "link.jsonl"
    assert is_hand_written(file)
    assert [p.code for p in check(file).errors] == ["generated"]
    assert not check(CASES / "generated_row.jsonl").errors


# --- JSON that is none, in every file that users give

NOT_JSON = {
    "NaN": (b'{"x": NaN}', "NaN is not JSON"),
    "Infinity": (b'{"x": -Infinity}', "Infinity is not JSON"),
    "a number beyond all": (b'{"x": 1e999}', "too large"),
    "digits without end": (b'{"x": ' + b"9" * 5000 + b"}", "not JSON"),
    "deep": (b'{"x": ' + b"[" * 100 + b"]" * 100 + b"}", "nested too deeply"),
    "very deep": (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "twice": (b'{"x": {"y": 1, "y": 2}}', "'y' appears twice"),
    "half a character": (b'{"x": "\\ud83d"}', "surrogate"),
    "half a character in a key": (b'{"\\uDC00": 1}', "surrogate"),
    "UTF-16": ('{"x": 1}'.encode("utf-16"), "UTF-16"),
    "UTF-16 without a mark": ('{"x": 1}'.encode("utf-16-be"), "UTF-16"),
    "Latin-1": ('{"x": "é"}'.encode("latin-1"), "not UTF-8"),
    "gzip": (b"\x1f\x8b\x08\x00", "gzip"),
    "old Mac": (b'{"x": 1}\r{"x": 2}', "CR alone"),
    "an array": (b'[{"x": 1}]', "a line of its own"),
    "pretty": (b"{", "one JSON document over many lines"),
    "Python": (b"{'x': 1}", "single quotes"),
    "two on a line": (b'{"x": 1}{"x": 2}', "several objects"),
    "raw NUL": (b'{"x": "a\x00b"}', "not JSON"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", NOT_JSON)
def test_what_the_gate_refuses_every_reader_refuses_with_file_and_line(write_rows, reader: str, kind: str):
    line, why = NOT_JSON[kind]
    file = write_rows(ROWS[reader], line)
    with pytest.raises(DataError, match=r"rows\.jsonl:2: .*") as found:
        READERS[reader](file)
    assert why in str(found.value)
    assert why in check(file).errors[-1].message
    assert [row for _, row in iter_intact_objects(file)] == [ROWS[reader]]


@pytest.mark.parametrize("reader", READERS)
def test_nul_is_no_text_and_marks_and_windows_ends_do_not_matter(write_rows, tmp_path: Path, reader: str):
    with pytest.raises(DataError, match=r"rows\.jsonl:1: contains the character U\+0000"):
        READERS[reader](write_rows(ROWS[reader] | {"note": "a\0b"}))
    file = tmp_path / "windows.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS[reader]).encode() + b"\r\n\r\n")
    assert len(READERS[reader](file)) == 1


@pytest.mark.parametrize("reader", ["pairs", "prompts", "suite"])
def test_ids_that_look_alike_are_named_in_every_file(write_rows, reader: str):
    row = ROWS[reader]
    with pytest.raises(
        DataError, match=r"rows\.jsonl:2: the id .* looks the same, in other code points, as the one at"
    ):
        READERS[reader](write_rows(row | {"id": "\u00e9"}, row | {"id": "e\u0301", "prompt": "Something else, is it?"}))
    with pytest.raises(DataError, match=r"rows\.jsonl:1: id contains a character that can't be seen \(U\+000A\)"):
        READERS[reader](write_rows(row | {"id": "a\nb"}))


# --- replayed conversations


@pytest.mark.parametrize("system", ["", "  ", None])
def test_an_empty_system_message_is_none(write_rows, system: str | None):
    short = {"system": system, "prompt": "Name two primes.", "response": "Two and three."}
    named = {"role": "system", "content": system or ""}, {"role": "user", "content": "Name two primes."}
    long = {"messages": [*named, {"role": "assistant", "content": "Two and three."}]}
    for row in read_replay(write_rows(short, long)):
        assert [message.role for message in row.messages] == ["user", "assistant"]
    assert read_replay(CASES / "empty_system.jsonl")[0].messages[0].content == "Name two primes."


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": "", "response": "b"}, "prompt: is empty"),
        ({"prompt": "a", "response": " \n"}, "response: is empty"),
        ({"prompt": ["a"], "response": "b"}, "prompt: expected a text, found list"),
        ({"system": 1, "prompt": "a", "response": "b"}, "system: expected a text, found int"),
        ({"messages": [{"role": "system", "content": ""}, {"role": "user", "content": ""}]}, r"messages\.1\.content"),
        ({"messages": [{"role": "system", "content": ""}, {"role": "system", "content": ""}]}, "must alternate"),
    ],
)
def test_an_error_names_the_field_as_the_row_has_it(write_rows, row: dict, field: str):
    with pytest.raises(DataError, match=rf"rows\.jsonl:1: .*{field}"):
        read_replay(write_rows(row))


def test_an_error_in_a_single_check_is_named_without_the_list_that_was_made_of_it(write_rows):
    with pytest.raises(DataError, match=r"rows\.jsonl:1: check\.type: "):
        read_rows([write_rows(SAMPLE | {"check": {"type": "x"}})], EvalSample, "all")


# --- any text that JSON can carry comes out as it went in

JSON_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
SEPARATORS = st.sampled_from(["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r", "\r\n"])
ANY = st.lists(JSON_TEXT | SEPARATORS, max_size=6).map("".join)
several = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_nothing_in_the_package_breaks_jsonl_at_what_python_calls_lines():
    """`str.splitlines` also breaks at U+2028, U+0085 and the form feed; only what other programs print may be so read."""
    found = set()
    for file in [*(ROOT / "src").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("splitlines", "readlines"):
                found.add(file.name)
    assert found <= {"device.py"}  # the output of nvidia-smi, and /proc/cpuinfo


def test_prompts_of_the_tribunal_with_line_separators(tmp_path: Path):
    rows = read_objects(CASES / "u2028_prompts.jsonl")
    assert [row["id"] for row in rows] == ["p1", "p2"]
    assert known_prompts([CASES / "u2028_prompts.jsonl"]).find_similar(rows[0]["prompt"]) == "u2028_prompts.jsonl:1"
    assert len(read_prompts(CASES / "u2028_prompts.jsonl", CONSTITUTION)) == 2
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "own.jsonl").write_bytes((CASES / "u2028_prompts.jsonl").read_bytes())
    assert [item.prompt for item in read_suite(tmp_path)] == [row["prompt"] for row in rows]


@several
@given(st.lists(ANY, min_size=1, max_size=5), st.booleans())
def test_rows_of_a_run_are_read_as_they_were_written(tmp_path: Path, texts: list[str], escaped: bool):
    rows = [{"id": str(i), "text": text, text: [text]} for i, text in enumerate(texts)]
    file = tmp_path / "answers.jsonl"
    if escaped:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", newline="\n")
    else:
        write_jsonl(file, rows)
    assert read_objects(file) == rows


@several
@given(ANY, st.sampled_from(list(READERS)))
def test_every_reader_of_users_files_keeps_the_text(tmp_path: Path, text: str, reader: str):
    said = f"A long enough beginning {text} and an end."
    file = tmp_path / "rows.jsonl"
    write_jsonl(file, [ROWS[reader] | {"prompt": said}])
    (row,) = READERS[reader](file)
    assert (row.messages[0].content if reader == "replay" else row.prompt) == said


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer_folder: Path) -> RowEncoder:
    return RowEncoder(load_tokenizer(tiny_tokenizer_folder), tiny_tokenizer_folder)


@several
@given(ANY, ANY)
def test_what_the_gate_accepts_is_exported_and_trained_on_as_it_is(
    tmp_path: Path, record: dict, encoder: RowEncoder, first: str, second: str
):
    row = record | {"prompt": f"O que é isto? {first}.", "response_revised": f"{record['response_revised']} {second}."}
    file = tmp_path / "rows.jsonl"
    write_jsonl(file, [row])
    if check(file).errors:
        with pytest.raises(DataError):
            read_examples(file, CONSTITUTION)
        return
    (example,) = read_examples(file, CONSTITUTION)
    assert example.to_json() == row == parse_object(file.read_bytes())
    (trained,) = training_rows([example], encoder, CONSTITUTION, include_critique=False, max_length=10**6)
    text = encoder.tokenizer.decode(list(trained.input_ids))
    assert row["prompt"] in text and row["response_revised"] in text


@several
@given(ANY)
def test_a_replayed_answer_is_trained_on_as_it_is(tmp_path: Path, encoder: RowEncoder, text: str):
    said = f"An answer {text}."
    write_jsonl(tmp_path / "replay.jsonl", [{"prompt": "And?", "response": said}])
    (row,) = replay_rows(read_replay(tmp_path / "replay.jsonl"), encoder, max_length=10**6, anchored=False)
    assert said in encoder.tokenizer.decode(list(row.input_ids))


@given(ANY)
def test_the_same_id_in_any_form_is_one(text: str):
    import unicodedata

    assert id_key(unicodedata.normalize("NFD", text)) == id_key(unicodedata.normalize("NFC", text))


def test_files_in_a_folder_that_is_missing(tmp_path: Path):
    assert files_in(tmp_path / "none") == []
