"""`noesis chat RUN`: talk to the model in the terminal; tokens stream as they come. Ctrl-C stops an answer, not the chat."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from noesis.core.console import _printable, say
from noesis.core.errors import ModelError, NoesisError, UsageError
from noesis.core.files import write_text
from noesis.core.messages import Message
from noesis.llm.clients.chat_client import LLMClient
from noesis.llm.llama_cpp import REPEAT_PENALTY
from noesis.serving.analysis_filter import AnalysisFilter

HELP = """  /base         the base's answer to your last message, to compare; it does not enter the conversation
  /judge        what the Tribunal says of the last answer
  /save FILE    write the conversation to a file, as Markdown
  /reset        begin anew
  /quit         leave (also Ctrl-D); Ctrl-C stops an answer"""
CONTEXT = 4096  # tokens

Answer = Callable[[list[Message], bool, Callable[[str], None]], str]
Judge = Callable[[list[Message], str], list[str]]


@dataclass
class ChatSession:
    """One conversation.

    answer: (messages, base?, on_piece) → the answer, without its analysis
    judge: (messages before the answer, answer) → lines
    history: the system prompt and what was said since
    """

    answer: Answer
    judge: Judge
    system: str
    max_tokens: int
    history: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.history = [{"role": "system", "content": self.system}]

    def turn(self, text: str) -> bool:
        """Do what `text` asks for; False to leave."""
        command, _, argument = text.partition(" ")
        if command in ("/quit", "/exit"):
            return False
        if command == "/reset":
            del self.history[1:]
            say("  begun anew")
        elif command == "/base":
            self._compare()
        elif command == "/judge":
            self._judge()
        elif command == "/save":
            self._save(argument.strip())
        elif text.startswith("/"):
            say(HELP)
        elif text:
            self._ask(text)
        return True

    def _ask(self, text: str) -> None:
        self.history.append({"role": "user", "content": text})
        try:
            answer = self._streamed("noesis › ", self.history, base=False)
        except NoesisError:
            self.history.pop()
            raise
        if answer:
            self.history.append({"role": "assistant", "content": answer})
        else:  # stopped before the first word
            self.history.pop()

    def _compare(self) -> None:
        last = self._last("user")
        self._streamed("base › ", self.history[: last + 1], base=True)

    def _judge(self) -> None:
        last = self._last("assistant")
        for line in self.judge(self.history[1:last], self.history[last]["content"]):
            say("  " + line)

    def _save(self, name: str) -> None:
        if not name:
            raise UsageError("name the file: /save FILE")
        file = Path(name).expanduser()
        if file.exists():
            raise UsageError(f"{file} exists already: name another")
        names = {"system": "System", "user": "You", "assistant": "Noesis"}
        write_text(file, "\n".join(f"## {names[m['role']]}\n\n{m['content']}\n" for m in self.history))
        say(f"  → {file}")

    def _last(self, role: str) -> int:
        """Where the last message of `role` is."""
        for i in range(len(self.history) - 1, 0, -1):
            if self.history[i]["role"] == role:
                return i
        raise UsageError("nothing was said yet")

    def _streamed(self, who: str, messages: list[Message], *, base: bool) -> str:
        """Show the answer as it comes; what came is kept if Ctrl-C stops it."""
        pieces: list[str] = []

        def show(piece: str) -> None:
            pieces.append(piece)
            sys.stdout.write(_printable(piece))
            sys.stdout.flush()

        sys.stdout.write(who)
        sys.stdout.flush()
        try:
            return self.answer(fit_context(messages, self.max_tokens), base, show)
        except KeyboardInterrupt:
            say(" …(stopped)")
            return "".join(pieces)
        finally:
            say()


def chat(talk: ChatSession, read: Callable[[str], str] = input) -> None:
    """Loop until the person leaves."""
    say(HELP)
    while True:
        try:
            text = read("\nyou › ").strip()
        except EOFError:
            say()
            return
        except KeyboardInterrupt:
            say("\n  /quit leaves")
            continue
        try:
            if not talk.turn(text):
                return
        except KeyboardInterrupt:
            say("\n  stopped")
        except NoesisError as error:
            say(f"  {error}")


def answer_function(
    tuned: LLMClient, base: Callable[[], LLMClient], *, max_tokens: int, temperature: float, scales: bool
) -> Answer:
    """Answers of llama.cpp.

    Args:
        base: called when the base is first asked for.
        scales: base and tuned are one server, told apart by the adapter's scale.
    """

    def answer(messages: list[Message], of_base: bool, show: Callable[[str], None]) -> str:
        client = base() if of_base else tuned
        more = {"lora": [{"id": 0, "scale": 0.0 if of_base else 1.0}]} if scales else {}
        hidden, shown = AnalysisFilter(), []

        def piece(text: str) -> None:
            if visible := hidden.feed(text):
                shown.append(visible)
                show(visible)

        done = client.complete(
            messages,
            temperature=temperature,
            max_tokens=max_tokens,
            on_token=piece,
            repeat_penalty=REPEAT_PENALTY,
            **more,
        )
        if rest := hidden.finish():
            shown.append(rest)
            show(rest)
        if not shown:
            raise ModelError(
                f"the model gave no answer ({done.finish or 'broken off'}); ask again, or raise --max-tokens"
            )
        return "".join(shown)

    return answer


def fit_context(history: list[Message], max_tokens: int) -> list[Message]:
    """The system prompt and as many of the last messages as most likely fit the context (at two bytes a token)."""
    room = CONTEXT - max_tokens - 64 - len(history[0]["content"].encode()) // 2
    kept: list[Message] = []
    for message in reversed(history[1:]):
        room -= len(message["content"].encode()) // 2 + 16
        if room < 0 and kept:
            break
        kept.append(message)
    return [history[0], *reversed(kept)]
