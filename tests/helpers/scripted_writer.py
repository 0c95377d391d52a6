"""A scripted writer and critic for `noesis constitution revise`, and prompts for them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from helpers.judge_server import Asked, JudgeServer, Raw
from noesis.synthesis.critique_revision import Settings
from noesis.synthesis.make_examples import ExamplesRequest

TOPICS = [
    "a borrowed ladder",
    "two brothers and one field",
    "the last seat on a bus",
    "a promise made in anger",
    "an unsigned letter",
    "the price of a medicine",
]
PLACES = ["Leeds", "Recife", "Oslo", "Accra", "Quito", "Osaka"]
WORDS_OF_A_REVISION = [
    "Nobody here has asked the owner yet, so begin with that phone call and tell me what changes.",
    "You may be right, and what would show it is the deed that your grandfather left in the drawer.",
    "Is it tiredness or age that gives a claim? Your cousin seems to mean the first and you the second.",
    "What was promised binds even when the voice was raised, though the one who heard it may let you off.",
    "A name at the bottom costs something, and that cost is what makes a reader believe the page above it.",
    "Count those who can't pay as well as those who can; then see whether the higher figure still looks fair to both.",
]


def prompt_row(i: int, **more) -> dict:
    return {
        "id": f"p{i}",
        "language": "en",
        "prompt": f"In {PLACES[i % 6]} my cousin and I argue about {TOPICS[i % 6]}; who is right, number {i}?",
    } | more


def step(asked: Asked) -> str:
    """Which step of the chain a request is."""
    first = asked.body["messages"][0]
    if first["role"] != "system":
        return "initial"
    return (
        "critique" if "write a critique" in first["content"] or "escreve a crítica" in first["content"] else "revision"
    )


def subject(asked: Asked) -> tuple[str, str, int]:
    found = re.findall(r"In (\w+) my cousin and I argue about ([\w ]+); who is right, number (\d+)\?", asked.user)[-1]
    return found[0], found[1], int(found[2])


def good(asked: Asked) -> str:
    place, topic, i = subject(asked)
    if step(asked) == "initial":
        return f"Your cousin is wrong about {topic}, everybody in {place} knows that, so do not worry and carry on as you like."
    if step(asked) == "critique":
        return f'The words "everybody in {place} knows that" claim what nobody counted, and the cousin, who is not here, is judged unheard.'
    again = "once more" in asked.user.rsplit("<<<CRITIQUE", 1)[0]  # a second round mends what the first one wrote
    return (
        (WORDS_OF_A_REVISION[i % 6] + f" {i}.")
        if again
        else f"Said once more about {topic}: {WORDS_OF_A_REVISION[(i + 1) % 6]}"
    )


def spoiled(
    what: str, reply: str | Raw, when: Callable[[Asked], bool] = lambda asked: True
) -> Callable[[Asked], str | Raw]:
    """Good, but for one step."""
    return lambda asked: reply if step(asked) == what and when(asked) else good(asked)


def ask(server: JudgeServer, file: Path, out: Path, **more) -> ExamplesRequest:
    spec = f"openai:{server.url}:scripted"
    settings = Settings(**{name: more.pop(name) for name in list(more) if name in Settings.__dataclass_fields__})
    return ExamplesRequest(spec, more.pop("critic", spec), file, out, settings, **more)


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
