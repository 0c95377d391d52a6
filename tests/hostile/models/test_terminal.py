"""Attacks on the terminal: text from files, models and servers that would move the cursor, set the title or hide lines."""

from __future__ import annotations

import ast
import json
import logging
import re
import subprocess
import sys
import threading
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from helpers.project import ROOT
from noesis.cli import run_command
from noesis.core import console, errors
from noesis.core.errors import DataError, ModelError
from noesis.release.model_card import CardContent, model_card

ATTACKS = [
    pytest.param("\x1b[2J\x1b[H", id="an escape sequence that clears the screen"),
    pytest.param("\x1b]0;owned\x07", id="an OSC that sets the title"),
    pytest.param("\x1b]8;;http://evil.example\x1b\\run\x1b]8;;\x1b\\", id="an OSC 8 hyperlink"),
    pytest.param("\x1b]52;c;cm0gLXJmIC8=\x07", id="an OSC 52 that fills the clipboard"),
    pytest.param("\x1bP+q544e\x1b\\", id="a DCS that asks the terminal to answer"),
    pytest.param("\x9b2J", id="a C1 control in place of ESC ["),
    pytest.param("\x9d0;owned\x9c", id="a C1 OSC"),
    pytest.param("error: no\rdone: APPROVED", id="a carriage return that overwrites the line"),
    pytest.param("REJECTED" + "\x08" * 8 + "APPROVED", id="backspaces that overwrite a word"),
    pytest.param("\u202eDEVORPPA\u202c", id="a bidirectional override"),
    pytest.param("\u2066hidden\u2069", id="a bidirectional isolate"),
    pytest.param("a\u200bb\u2060c\ufeff", id="zero-width characters"),
    pytest.param("a\u2028b\u2029c\x85d", id="line separators of Unicode"),
    pytest.param("\x07\x00\x0b\x0c\x7f", id="bell, null, tabs, form feed and delete"),
    pytest.param("\U000e0041\U000e0042", id="invisible tag letters"),
    pytest.param("\udc9b\ud800", id="lone surrogates of a file name that is not UTF-8"),
    pytest.param("\x0e\x0f\x1b(0", id="a shift to the line-drawing alphabet"),
]


def log(text: str) -> None:
    logging.Logger("a library").error("it said %s", text)  # without pytest's handlers, which hang on the root


def log_by_own_handler(text: str) -> None:
    """As transformers, huggingface_hub, datasets and modal do: a handler and a format of their own."""
    logger, handler = logging.Logger(f"modules.{text}"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("[%(levelname)s|%(name)s] %(message)s"))
    logger.addHandler(handler)
    logger.warning(text, stack_info=True)
    try:
        raise RuntimeError(text)
    except RuntimeError:
        logger.exception("failed at %(name)s", {"name": text})


def print_in_a_child(text: str) -> None:
    console.relay(iter([text + "\r\n", "done"])).join()


def warn(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        console.guard_terminal()
        warnings.warn(text, stacklevel=2)


def raise_uncaught(text: str) -> None:
    try:
        raise RuntimeError(text)
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)


def raise_in_thread(text: str) -> None:
    def fail() -> None:
        raise RuntimeError(text)

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()


def progress(text: str) -> None:
    with console.Progress(text, total=2, unit=text, every_s=0.0) as shown:
        shown.every_s = 0.0
        shown.advance(1, note=text)


PRINTERS: dict[str, Callable[[str], object]] = {
    "say": console.say,
    "complain": console.complain,
    "show": console.show,
    "heading": lambda text: console.heading(1, 2, text, text),
    "progress": progress,
    "json": console.print_json,
    "json-key": lambda text: console.print_json({text: [text]}),
    "log": log,
    "log-handler": log_by_own_handler,
    "child": print_in_a_child,
    "warning": warn,
    "traceback": raise_uncaught,
    "thread": raise_in_thread,
    "path": lambda text: console.say(f"no such file: {Path(text.replace(chr(0), ''))}"),
    "command": lambda text: console.say(console.command("chat", text)),
}


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(console, "_quiet_stdout", False)
    monkeypatch.setattr(logging, "lastResort", logging._StderrHandler(logging.WARNING))
    factory = logging.getLogRecordFactory()
    console.guard_terminal()
    yield
    logging.setLogRecordFactory(factory)


