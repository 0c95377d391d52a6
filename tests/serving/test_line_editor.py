"""What a person types into `noesis chat` on a terminal: a real prompt_toolkit, fed with what terminals send."""

from __future__ import annotations

import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from noesis.core.errors import UsageError
from noesis.serving.chat import COMMANDS, ChatSession, chat
from noesis.serving.line_editor import question_reader, terminal_reader

UP, LEFT, ALT_ENTER, CTRL_C, CTRL_D = "\x1b[A", "\x1b[D", "\x1b\r", "\x03", "\x04"
PASTE = "\x1b[200~{}\x1b[201~"


def typed(keys: str) -> list[str]:
    """The questions that a chat receives from these keys, until the person leaves."""
    asked: list[str] = []

    def answer(messages, base, show):
        asked.append(messages[-1]["content"])
        show("yes")
        return "yes"

    with create_pipe_input() as pipe:
        pipe.send_text(keys)
        session = ChatSession(answer, lambda said, text: [], "system", 100)
        chat(session, terminal_reader(COMMANDS, pipe, DummyOutput()))
    return asked


def test_lines_are_edited_and_brought_back():
    # the history is loaded beside the first keys: more than one read takes brings some of them after it
    assert typed(f"coragm{LEFT}e\r{UP * 1000}?\r{CTRL_D}") == ["coragem", "coragem?"]


def test_pasted_and_typed_lines_are_one_question():
    pasted = "first\r\nsecond\rthird"
    assert typed(f"{PASTE.format(pasted)}\rone{ALT_ENTER}two\r{CTRL_D}") == ["first\nsecond\nthird", "one\ntwo"]


def test_ctrl_c_drops_the_line_and_not_the_chat(capsys):
    assert typed(f"half{CTRL_C}whole\r/quit\r") == ["whole"]
    assert "/quit leaves" in capsys.readouterr().out


def test_unknown_commands_are_named(capsys):
    assert typed("/sav x\r/foo\r/quit\r") == []
    printed = capsys.readouterr().out
    assert "no command '/sav': did you mean /save?" in printed and "no command '/foo' (/help lists them)" in printed


def test_without_a_terminal_lines_are_read_plainly(monkeypatch):
    assert question_reader(COMMANDS) is input


def test_bytes_that_the_terminal_s_encoding_does_not_know_become_a_sign():
    asked = []
    lines = iter(["coragem \udce9?", "/quit"])
    session = ChatSession(lambda m, b, show: asked.append(m[-1]["content"]) or "yes", lambda s, t: [], "system", 100)
    chat(session, lambda prompt: next(lines))
    assert asked == ["coragem \ufffd?"]


def test_a_command_in_a_text_is_text():
    session = ChatSession(lambda m, b, show: m[-1]["content"], lambda s, t: [], "system", 100)
    assert session.turn("/usr/bin holds\nwhat?") and session.history[1]["content"] == "/usr/bin holds\nwhat?"
    with pytest.raises(UsageError):
        session.turn("/usr/bin")
