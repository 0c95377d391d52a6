"""The constitution's commands end to end on the embedded model: small numbers, whatever it writes; the files must hold together."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import pytest

from helpers.project import ROOT
from noesis.cli import run_command
from noesis.constitution.document import load_constitution
from noesis.dataset.checks.validate import validate
from noesis.llm.clients.protocol import ModelRequest, NoReplyError
from noesis.llm.clients.torch_client import TorchClient
from noesis.llm.embedded import embedded_gguf

pytestmark = pytest.mark.slow


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_prompts_revisions_and_labels(tmp_path: Path):
    common = ["--project", str(ROOT)]
    made = ["prompts", "--model", "torch:smollm2", "--count", "2", "--language", "en", "--out", str(tmp_path / "p")]
    assert run_command(["constitution", *made, *common]) == 0
    prompts = tmp_path / "p/prompts.jsonl"
    assert len(lines(prompts)) + len(lines(tmp_path / "p/left_out.jsonl")) == 2
    rows = [
        {
            "id": f"x{i}",
            "language": "en",
            "prompt": f"Is it fair that the oldest of {i + 3} sisters decides for all of them?",
        }
        for i in range(2)
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    revised = [
        "revise",
        "--model",
        "torch:smollm2",
        "--prompts",
        str(prompts),
        "--out",
        str(tmp_path / "r"),
        "--tokens",
        "48",
        "--shots",
        "0",
        "--attempts",
        "1",
    ]
    assert run_command(["constitution", *revised, *common]) == 0
    examples, left_out = lines(tmp_path / "r/examples.jsonl"), lines(tmp_path / "r/left_out.jsonl")
    assert len(examples) + len(left_out) == 2
    if examples:
        assert (
            validate(
                [tmp_path / "r/examples.jsonl"], load_constitution(ROOT / "data/constitution.yaml"), (), whole=False
            ).total("error")
            == 0
        )
    steps = [t for shard in (tmp_path / "r/shards").glob("*.jsonl") for row in lines(shard) for t in row["trace"]]
    assert "initial" in {t["step"] for t in steps}
    pairs = ROOT / "data/training/philosophical_en/maieutica.jsonl"
    labels = [
        "prefer",
        "--critic",
        "torch:smollm2",
        "--pairs",
        str(pairs),
        "--count",
        "1",
        "--out",
        str(tmp_path / "l"),
    ]
    assert run_command(["constitution", *labels, *common]) == 0
    assert all(0.5 <= row["p_chosen"] <= 1 and row["generated"] for row in lines(tmp_path / "l/pairs.jsonl"))


def test_packed_requests_get_the_answers_that_they_get_alone():
    voice = TorchClient("smollm2")
    requests = [ModelRequest((("user", f"What is {i} and {i}?"),), {}, 12) for i in range(1, 5)]

    async def together() -> list[str]:
        return [reply.text for reply in await asyncio.gather(*(voice.ask(request) for request in requests))]

    async def alone() -> list[str]:
        return [(await voice.ask(request)).text for request in requests]

    packed, single = asyncio.run(together()), asyncio.run(alone())
    assert sum(a == b for a, b in zip(packed, single, strict=True)) >= 3  # bfloat16: a near tie may fall the other way
    assert all(packed)

    async def one_too_long() -> list[object]:
        long = ModelRequest((("user", "why " * 9000),), {}, 12)
        return await asyncio.gather(*(voice.ask(request) for request in (long, *requests[:2])), return_exceptions=True)

    first, *others = asyncio.run(one_too_long())
    assert isinstance(first, NoReplyError)
    assert [reply.text for reply in others] == single[:2]  # the others are answered all the same, alone


def test_a_gguf_model_gives_the_letters_probabilities():
    from noesis.llm.clients.gguf_client import GgufClient

    voice = GgufClient(embedded_gguf(), parallel=1, context=512)
    asked = (("user", "Which is a fruit? (A) a stone (B) an apple"), ("assistant", "The answer is ("))

    async def go():
        try:
            return await voice.ask(ModelRequest(asked, {}, 1, logprobs=20))
        finally:
            await voice.close()

    reply = asyncio.run(go())
    ((*top,),) = reply.top_logprobs
    assert {"A", "B"} <= {token for token, _ in top}
    assert sum(math.exp(p) for _, p in top) <= 1.0001
