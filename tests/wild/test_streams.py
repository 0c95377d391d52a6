"""What a command prints to: encodings that lack our signs, streams that are closed, full, or that nobody reads."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import pytest

from helpers.project import ROOT
from noesis.cli import run_command
from noesis.core import console
from noesis.core.machine.streams import NO_READER, OutputClosed, has_no_reader, settle_streams

ENCODINGS = ["ascii", "cp1252", "cp437", "gbk", "shift_jis", "latin-1", "utf-8", "utf-16"]
TEXTS = ["→ Dikē — ação …", "👩‍👩‍👧 家族", "a\udc80b", "≥ 0.5 × 2", "می\u200cخواهم", "ﬁ\u00a0Å"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "src") + os.pathsep + os.environ.get("PYTHONPATH", "")}
NOESIS = [sys.executable, "-m", "noesis"]


def use_stdout(monkeypatch: pytest.MonkeyPatch, encoding: str) -> io.TextIOWrapper:
    """In the test itself: pytest puts its own streams in place after the fixtures."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("PYTHONIOENCODING", "")
    settle_streams()
    return stream


def printed(stream: io.TextIOWrapper) -> str:
    return stream.buffer.getvalue().decode(stream.encoding)  # type: ignore[attr-defined]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("text", TEXTS)
def test_every_text_can_be_printed_in_every_encoding(text: str, encoding: str, monkeypatch: pytest.MonkeyPatch):
    stdout = use_stdout(monkeypatch, encoding)
    console.say(text)
    console.say(console.command("chat", text))
    console.heading(1, 2, text, text)
    console.print_json({text: [text]})
    out = printed(stdout)
    assert json.loads(out[out.index("\n{") :]) == {text: [text]}
    if stdout.encoding in ("utf-8", "utf-16"):
        assert console.printable(text) in out
    else:
        assert os.environ["PYTHONIOENCODING"] == f"{stdout.encoding}:backslashreplace"  # what children print with


def test_our_own_signs_are_spelled_and_letters_keep_their_number(monkeypatch: pytest.MonkeyPatch):
    stream = use_stdout(monkeypatch, "cp1252")
    console.say("3 → 5 ≥ 4 — ação 家 Dikē …")
    assert printed(stream) == "3 -> 5 >= 4 — ação \\u5bb6 Dike …\n"


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "train --help",
        "data --help",
        "no-such-ē",
        "status no-→-run",
        "doctor",
        "cloud --help",
        "train --epochs ē",
    ],
)
def test_commands_and_help_print_in_ascii(words: str, monkeypatch: pytest.MonkeyPatch):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in "oe"]
    monkeypatch.setenv("PYTHONIOENCODING", "")
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(sys, name, stream)
    code = run_command(words.split())
    for stream in streams:
        stream.flush()
    assert code in (0, 1, 2)
    assert "".join(printed(stream) for stream in streams).isascii()
    assert any(printed(stream) for stream in streams)


# --- a reader that has gone


def without_reader(monkeypatch: pytest.MonkeyPatch) -> TextIO:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w", encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "__stdout__", stream)
    return stream


@pytest.mark.parametrize("words", ["--help", "train --help", "--version", "doctor", "clean", "data validate"])
def test_a_reader_that_has_gone_ends_a_command_as_sigpipe_would(
    words: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    stream = without_reader(monkeypatch)
    assert run_command(words.split()) == NO_READER
    assert capfd.readouterr().err == ""
    stream.close()  # raises nothing: what is in its buffer goes nowhere


def test_work_cannot_take_a_gone_reader_for_its_own_failure(monkeypatch: pytest.MonkeyPatch):
    assert has_no_reader(without_reader(monkeypatch))
    with pytest.raises(OutputClosed):
        console.say("x")
    assert not issubclass(OutputClosed, Exception)


def test_a_broken_pipe_of_the_work_itself_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(*_: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("noesis.run.directory.load_run", fail)
    assert run_command(["status", "a-run"]) == 1
    assert capsys.readouterr().err == "error: Broken pipe\n"


def test_a_terminal_that_went_away_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch):
    class Gone(io.StringIO):
        def flush(self) -> None:
            raise OSError(5, "Input/output error")

    gone = Gone()
    monkeypatch.setattr(sys, "stdout", gone)
    console.say("epoch 1")
    assert gone.getvalue() == "epoch 1\n"  # and nothing was raised


# --- in processes of their own


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("{} data validate >&-", 0),
        ("{} data validate >&- 2>&- <&-", 0),
        ("{} doctor <&- >/dev/null", 0),
        ("{} status no-run 2>&-", 2),
        ("{} --version >/dev/full", 1),
        ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 {} data validate", 0),
        ("COLUMNS=0 {} train --help", 0),
        ("COLUMNS=20 TERM=dumb NO_COLOR=1 TZ=No/Where {} doctor", 0),
        ("ulimit -n 64; {} data validate", 0),
    ],
)
def test_odd_shells(line: str, code: int, tmp_path: Path):
    words = line.format(" ".join(NOESIS))
    done = subprocess.run(["bash", "-c", words], cwd=ROOT, env=ENVIRONMENT, capture_output=True)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


@pytest.mark.slow
def test_a_closed_descriptor_is_not_given_to_a_file_that_is_written(tmp_path: Path):
    """Python would open the report as descriptor 1, and everything that is printed by children would go into it."""
    report = tmp_path / "report.json"
    line = f"{' '.join(NOESIS)} data validate --json {report} >&-"
    assert subprocess.run(["bash", "-c", line], cwd=ROOT, env=ENVIRONMENT).returncode == 0
    assert json.loads(report.read_text(encoding="utf-8"))