def harmful(text: str) -> set[str]:
    """Its characters that a terminal obeys, or that hide or reorder others; not those that writing needs."""
    needed = "\n\t\u00ad\u200c\u200d"
    return {c for c in text if c not in needed and not c.isprintable() and unicodedata.category(c) != "Zs"}


@pytest.mark.parametrize(
    "text", ["1\xa0234,5 €", "日本語\u3000テスト", "می\u200cخواهم", "क्\u200dष", "👨\u200d👩\u200d👧", "ação, Dikē"]
)
def test_what_people_write_is_shown_as_it_is(text: str):
    assert console.printable(text) == text


ERRORS = set(errors.__all__)
FORGED = "x\n✓ verified\n  ok     39 checks, all match"


@pytest.mark.parametrize("printer", [name for name in PRINTERS if name != "show"])
def test_a_line_break_in_a_name_begins_no_line_like_ours(
    printer: str, guarded: None, capsys: pytest.CaptureFixture[str]
):
    PRINTERS[printer](FORGED)
    lines = "".join(capsys.readouterr()).split("\n")
    assert any("verified" in line for line in lines)
    assert not any(line.startswith(("✓", "  ok")) for line in lines)


@pytest.mark.parametrize("words", [[], ["status"], ["data", "validate"], ["verify"]])
def test_words_with_line_breaks_begin_no_line_like_ours(words: list[str], capsys: pytest.CaptureFixture[str]):
    assert run_command([*words, FORGED]) in (1, 2)
    lines = "".join(capsys.readouterr()).split("\n")
    assert any("verified" in line for line in lines)
    assert not any(line.startswith(("✓", "  ok")) for line in lines)


def test_the_details_of_an_error_stand_below_it_and_quote_as_well(capsys: pytest.CaptureFixture[str]):
    console.report_error(DataError(f"2 mistakes in {FORGED}:", FORGED, "another"))
    lines = capsys.readouterr().err.split("\n")
    assert [line[:9] for line in lines] == ["error: 2 ", "  x\\n✓ ve", "  another", ""]


def test_a_text_with_lines_of_its_own_is_never_printed_as_a_line():
    """`say` would show its breaks as \\n: a text goes through `say_text`, the details of an error into its arguments."""
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in (ROOT / "src" / "noesis").rglob("*.py")
        if file.name != "console.py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).split(".")[-1] in {"say", "complain", "heading"} | ERRORS
        and any(
            "\n" in part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and type(part.value) is str
        )
    ]
    assert found == []


@pytest.mark.parametrize("text", ATTACKS)
@pytest.mark.parametrize("printer", PRINTERS)
def test_no_control_character_reaches_the_terminal(
    printer: str, text: str, guarded: None, capsys: pytest.CaptureFixture[str]
):
    PRINTERS[printer](text)
    out, err = capsys.readouterr()
    assert out + err
    assert harmful(out + err) == set()


@given(st.text(st.characters(), max_size=40))
def test_any_text_is_printable_and_nothing_visible_is_lost(text: str):
    shown = console.printable(text)
    assert harmful(shown) == set()
    assert shown == text or harmful(text)
    assert console.printable(shown) == shown


@pytest.mark.parametrize("text", ATTACKS)
def test_json_on_a_terminal_holds_the_same_value(text: str, capsys: pytest.CaptureFixture[str]):
    console.print_json({text: [text]})
    out = capsys.readouterr().out
    assert harmful(out) == set()
    assert json.loads(out) == {text: [text]}


@pytest.mark.parametrize("text", ATTACKS)
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(lambda text: [text], id="as a command"),
        pytest.param(lambda text: ["status", f"--{text}"], id="as an option"),
        pytest.param(lambda text: ["status", f"no-run-{text}"], id="as the name of a run"),
        pytest.param(lambda text: ["train", "--epochs", text], id="as a number"),
        pytest.param(lambda text: ["data", "validate", text], id="as a file"),
    ],
)
def test_words_of_the_command_line_are_shown_escaped(
    arguments: Callable[[str], list[str]], text: str, guarded: None, capsys: pytest.CaptureFixture[str]
):
    code = run_command(arguments(text.replace("\x00", "")))
    out, err = capsys.readouterr()
    assert code in (1, 2)
    assert err
    assert harmful(out + err) == set()


def test_a_redrawn_progress_line_stays_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with console.Progress("a\x1b[2J\nb", total=2, unit="\r") as shown:
        shown.every_s = 0.0
        shown.advance(1, note="\x9b2J")
    out = capsys.readouterr().out
    assert out.startswith("\r\x1b[K  ")
    assert out.endswith("\n")
    assert out.count("\n") == 1
    assert harmful(out.removeprefix("\r\x1b[K")) == set()


