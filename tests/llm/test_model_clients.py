"""From a SPEC to a client, replies that are stored and asked for again, and the seeds of requests."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from noesis.core.config import TribunalSection
from noesis.core.errors import UsageError
from noesis.llm.clients.cached_client import CachedClient, UnusableReplyError, request_seed, sample_seed
from noesis.llm.clients.open import open_client, open_clients
from noesis.llm.clients.protocol import ModelReply, ModelRequest, NoReplyError
from noesis.llm.clients.reply_cache import open_cache
from noesis.llm.clients.spec import JUDGE_KINDS, WRITER_KINDS, ModelSpec, parse_spec
from noesis.llm.clients.spending import Spending


class Scripted:
    """A client that gives its replies in turn; None: there is none."""

    name, identity, concurrency = "scripted", "scripted:1", 1

    def __init__(self, *replies: str | None) -> None:
        self.replies, self.requests = list(replies), list[ModelRequest]()

    async def ask(self, request: ModelRequest) -> ModelReply:
        self.requests.append(request)
        text = self.replies.pop(0)
        if text is None:
            raise NoReplyError("HTTP 500, 3 attempts")
        return ModelReply(text, completion_tokens=len(text))

    async def close(self) -> None: ...


def request(attempt: int, problem: str) -> ModelRequest:
    return ModelRequest((("user", f"a number, please {problem}".strip()),), {}, 10, request_seed(1, attempt), attempt)


def number(reply: ModelReply, attempt: int) -> tuple[int, int, bool]:
    if not reply.text.isdigit():
        raise UnusableReplyError(f"{reply.text!r} is no number")
    return int(reply.text), attempt, reply.cached


def ask(folder: Path, client: Scripted, attempts: int = 2, made: list[int] | None = None) -> tuple[int, int, bool]:
    with open_cache(folder / "replies.sqlite") as cache:
        cached = CachedClient(
            client, cache, lambda reply: (made if made is not None else []).append(reply.completion_tokens)
        )
        return asyncio.run(cached.ask_until_usable(request, number, attempts=attempts))


def test_a_reply_that_cannot_be_used_is_asked_for_again_with_what_was_wrong(tmp_path: Path):
    client, made = Scripted("seven", "7"), []
    assert ask(tmp_path, client, made=made) == (7, 1, False)
    assert [r.messages[0][1] for r in client.requests] == ["a number, please", "a number, please 'seven' is no number"]
    assert made == [5, 1]


def test_both_replies_are_stored(tmp_path: Path):
    ask(tmp_path, Scripted("seven", "7"))
    silent, made = Scripted(), []
    assert ask(tmp_path, silent, made=made) == (7, 1, True)
    assert (silent.requests, made) == ([], [])


def test_after_the_last_attempt_the_problem_is_told(tmp_path: Path):
    with pytest.raises(UnusableReplyError, match="'eight' is no number"):
        ask(tmp_path, Scripted("seven", "eight", "9"))


def test_a_failed_request_is_not_stored(tmp_path: Path):
    with pytest.raises(NoReplyError):
        ask(tmp_path, Scripted(None))
    assert ask(tmp_path, Scripted("7")) == (7, 0, False)


def test_seeds_are_those_that_lie_in_caches():
    """Computed by the version before `request_seed`: by example, pair of answers, comparison and prompt."""
    assert request_seed(0, "en", "p1", "initial", 0, 0) == SEEDS[0]
    assert request_seed(3, "pt", "p1", 1, 2) == SEEDS[1]
    assert request_seed(3, "pt", "p1", "an answer") == SEEDS[2]
    assert request_seed(7, "q7_en_00001", 2) == SEEDS[3]
    assert [sample_seed(42, k) for k in range(3)] == [42, 43, 44]


SEEDS = (2012655983, 1185725, 583157903, 640456922)


def test_every_form_of_a_spec(tmp_path: Path):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    assert parse_spec("openai:http://x:1/v1:m") == ModelSpec("openai", "m", "http://x:1/v1")
    assert parse_spec(f"gguf:{file}") == ModelSpec("gguf", str(file))
    assert parse_spec("self") == ModelSpec("self", "self")
    assert parse_spec("torch:smollm2", "--model", WRITER_KINDS) == ModelSpec("torch", "smollm2")


@pytest.mark.parametrize(
    ("text", "kinds", "message"),
    [
        ("self", WRITER_KINDS, r"--model 'self' is not understood: use openai:.*, or torch:NAME"),
        ("torch:", WRITER_KINDS, "is not understood"),
        ("torch:x", JUDGE_KINDS, "structured verdicts"),
        ("gguf:nowhere.gguf", JUDGE_KINDS, "does not exist"),
        ("gpt-5", JUDGE_KINDS, "or self"),
    ],
)
def test_a_spec_that_is_not_allowed_is_told_with_what_is(text: str, kinds: tuple, message: str):
    with pytest.raises(UsageError, match=message):
        parse_spec(text, "--model", kinds)


def test_equal_specs_share_a_client():
    specs = [ModelSpec("openai", name, "http://127.0.0.1:9/v1") for name in ("a", "b", "a")]
    a, b, again = open_clients(specs, TribunalSection(), Spending())
    assert a is again and a is not b
    assert a.identity == "openai:http://127.0.0.1:9/v1:a"


def test_self_needs_a_run():
    with pytest.raises(UsageError, match="needs a run"):
        open_client(ModelSpec("self", "self"), TribunalSection(), Spending())
