"""YAML as people bring it: words and numbers that YAML 1.1 took for something else, encodings, line ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ValidationError

from helpers.project import ROOT
from noesis.constitution.document import load_constitution
from noesis.core.config import load_config
from noesis.core.config.models import LoraFile, TrainingFile
from noesis.core.errors import ConfigError, ConstitutionError, NoesisError
from noesis.core.project import Project
from noesis.core.yaml_file import describe_error, line_of, read_yaml, validate
from noesis.tribunal.rubric import load_rubrics
from noesis.workspace.new_project import create_project

PROJECT = Project(ROOT)
FILES: dict[Path, type[BaseModel]] = {PROJECT.lora_yaml: LoraFile, PROJECT.training_yaml: TrainingFile}
ODD = ("yes", "on", "off", "y", "010", "0o10", "0x10", "1_000", "2:30", "2024-01-01", "1,000", "10%", "'8'", '"true"')


def parse(text: str, tmp_path: Path) -> Any:
    file = tmp_path / "a.yaml"
    file.write_text(text, encoding="utf-8")
    return read_yaml(file)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("Off", "Off"), ("y", "y"),
        ("true", True), ("False", False), ("~", None), ("null", None), ("", None),
        ("010", "010"), ("0o10", "0o10"), ("0x10", "0x10"), ("0b1", "0b1"), ("1_000", "1_000"), ("2:30", "2:30"),
        ("190:20:30", "190:20:30"), ("2024-01-01", "2024-01-01"), ("2024-01-01 10:00:00", "2024-01-01 10:00:00"),
        ("10", 10), ("-3", -3), ("+3", 3), ("0", 0), ("2e-4", 2e-4), ("1E3", 1000.0), ("2.0e-4", 2e-4), (".5", 0.5),
        ("'yes'", "yes"), ('"010"', "010"), ("=", "="), ("<<", "<<"), ("1.2.3", "1.2.3"), ("٣", "٣"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("start", ["", "%YAML 1.1\n---\n"], ids=["", "declared as 1.1"])
def test_only_plain_numbers_and_words_are_more_than_text(start: str, written: str, read: object, tmp_path: Path):
    found = parse(f"{start}a: {written}\n", tmp_path)["a"]
    assert (type(found), found) == (type(read), read)


def leaves(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if isinstance(value, (dict, list)):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(each, (*at, key))
    else:
        yield at, value


def replaced(value: Any, at: tuple[str | int, ...], new: object) -> Any:
    if not at:
        return new
    inner = replaced(value[at[0]], at[1:], new)
    if isinstance(value, dict):
        return value | {at[0]: inner}
    return [*value[: at[0]], inner, *value[at[0] + 1 :]]


SETTINGS = [
    pytest.param(file, at, id=".".join(map(str, at)))
    for file in FILES
    for at, value in leaves(read_yaml(file))
    if isinstance(value, (bool, int, float))
]


@pytest.mark.parametrize(("file", "at"), SETTINGS)
def test_every_number_and_switch_refuses_what_only_looks_like_one(
    file: Path, at: tuple[str | int, ...], tmp_path: Path
):
    raw = read_yaml(file)
    for written in ODD:
        value = parse(f"a: {written}\n", tmp_path)["a"]
        with pytest.raises(ValidationError) as caught:
            validate(FILES[file], replaced(raw, at, value))
        words = describe_error(FILES[file], caught.value, file)
        assert words.startswith(f"{file}:{line_of(file, at)}: {'.'.join(map(str, at))} = {value!r}: "), words


def test_a_switch_is_no_number_and_a_number_no_switch():
    lora = read_yaml(PROJECT.lora_yaml)
    for at, value in ((("r",), True), (("quantization", "load_in_4bit"), 1.0), (("r",), 64.5), (("bias",), None)):
        with pytest.raises(ValidationError):
            validate(LoraFile, replaced(lora, at, value))


@pytest.mark.parametrize("file", FILES)
def test_a_whole_number_may_be_written_as_a_float(file: Path):
    """As tools that write YAML from floats do. What is no whole number is refused with the key."""
    raw = read_yaml(file)
    whole = [(at, value) for at, value in leaves(raw) if type(value) is int]
    assert whole
    for at, value in whole:
        assert validate(FILES[file], replaced(raw, at, float(value))) == validate(FILES[file], raw)
    every = raw
    for at, value in whole:
        every = replaced(every, at, float(value))
    assert validate(FILES[file], every) == validate(FILES[file], raw)


@pytest.mark.parametrize("value", [8.5, 1e300, -1e300])
def test_a_float_that_is_no_whole_number_is_refused_with_its_key(value: float):
    with pytest.raises(ValidationError) as caught:
        validate(LoraFile, read_yaml(PROJECT.lora_yaml) | {"r": value})
    assert f"r = {value!r}: expected a whole number" in describe_error(LoraFile, caught.value, PROJECT.lora_yaml)


def test_a_short_learning_rate_is_a_number(tmp_path: Path):
    """YAML 1.1 reads 2e-4 as text; people's trainers then failed in the optimizer."""
    raw = read_yaml(PROJECT.training_yaml) | {"learning_rate": parse("a: 2e-4", tmp_path)["a"]}
    assert validate(TrainingFile, raw).learning_rate == 2e-4


