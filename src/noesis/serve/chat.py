"""`noesis chat RUN`: talk to the model in the terminal; tokens stream as they come."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from noesis.console import _printable, say
from noesis.constitution.conversation import Message
from noesis.serve.engine import Engine

HELP = "  /reset starts over · /quit or Ctrl-D leaves"
CONTEXT = 4096


def chat(model: Path, system: str, *, max_tokens: int, temperature: float, read: Callable[[str], str] = input) -> None:
    """Loop until the person leaves. The system prompt is the constitution's."""
    say(f"  loading {model.name} …")
    engine = Engine(model, context=CONTEXT)
    history: list[Message] = [{"role": "system", "content": system}]
    say(HELP)
    while True:
        try:
            text = read("\nyou › ").strip()
        except EOFError:
            say()
            return
        if text in ("/quit", "/exit"):
            return
        if text == "/reset":
            del history[1:]
            continue
        if text.startswith("/"):
            say(HELP)
            continue
        if not text:
            continue
        history.append({"role": "user", "content": text})
        print("noesis › ", end="", flush=True)  # noqa: T201
        answer = engine.chat(_fitting(history, max_tokens), max_tokens=max_tokens, temperature=temperature, on_token=_show)
        print(flush=True)  # noqa: T201
        history.append({"role": "assistant", "content": answer})


def _show(piece: str) -> None:
    sys.stdout.write(_printable(piece))
    sys.stdout.flush()


def _fitting(history: list[Message], max_tokens: int) -> list[Message]:
    """The system prompt and as many of the last messages as surely fit the context (a token is at least a byte)."""
    room = CONTEXT - max_tokens - 64 - len(history[0]["content"].encode()) // 2
    kept: list[Message] = []
    for message in reversed(history[1:]):
        room -= len(message["content"].encode()) // 2 + 16
        if room < 0 and kept:
            break
        kept.append(message)
    return [history[0], *reversed(kept)]
