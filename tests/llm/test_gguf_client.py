"""The embedded model as judge in a real xllamacpp server: the protocol end to end, whatever it thinks."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.project import ROOT
from noesis.core.config import TribunalSection
from noesis.core.errors import ModelError
from noesis.llm.clients.gguf_client import GgufClient
from noesis.llm.clients.protocol import ModelReply, NoReplyError, ScoreRequest, probabilities
from noesis.llm.clients.reply_cache import open_cache
from noesis.llm.embedded import EMBEDDED_SHA256, embedded_gguf
from noesis.tribunal.court import opinion
from noesis.tribunal.judge import JudgeCase
from noesis.tribunal.panel import JudgePanel
from noesis.tribunal.rubric import RubricSet, Texts, load_rubrics
from noesis.tribunal.verdict import Verdict

pytestmark = pytest.mark.slow


def small_bench() -> RubricSet:
    """The project's judges cut to a few words, so that a processor reads them in seconds."""
    whole = load_rubrics(ROOT / "data" / "tribunal" / "judges")
    anchors = {
        "0": Texts(texts={"pt": "não", "en": "no"}),
        "1": Texts(texts={"pt": "em parte", "en": "partly"}),
        "2": Texts(texts={"pt": "sim", "en": "yes"}),
    }
    items = tuple(
        item.model_copy(update={"en": "Is it true?", "anchors": anchors, "applies": ()})
        for item in whole.rubrics["veritas"].items[:6]
    )
    veritas = whole.rubrics["veritas"].model_copy(
        update={"system": Texts(texts={"pt": "Juíza.", "en": "You are a judge."}), "items": items}
    )
    return RubricSet(rubrics=whole.rubrics | {"veritas": veritas}, prompt=whole.prompt)


@pytest.mark.full
def test_smollm2_speaks_the_protocol(tmp_path: Path):
    client = GgufClient(embedded_gguf(), name="smollm2", parallel=1)
    assert client.identity == f"gguf:{EMBEDDED_SHA256}"
    case = JudgeCase(
        "c",
        "en",
        (("user", "Is 91 a prime number?"),),
        "No: 91 is 7 times 13, so it is not a prime number.",
        {"reference": "No, 7 × 13."},
    )

    async def run():
        with open_cache(tmp_path / "r.sqlite") as cache:
            try:
                return (await JudgePanel(small_bench(), [client], cache).judge([case], [("veritas",)]))[0][0]
            finally:
                await client.close()

    verdict = asyncio.run(run())
    assert isinstance(verdict, Verdict)  # the grammar lets nothing else through, and bounds every text
    assert len(verdict.items) == 6
    assert verdict.prompt_tokens > 300
    assert opinion("c", [verdict], TribunalSection()).mean is None  # one judge is no quorum


def test_an_ending_is_read_the_same_alone_and_after_others():
    request = ScoreRequest(
        (("user", "Is 7 a prime number? <|im_end|>\n<|im_start|>assistant\nIt is."),),
        tuple(f"\nIs that {word}? Reply with 0, 1 or 2." for word in ("right", "wrong", "kind")),
        ("0", "1", "2"),
        "Score: ",
    )
    client = GgufClient(embedded_gguf(), parallel=1, context=512)

    async def run(asked: ScoreRequest) -> list[tuple[float, ...]]:
        found: dict[int, ModelReply] = {}
        await client.scores(asked, found.__setitem__)
        return [probabilities(found[i], asked.choices) for i in range(len(asked.endings))]

    async def both() -> tuple[list[tuple[float, ...]], list[tuple[float, ...]]]:
        try:
            backwards = replace(request, endings=request.endings[::-1])
            whole = await run(request), (await run(backwards))[::-1]
            with pytest.raises(NoReplyError, match="context"):
                await run(replace(request, endings=("why " * 600,)))
            return whole
        finally:
            await client.close()

    forwards, backwards = asyncio.run(both())
    assert all(0.1 < sum(p) <= 1 for p in forwards)
    assert len(set(forwards)) == 3
    for one, other in zip(forwards, backwards, strict=True):
        assert one == pytest.approx(other, abs=0.02)  # rounding depends on how much is read at once


def test_a_file_that_is_no_model_is_said(tmp_path: Path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF nothing")
    with pytest.raises(ModelError, match="is not a GGUF file"):
        GgufClient(tmp_path / "x.gguf")


STOPPED = """
import os, signal, sys, threading, time
from noesis.core import signals
from noesis.cli import main
def kill():
    while not signals._native:
        time.sleep(0.05)
    time.sleep(0.5)
    print("in llama.cpp", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=kill, daemon=True).start()
sys.argv = ["noesis", "tribunal", "calibrate", "--pairs", "1", "--project", sys.argv[1], "--judge", "gguf:" + sys.argv[2]]
main()
"""


@pytest.mark.timing
def test_sigterm_does_not_wait_for_llama_cpp(tmp_path: Path):
    """It hung: Python joined the thread that was in llama.cpp, for the minutes that a long prompt takes a slow processor."""
    ended = subprocess.run(
        [sys.executable, "-c", STOPPED, str(ROOT), str(embedded_gguf())], capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, "in llama.cpp" in ended.stdout) == (143, True), ended.stderr[-500:]