def test_the_traceback_of_a_bug_is_escaped_in_a_process_of_its_own():
    code = "from noesis.core.console import guard_terminal; guard_terminal(); raise RuntimeError('\\x1b]0;owned\\x07')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == r"RuntimeError: \x1b]0;owned\x07"


@pytest.mark.parametrize("text", ATTACKS)
def test_an_error_of_a_server_is_shown_escaped(
    text: str, guarded: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(*_: object) -> None:
        raise ModelError(f"the endpoint answered: {text}")

    monkeypatch.setattr("noesis.run.directory.load_run", fail)
    assert run_command(["status", "a-run"]) == 1
    assert harmful(capsys.readouterr().err) == set()


# --- no other place writes to it ------------------------------------------------------------------------------------


def writes(node: ast.AST) -> bool:
    """Whether a call prints past console.py. Interrupt handlers write constant bytes to the descriptor: allowed."""
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func)
    return name in {"print", "typer.echo", "typer.secho", "click.echo", "pprint", "traceback.print_exc"} or (
        name.startswith(("sys.stdout.write", "sys.stderr.write", "sys.stdout.buffer", "sys.stderr.buffer", "sys.__std"))
        or name.split(".")[-1] in {"Console", "StreamHandler", "basicConfig", "print_exception"}
    )


def test_nothing_but_console_prints():
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in (ROOT / "src" / "noesis").rglob("*.py")
        if file.name != "console.py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if writes(node) and ast.unparse(node) != "sys.__stderr__.fileno()"
    ]
    assert found == []


@pytest.mark.parametrize(
    "file",
    ["cli/__init__.py", "cloud/app.py", "cloud/entrypoint.py", "training/worker.py", "training/backends/launcher.py"],
)
def test_every_process_of_ours_that_reaches_a_terminal_is_guarded(file: str):
    assert re.search(
        r"^ *guard_terminal\(\)", (ROOT / "src" / "noesis" / file).read_text(encoding="utf-8"), re.MULTILINE
    )


@pytest.mark.parametrize("file", ["training/backends/unsloth.py", "cloud/container/vllm_judge.py"])
def test_what_other_programs_print_comes_through_the_same_place(file: str):
    text = (ROOT / "src" / "noesis" / file).read_text(encoding="utf-8")
    assert (
        re.search(r"(?:relay|_Kept)\((?:self\._kept\()?process\.stdout\)", text)
        and text.count("subprocess.Popen(") == 1
    )


def test_csv_is_written_where_cells_that_a_spreadsheet_would_run_are_quoted():
    """What that writer does to =, +, - and @ is in tests/core/test_csv_table.py."""
    writers = [f for f in (ROOT / "src").rglob("*.py") if re.search(r"\bimport csv\b|to_csv", f.read_text())]
    assert [f.name for f in writers] == ["csv_table.py"]


# --- other places where a name is read ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("a\nlicense: mit\n---\n# Trusted", id="a base whose name ends the front matter"),
        pytest.param("a: [b", id="a base whose name is not a YAML word"),
        pytest.param("a | b |\n| Tribunal | APPROVED", id="a base whose name adds a row to the table"),
        pytest.param("<img src=x onerror=alert(1)>", id="a base whose name is HTML"),
        pytest.param("[x](javascript:alert(1))", id="a base whose name is a link"),
        pytest.param("\x1b[2J\u202e", id="a base whose name holds control characters"),
    ],
)
def test_a_model_card_holds_names_as_text(name: str):
    card = model_card(
        CardContent(
            name=name, base=name, licence=name, noesis="0", dataset_sha256="0", constitution_sha256="0",
            config_sha256="0", base_revision=name, verdict=name, reason=name,
        )
    )  # fmt: skip
    front = YAML(typ="safe", pure=True).load(card.split("\n---\n")[0].removeprefix("---\n"))
    assert front["base_model"] == name
    assert front["license"] == "other"
    assert harmful(card) == set()
    assert "<img" not in card.split("\n---\n", 1)[1]
    assert not re.search(r"[^\\]\]\(", card.split("\n---\n", 1)[1])
    assert card.count("\n| Tribunal |") == card.count("\n# ") == 1
    assert card.count("\n---\n") == 1