@pytest.fixture
def project(tmp_path: Path) -> Project:
    create_project(tmp_path / "p")
    return Project(tmp_path / "p")


@pytest.mark.parametrize("kind", ["BOM", "CRLF", "BOM and CRLF"])
def test_files_that_windows_editors_saved_are_read_alike(project: Project, kind: Literal["BOM", "CRLF"]):
    before = load_config(project), load_constitution(project.constitution), load_rubrics(project.tribunal / "judges")
    for file in project.root.rglob("*.yaml"):
        data = file.read_bytes()
        data = data.replace(b"\n", b"\r\n") if "CRLF" in kind else data
        file.write_bytes(b"\xef\xbb\xbf" + data if "BOM" in kind else data)
    after = load_config(project), load_constitution(project.constitution), load_rubrics(project.tribunal / "judges")
    assert after == before
    assert [each.digest() for each in after] == [each.digest() for each in before]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("r: 8\nbias: não".encode("cp1252"), "line 2: not UTF-8 (byte 0xe3)"),
        ("r: 8".encode("utf-16"), "line 1: not UTF-8"),
        (b"r: 8\n\tbias: none", "line 2, column 1: "),
        (b"r: 8\nr: 16", "line 2, column 1: key 'r' is written twice"),
        (b"r: 8\nbias: a: b", "line 2, column 8: "),
        (b'r: "\\ud800"', "line 1, column 4: half of a pair"),
        (b"<<: {r: 8}\n", "line 1, column 1: merges (<<) are not read: write the keys out"),
        (b"r: 8\nquantization:\n  <<: {load_in_4bit: true}\n", "line 3, column 3: merges (<<) are not read"),
        (b"r: 8\n<<: *base\n", "line 2, column 5: aliases (*name) are not read: write the value out"),
        (b"r: !!int '8'", "line 1, column 4: tags (!name) are not read"),
        (b"r: 8\n---\nr: 9", "line 2, column 1: "),
        (b"{r: 8}: 9", "line 1, column 1: "),
    ],
)
def test_what_is_no_yaml_is_told_by_its_line(project: Project, data: bytes, said: str):
    project.lora_yaml.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load_config(project)
    assert str(caught.value).startswith(f"{project.lora_yaml} is not valid YAML: {said}")


@pytest.mark.parametrize("data", [b"", b"# nothing\n", b"- a\n", b"r\n", b"\xef\xbb\xbf"])
def test_a_file_that_is_no_list_of_keys_is_named(project: Project, data: bytes):
    for file, load in (
        (project.lora_yaml, load_config),
        (project.constitution, lambda p: load_constitution(p.constitution)),
    ):
        before = file.read_bytes()
        file.write_bytes(data)
        with pytest.raises(NoesisError) as caught:
            load(project)
        assert str(file) in str(caught.value)
        file.write_bytes(before)


def test_text_that_looks_like_a_number_is_told_how_to_write_it(project: Project):
    text = project.constitution.read_text(encoding="utf-8")
    line = next(i for i, line in enumerate(text.split("\n"), 1) if line.startswith("version:"))
    project.constitution.write_text(text.replace(text.split("\n")[line - 1], "version: 1.0"), encoding="utf-8")
    with pytest.raises(ConstitutionError) as caught:
        load_constitution(project.constitution)
    assert str(caught.value) == f'{project.constitution}:{line}: version: expected text: write it in quotes, "1.0"'


def test_the_comments_of_the_settings_come_with_a_new_project(project: Project):
    for file in (PROJECT.lora_yaml, PROJECT.training_yaml):
        assert (project.root / file.relative_to(ROOT)).read_bytes() == file.read_bytes()
