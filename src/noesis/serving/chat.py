"""`noesis chat RUN`: chat with the model in the terminal; tokens stream in. Ctrl-C stops an answer, not the chat."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from noesis.constitution.analysis_block import AnalysisFilter
from noesis.core import console
from noesis.core.console import say, say_text
from noesis.core.errors import ModelError, NoesisError, UsageError
from noesis.core.files import write_text
from noesis.core.i18n import N_, _
from noesis.core.machine.folders import expanded
from noesis.core.messages import Message
from noesis.core.text import any_of, break_control_tokens
from noesis.llm.clients.chat_client import LLMClient
from noesis.llm.llama_cpp import REPEAT_PENALTY

HELP = N_("""  /base         the base's answer to your last message, for comparison; it does not enter the conversation
  /judge        what the Tribunal says about the last answer
  /save FILE    write the conversation to a file, as Markdown
  /reset        start a new conversation
  /help         this list
  /quit         leave (also Ctrl-D); Ctrl-C stops an answer""")
KEYS = N_("  Enter asks, Alt+Enter starts a new line, ↑ brings back what you asked; pasted lines are one question")
COMMANDS = ("/base", "/judge", "/save", "/reset", "/help", "/quit", "/exit")
CONTEXT = 4096  # tokens
BYTES_PER_TOKEN = 2  # a low estimate
MESSAGE_OVERHEAD, CONTEXT_RESERVE = 16, 64  # tokens: of the template around a message; left unused
ROLE_NAMES = {"system": "System", "user": "You"}

Answer = Callable[[list[Message], bool, Callable[[str], None]], str]
Judge = Callable[[list[Message], str], list[str]]


@dataclass
class ChatSession:
    """One conversation."""

    answer: Answer  # (messages, from the base?, on_piece) → the answer, without its analysis
    judge: Judge  # (messages before the answer, answer) → lines to print
    system: str
    max_tokens: int
    name: str = "Noesis"  # of who answers
    history: list[Message] = field(default_factory=list)  # the system prompt and the messages since

    def __post_init__(self) -> None:
        self.history = [{"role": "system", "content": self.system}]

    def turn(self, text: str) -> bool:
        """Answer `text`, or carry out the command in it.

        Returns:
            False to leave the chat.
        """
        command, _ignored, argument = text.partition(" ")
        if command in ("/quit", "/exit"):
            return False
        if command == "/reset":
            del self.history[1:]
            say(_("  new conversation"))
        elif command == "/base":
            self._compare_base()
        elif command == "/judge":
            self._judge_last()
        elif command == "/save":
            self._save(argument.strip())
        elif command == "/help":
            say_text(_(HELP))
        elif text.startswith("/") and "\n" not in text:
            near = difflib.get_close_matches(command, COMMANDS, n=1)
            raise UsageError(
                _(
                    "there is no command {command!r}{near} (/help lists them)",
                    command=command[:40],
                    near=_(": did you mean {near}?", near=near[0]) if near else "",
                )
            )
        elif text:
            self._send(text)
        return True

    def _send(self, text: str) -> None:
        self.history.append({"role": "user", "content": text})
        try:
            answer = self._stream(f"{self.name.lower()} › ", self.history, base=False)
        except NoesisError:
            self.history.pop()
            raise
        if answer:
            self.history.append({"role": "assistant", "content": answer})
        else:  # stopped before the first word
            self.history.pop()

    def _compare_base(self) -> None:
        last = self._last("user")
        self._stream("base › ", self.history[: last + 1], base=True)

    def _judge_last(self) -> None:
        last = self._last("assistant")
        for line in self.judge(self.history[1:last], self.history[last]["content"]):
            say("  " + line)

    def _save(self, name: str) -> None:
        if not name:
            raise UsageError(_("name the file: /save FILE"))
        file = expanded(name)
        if file.exists():
            raise UsageError(_("{file} exists already: choose another name", file=file))
        write_text(
            file, "\n".join(f"## {ROLE_NAMES.get(m['role'], self.name)}\n\n{m['content']}\n" for m in self.history)
        )
        say(f"  → {file}")

    def _last(self, role: str) -> int:
        """Index of the last message of `role`."""
        for i in range(len(self.history) - 1, 0, -1):
            if self.history[i]["role"] == role:
                return i
        raise UsageError(_("the conversation is still empty"))

    def _stream(self, label: str, messages: list[Message], *, base: bool) -> str:
        """Print the answer as it arrives. If Ctrl-C stops it, the part that arrived is the answer."""
        pieces: list[str] = []

        def show(piece: str) -> None:
            pieces.append(piece)
            console.show(piece)

        console.show(label)
        try:
            return self.answer(fit_context(messages, self.max_tokens), base, show)
        except KeyboardInterrupt:
            say(_(" …(stopped)"))
            return "".join(pieces)
        finally:
            say()


def chat(session: ChatSession, read: Callable[[str], str] = input, *, keys: bool = False) -> None:
    """Run a session until the user leaves.

    Args:
        read: prints a prompt and returns what was entered; EOFError leaves.
        keys: explain those of the line editor, too.
    """
    say_text(f"{_(HELP)}\n{_(KEYS)}" if keys else _(HELP))
    while True:
        try:
            text = _whole(read("\nyou › ")).strip()
        except EOFError:
            say()
            return
        except KeyboardInterrupt:
            say()
            say(_("  /quit leaves"))
            continue
        try:
            if not session.turn(text):
                return
        except KeyboardInterrupt:
            say()
            say(_("  stopped"))
        except NoesisError as error:
            say(f"  {error}")


def _whole(text: str) -> str:
    """What was entered, without bytes that the terminal's encoding does not know."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


