"""Endpoints that would have a judge cost more than its cap."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.endpoints.asking import MAX_TOKENS, PRICE, SECTION, ask, request
from helpers.endpoints.raw_server import RawServer, answer, chat, ok
from noesis.core.config import TribunalSection
from noesis.core.errors import CapError, ModelError, UsageError
from noesis.llm.clients.openai_client import OpenAIClient
from noesis.llm.clients.protocol import NoReplyError
from noesis.llm.clients.reply_cache import open_cache
from noesis.llm.clients.spec import parse_spec
from noesis.llm.clients.spending import Spending

RESERVED = 0.001 * (MAX_TOKENS + 128)  # a little less than what one request reserves
CAP = 5 * RESERVED


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("noesis.llm.clients.openai_client.FIRST_WAIT", 0.001)


def usage(**fields: object) -> bytes:
    return ok(chat(usage={"prompt_tokens": 10, "completion_tokens": 5} | fields))


def silence(number: int):
    yield b"HTTP/1.1 200 OK\r\n"
    time.sleep(0.5)


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(ok(chat(usage=None)), id="a reply without usage"),
        pytest.param(ok(chat(usage={})), id="an empty usage"),
        pytest.param(ok(chat(usage=[1, 2])), id="a usage that is a list"),
        pytest.param(usage(prompt_tokens=0), id="a prompt of no tokens"),
        pytest.param(usage(completion_tokens=0), id="a text of no tokens"),
        pytest.param(usage(prompt_tokens=-1000), id="a negative number of tokens"),
        pytest.param(usage(prompt_tokens="10"), id="tokens as text"),
        pytest.param(usage(prompt_tokens=True), id="tokens that are true"),
        pytest.param(usage(prompt_tokens=0.001), id="a thousandth of a token"),
        pytest.param(ok(b'{"choices":[{"message":{"content":"7"}}],"usage":{"prompt_tokens":1e999,"completion_tokens":1}}'), id="infinitely many tokens"),
        pytest.param(usage(prompt_tokens=10**400), id="tokens that no float holds"),
        pytest.param(ok({"choices": []}), id="no choices and no usage"),
        pytest.param(ok({"choices": None, "usage": None}), id="no choices but null"),
        pytest.param(ok(b""), id="an empty body"),
        pytest.param(ok(b"<html>sorry</html>"), id="HTML with HTTP 200"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", id="a body that ends early"),
        pytest.param(b"", id="a connection that is closed without an answer"),
        pytest.param(b"\x00\xff no HTTP", id="bytes that are no HTTP"),
        pytest.param(answer(504, b"timed out"), id="a gateway that timed out"),
        pytest.param(silence, id="no answer in time"),
    ],
)  # fmt: skip
def test_what_is_not_counted_stays_reserved(reply):
    section = SECTION.model_copy(update={"timeout_seconds": 0.2 if callable(reply) else 5.0})
    spending = Spending(max_usd=CAP)
    with RawServer(reply if callable(reply) else lambda number: reply) as server:
        found = ask(server, 20, spending=spending, section=section)
        assert 2 <= len(server.requests) <= 5
    assert any(isinstance(one, CapError) for one in found)
    assert len(server.requests) * RESERVED <= spending.usd <= CAP


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(ok(b"<html>sorry</html>"), id="HTML again and again"),
        pytest.param(b"", id="a connection that is closed again and again"),
        pytest.param(answer(502, b"bad gateway"), id="a gateway that fails again and again"),
    ],
)
def test_each_attempt_is_paid_for(reply: bytes):
    spending = Spending(max_usd=CAP)
    with RawServer(lambda number: reply) as server:
        (found,) = ask(server, spending=spending, section=SECTION.model_copy(update={"attempts": 20}))
        assert 4 <= len(server.requests) <= 5
    assert isinstance(found, CapError)
    assert len(server.requests) * RESERVED <= spending.usd <= CAP


@pytest.mark.parametrize(
    ("fields", "each"),
    [
        pytest.param({"cost": 0}, 0.015, id="a cost of 0"),
        pytest.param({"cost": -1}, 0.015, id="a cost below 0"),
        pytest.param({"cost": float("nan")}, 0.015, id="a cost that is NaN"),
        pytest.param({"cost": -float("inf")}, 0.015, id="a cost of minus infinity"),
        pytest.param({"cost": "0"}, 0.015, id="a cost as text"),
        pytest.param({"cost": False}, 0.015, id="a cost that is false"),
        pytest.param({"cost": 10**400}, 0.015, id="a cost that no float holds"),
        pytest.param({"cost": {}}, 0.015, id="a cost that is an object"),
        pytest.param({"cost": 0.5}, 0.5, id="a cost above the price"),
        pytest.param({"cost": "0.5"}, 0.5, id="a cost above the price as text"),
        pytest.param({"cost_details": {"upstream_inference_cost": 0.5}}, 0.5, id="a cost that is the provider's own"),
        pytest.param({"cost": 1e7}, 1e6, id="a cost beyond belief"),
    ],
)  # fmt: skip
def test_the_larger_of_price_and_reported_cost_is_charged(fields: dict, each: float):
    spending = Spending()
    with RawServer(lambda number: usage(**fields)) as server:
        ask(server, 4, spending=spending)
    assert spending.usd == pytest.approx(4 * each)


def test_no_choices_with_a_usage_costs_what_the_usage_says():
    spending = Spending()
    with RawServer(lambda number: ok(chat() | {"choices": []})) as server:
        (found,) = ask(server, spending=spending)
    assert isinstance(found, NoReplyError)
    assert spending.usd == pytest.approx(1.2)


def test_a_reported_cost_far_above_the_price_ends_the_command():
    spending = Spending(max_usd=CAP)
    with RawServer(lambda number: usage(cost=3.0)) as server:
        ask(server, 3, spending=spending, section=SECTION.model_copy(update={"concurrency": 1}))
        assert len(server.requests) == 1
    assert spending.usd == 3.0


@pytest.mark.parametrize(
    "status", [400, 401, 404, 429, 500, 503], ids=lambda status: f"an error {status} is not paid for"
)
def test_a_refusal_costs_nothing(status: int):
    spending = Spending(max_usd=CAP)
    with RawServer(lambda number: answer(status, {"error": {"message": "no"}})) as server:
        ask(server, 8, spending=spending)
    assert (spending.usd, spending.reserved) == (0.0, pytest.approx(0.0))


@pytest.mark.parametrize(
    "status", [200, 302, 400, 429, 500], ids=lambda status: f"an error with HTTP {status} and a bill"
)
def test_a_refusal_that_says_what_it_took_is_paid_for(status: int):
    spending = Spending()
    body = {
        "error": {"message": "no", "code": 400},
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "cost": 2.0},
    }
    with RawServer(lambda number: answer(status, body)) as server:
        ask(server, spending=spending)
        assert spending.usd == pytest.approx(2.0 * len(server.requests))


@pytest.mark.parametrize("status", [201, 206], ids=lambda status: f"an answer with HTTP {status}")
def test_an_answer_with_an_odd_status_stays_reserved(status: int):
    spending = Spending()
    with RawServer(lambda number: answer(status, chat(usage=None))) as server:
        ask(server, spending=spending)
        assert spending.usd >= RESERVED


def test_nothing_listens_and_nothing_is_spent():
    spending = Spending(max_usd=CAP)
    with RawServer(lambda number: b"") as server:
        pass
    ask(server, 3, spending=spending)
    assert spending.usd == 0.0


def test_many_requests_at_once_cannot_pass_the_cap():
    spending, most = Spending(max_usd=CAP), 0.0

    def slow(number: int):
        nonlocal most
        most = max(most, spending.usd + spending.reserved)
        time.sleep(0.02)
        yield usage(completion_tokens=100, prompt_tokens=120)

    with RawServer(slow) as server:
        ask(server, 100, spending=spending)
        assert 2 <= len(server.requests) <= 5
    assert spending.usd <= most <= CAP


def test_letters_that_take_several_bytes_are_reserved_by_their_bytes():
    asked = request()
    text = "🜚" * 1000
    wide = type(asked)((("user", text),), {}, MAX_TOKENS)
    seen = []

    class Watched(Spending):
        async def reserve(self, usd: float):
            seen.append(usd)
            return await super().reserve(usd)

    async def run(url: str) -> None:
        client = OpenAIClient(parse_spec(f"openai:{url}:m"), SECTION, Watched())
        await client.ask(wide)
        await client.close()

    with RawServer(lambda number: usage()) as server:
        asyncio.run(run(server.url))
    assert seen[0] >= PRICE.prompt * len(text.encode()) / 1e6


@pytest.mark.parametrize(
    "cap",
    [
        pytest.param(float("nan"), id="a cap that is NaN"),
        pytest.param(-1.0, id="a cap below 0"),
        pytest.param(-float("inf"), id="a cap of minus infinity"),
    ],
)
def test_a_cap_that_holds_nothing_is_refused(cap: float):
    with pytest.raises(UsageError, match="--max-usd"):
        Spending(max_usd=cap)


def test_a_cap_without_a_price_is_told_before_the_first_request():
    with RawServer(lambda number: usage()) as server:
        with pytest.raises(ModelError, match="needs the price of 'm'"):
            ask(server, spending=Spending(max_usd=1.0), section=TribunalSection())
        assert server.requests == []


# --- across commands


def test_a_command_that_goes_on_counts_what_was_spent_before(tmp_path: Path):
    asked = []
    with RawServer(lambda number: ok(chat(usage=None))) as server:
        for _ in range(3):
            spending = Spending(max_usd=CAP)
            with open_cache(tmp_path / "replies.sqlite") as cache:
                spending.resume(cache)
                ask(server, 20, spending=spending, cache=cache)
            asked.append(len(server.requests))
    assert 1 <= asked[0] <= 5 and asked[1:] == asked[:1] * 2
    assert spending.before == pytest.approx(asked[0] * RESERVED, rel=0.2)


def test_a_command_that_was_killed_has_spent_what_it_reserved(tmp_path: Path):
    file = tmp_path / "replies.sqlite"
    with open_cache(file) as cache:
        spending = Spending(max_usd=CAP)
        spending.resume(cache)
        asyncio.run(spending.reserve(0.75))  # and no settlement
        with open_cache(file) as other:
            assert other.spent() == 0.75


@pytest.mark.parametrize(
    "usd",
    [
        pytest.param(-100.0, id="a record of less than nothing spent"),
        pytest.param("none", id="a record of spending that is text"),
        pytest.param(float("inf"), id="a record of infinite spending"),
        pytest.param(b"\x00", id="a record of spending that is bytes"),
    ],
)
def test_a_run_cannot_bring_a_credit(tmp_path: Path, usd: object, capsys: pytest.CaptureFixture):
    file = tmp_path / "replies.sqlite"
    open_cache(file).__enter__().close()
    with sqlite3.connect(file) as db:
        db.execute("INSERT INTO spending VALUES (1, ?)", (usd,))
    with open_cache(file) as cache:
        assert cache.spent() == 0.0
        cache.add_spent(1.0)
        assert cache.spent() <= 1.0
    assert "did not write" in capsys.readouterr().out


def test_a_run_names_no_price_of_its_own():
    run = TribunalSection(prices={"m": {"prompt": 0, "completion": 0}}, approval_threshold=0.9)
    assert run.called_as(SECTION).prices == {"m": PRICE}
    assert run.called_as(SECTION).approval_threshold == 0.9


def test_judges_of_a_run_spend_no_more_than_its_cap_leaves():
    """`noesis demo --judge …` names no cap for judges; `budget: max_usd` is for the whole run."""
    from noesis.pipeline.stages.trial import under_the_runs_cap
    from noesis.planning.budget import Budget

    spec = parse_spec("openai:http://127.0.0.1:9/v1:m")
    left = Budget(0.0, 4.0, 0.0, 10.0, None, 0.0)
    over = Budget(0.0, 40.0, 0.0, 10.0, None, 0.0)
    found = [under_the_runs_cap(SimpleNamespace(budget=lambda b=b: b), SECTION, [spec]).max_usd for b in (left, over)]
    assert found == [6.0, 0.0]
    assert under_the_runs_cap(SimpleNamespace(budget=lambda: left), TribunalSection(), [spec]).max_usd is None
