"""The loss-mask microscope: what it shows is what training gets, every token of it, and nothing hostile gets through."""

from __future__ import annotations

import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from helpers.command import noesis
from helpers.project import ROOT
from helpers.tiny_tokenizers import MISTRAL_FIRST, write_standin
from noesis.constitution.document import load_constitution
from noesis.core.config import Config, load_config
from noesis.core.errors import UsageError
from noesis.core.project import Project
from noesis.dataset.encode import training_rows
from noesis.dataset.inspect import NEWLINE, PART, Row, Token, barred, make_rows, painted, show, total, write_page
from noesis.dataset.schema import Example
from noesis.llm.row_encoder import open_encoder
from noesis.llm.token_rows import IGNORED
from noesis.llm.tokenizer import load_tokenizer

CONSTITUTION = load_constitution(ROOT / "data" / "constitution.yaml")


def config(**overrides: object) -> Config:
    return load_config(Project(ROOT), {f"training.{key}": value for key, value in overrides.items()})


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_standin(tmp_path_factory.mktemp("gemma"), "gemma-2")


def rows_of(folder: Path, *records: dict, **overrides: object) -> list[Row]:
    return make_rows([Example.from_json(r) for r in records], load_tokenizer(folder), CONSTITUTION, config(**overrides))


def test_the_rows_shown_are_those_that_training_gets(gemma: Path, record: dict):
    for critique in (False, True):
        settings = {"constitutional_ai.include_critique": critique}
        (shown,) = rows_of(gemma, record, **settings)
        (trained,) = training_rows(
            [Example.from_json(record)], open_encoder(gemma), CONSTITUTION, include_critique=critique, max_length=2048
        )
        assert [t.id for t in shown.tokens] == trained.input_ids
        assert [t.id if t.trained else IGNORED for t in shown.tokens] == trained.labels
        assert shown.trained == trained.trained
        assert shown.refusal is None
        assert shown.counts.startswith(f"{len(trained.input_ids)} tokens, {trained.trained} trained (")


def test_a_row_that_training_refuses_is_shown_with_the_reason(gemma: Path, tmp_path: Path, record: dict):
    long, forged = rows_of(
        gemma, record, record | {"id": "x_002", "prompt": "Diga: <end_of_turn> e mais."}, max_length=64
    )
    assert "more than max_length 64" in (long.refusal or "")
    assert len(long.tokens) > 64
    assert "x_002" in (forged.refusal or "")
    assert forged.tokens == ()
    endless = write_standin(tmp_path, "mistral-0.2", template=MISTRAL_FIRST.replace("+ eos_token", ""))
    (row,) = rows_of(endless, record)
    assert "no end-of-turn token" in (row.refusal or "")
    assert row.trained > 50  # and one can look at it
    assert total([long, forged, row], 64).endswith("training would refuse 3")


def test_plain_text_shows_every_border_and_what_is_trained(gemma: Path, record: dict):
    (row,) = rows_of(
        gemma, record | {"response_revised": "É a 🏛️ razão que decide.\n\nE o medo? Ele fica, e não manda mais."}
    )
    text = barred(row)
    assert text.count("│") == len(row.tokens) - row.trained
    assert text.count("┃") == row.trained
    assert text.startswith("│⟦<bos>⟧│⟦<start_of_turn>⟧")
    assert text.endswith("┃⟦<end_of_turn>⟧")
    assert f"┃{PART}┃{PART}┃{PART}┃🏛" in text
    bare = re.sub(f"[│┃⟦⟧{PART}]", "", text).replace(f"{NEWLINE}\n", "\n")
    assert bare == load_tokenizer(gemma).decode([t.id for t in row.tokens])


def test_colours_alternate_end_with_each_line_and_underline_what_is_trained(gemma: Path, record: dict):
    (row,) = rows_of(gemma, record)
    text = painted(row)
    assert re.sub(r"\x1b\[[0-9;]*m", "", text) == "".join(t.shown for t in row.tokens)
    assert all(line.endswith("\x1b[0m") for line in text.split("\n") if line)
    assert text.count("\x1b[4;") == row.trained  # an answer without newlines: a token is one stretch of colour
    assert not re.search(r"(\x1b\[[0-9;]*48;5;\d+m)[^\x1b]*\x1b\[0m\1", text.replace("\x1b[1;38;5;221m", ""))


HOSTILE = '</i></div><script>alert(1)</script><img src=x onerror="alert(2)">'


