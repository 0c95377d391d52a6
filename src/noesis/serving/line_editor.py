"""Reading a person's questions in `noesis chat`: with editing and history on a terminal, plainly elsewhere.

prompt_toolkit (https://python-prompt-toolkit.readthedocs.io) knows what terminals send: arrows, pasted lines, a new
size. The history lasts as long as the chat: what people ask a model is not written to their disk unasked.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_toolkit.input import Input
    from prompt_toolkit.output import Output

Read = Callable[[str], str]  # prints a prompt and returns what was entered


def is_terminal() -> bool:
    """Whether a person types and reads here."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def question_reader(commands: Sequence[str]) -> Read:
    """Prints a prompt and returns what is entered, which is several lines where these were pasted or typed as one.

    It raises EOFError at the end of the input (Ctrl-D) and KeyboardInterrupt on Ctrl-C.

    Args:
        commands: words that Tab completes.
    """
    return terminal_reader(commands) if is_terminal() else input


def terminal_reader(commands: Sequence[str], input: Input | None = None, output: Output | None = None) -> Read:
    """The reader for a terminal; `input` and `output` stand for it, None: the process's own."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("escape", "enter")  # Alt+Enter
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(
        completer=WordCompleter(list(commands), sentence=True),
        complete_while_typing=False,
        key_bindings=keys,
        input=input,
        output=output,
    )
    return session.prompt