def answer_function(
    tuned: LLMClient,
    base: Callable[[], LLMClient],
    *,
    max_tokens: int,
    temperature: float,
    scales: bool,
    special: Iterable[str] = (),
) -> Answer:
    """The `answer` of a ChatSession, from llama.cpp servers.

    Args:
        base: called when the base is first needed.
        scales: base and tuned model are one server, told apart by the adapter's scale.
        special: the model's control tokens, which are broken up in all messages.
    """
    pattern = any_of(special)

    def answer(messages: list[Message], from_base: bool, show: Callable[[str], None]) -> str:
        client = base() if from_base else tuned
        adapter = {"lora": [{"id": 0, "scale": 0.0 if from_base else 1.0}]} if scales else {}
        analysis = AnalysisFilter()
        shown: list[str] = []

        def emit(visible: str) -> None:
            if visible:
                shown.append(visible)
                show(visible)

        done = client.complete(
            [message | {"content": break_control_tokens(message["content"], pattern)} for message in messages],
            temperature=temperature,
            max_tokens=max_tokens,
            on_token=lambda piece: emit(analysis.feed(piece)),
            repeat_penalty=REPEAT_PENALTY,
            **adapter,
        )
        emit(analysis.finish())
        if not shown:
            what = _("nothing but its analysis") if analysis.hidden else _("no answer")
            raise ModelError(
                _(
                    "the model gave {what} ({finish}): ask again, or raise --max-tokens",
                    what=what,
                    finish=done.finish or "interrupted",
                )
            )
        return "".join(shown)

    return answer


def fit_context(history: list[Message], max_tokens: int) -> list[Message]:
    """The system prompt and as many of the last messages as most likely fit the context with the answer."""
    room = CONTEXT - max_tokens - CONTEXT_RESERVE - _estimate_tokens(history[0])
    recent: list[Message] = []
    for message in reversed(history[1:]):
        room -= _estimate_tokens(message) + MESSAGE_OVERHEAD
        if room < 0 and recent:
            break
        recent.append(message)
    return [history[0], *reversed(recent)]


def _estimate_tokens(message: Message) -> int:
    return len(message["content"].encode()) // BYTES_PER_TOKEN