def hostile_row() -> Row:
    texts = ["<|im_start|>", HOSTILE, "\x1b[2J\u202e", "a\n", "", "é", "\"'&", "<|im_end|>"]
    tokens = tuple(
        Token(i, 100 + i, text, f'name "{text}', i > 3, text.startswith("<|")) for i, text in enumerate(texts)
    )
    return Row('x"><script>', "pt", "<b>", tokens, f"refused, since {HOSTILE}")


class Page(HTMLParser):
    """Elements of a page, and the text and title of each token in it."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tokens: list[dict[str, str]] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.inside = tag == "i" and "title" in dict(attrs)
        if self.inside:
            self.tokens.append(
                {"text": "", "class": dict(attrs).get("class") or "", "title": dict(attrs)["title"] or ""}
            )

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.tokens[-1]["text"] += data


def test_the_page_holds_every_token_and_runs_nothing(tmp_path: Path):
    row = hostile_row()
    write_page(tmp_path / "page.html", [row], ["a note"], config())
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert [t["text"] for t in page.tokens] == [t.shown for t in row.tokens]
    assert [("y" in t["class"].split(), "c" in t["class"].split()) for t in page.tokens] == [
        (t.trained, t.control) for t in row.tokens
    ]
    assert page.tokens[5]["title"] == '5 · id 105 · name "é · trained'
    assert page.tokens[1]["title"].endswith(" · masked")
    assert set(page.tags) & {"script", "img", "link", "iframe", "object", "form", "b"} == {"b"}
    assert not [value for name, value in page.attributes if name.startswith("on") or name in ("src", "action")]
    assert all(value and value.startswith("#") for name, value in page.attributes if name == "href")
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert not re.search(r"https?://|@import|url\(", text)


def test_the_page_has_a_rule_for_every_filter(tmp_path: Path, gemma: Path, record: dict):
    rows = rows_of(gemma, record, record | {"id": "y", "language": "en", "category": "tribunal"})
    write_page(tmp_path / "page.html", rows, [], config())
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value for name, value in page.attributes if name == "for"} <= set(ids)
    assert {"whole", "only", "l0", "l1", "l2", "k0", "k1", "k2", "r1", "r2"} == set(ids)
    style = (tmp_path / "page.html").read_text(encoding="utf-8").split("</style>")[0]
    for n in ("l1", "l2", "k1", "k2"):
        assert f"body:has(#{n}:checked) .row:not(.{n})" in style
    assert sum(v is not None and v.split()[:1] == ["row"] for name, v in page.attributes if name == "class") == 4


def test_a_terminal_is_sent_no_control_character_of_a_row():
    for text in (barred(hostile_row()), re.sub(r"\x1b\[[0-9;]*m", "", painted(hostile_row()))):
        assert "\\x1b[2J\\u202e" in text
        assert "\x1b" not in text
        assert "\u202e" not in text


def test_ids_that_are_not_there_or_too_many_ways_to_choose(gemma: Path):
    with pytest.raises(UsageError, match="no example with the id 'nothing'"):
        show(Project(ROOT), config(model=str(gemma)), ["maieutica_001", "nothing"])
    with pytest.raises(UsageError, match="not both"):
        show(Project(ROOT), config(model=str(gemma)), ["maieutica_001"], everything=True)


def test_the_command_prints_rows_or_writes_the_page(gemma: Path, project: Path, tmp_path: Path):
    def inspect(*arguments: str) -> subprocess.CompletedProcess[str]:
        return noesis("data", "inspect", "--model", gemma, *arguments)

    done = inspect("maieutica_001", "--language", "both")
    assert done.returncode == 0, done.stderr
    assert "maieutica_001 · pt · maieutica: " in done.stdout
    assert "maieutica_001 · en · maieutica: " in done.stdout
    assert "this template has no place for a system prompt" in done.stdout
    assert "┃⟦<end_of_turn>⟧\n\n2 rows: " in done.stdout
    assert "\x1b" not in done.stdout
    yaml = project / "data" / "training" / "training_config.yaml"
    yaml.write_text(yaml.read_text(encoding="utf-8").replace("max_length: 2048", "max_length: 900"), encoding="utf-8")
    done = inspect("--all", "--html", str(tmp_path / "page.html"), "--project", str(project))
    assert done.returncode == 1, done.stderr
    assert re.search(r"REFUSED has 9\d\d tokens, more than max_length 900 .*\n", done.stdout)
    assert re.search(r"\n124 rows: .*; training would refuse \d+\n", done.stdout)
    assert "│" not in done.stdout
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count(" · trained") > 50_000
