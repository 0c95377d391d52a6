"""Critique and revision on the embedded model, one request after another against batched.

    python benchmarks/constitution.py [--chains N] [--alone N] [--gguf PATH]

A chain is an initial answer, a critique and a revision, each after one hand-written example; the figure is tokens
written a second, by the clock and by CPU time (other work may be running). Loading the model is not counted. Both use
the same seeds. On a CPU the first is bound by reading the weights once for each token; the second shares that reading
and reads the common beginning once.

--chains N       chains in a batch (default 32); --alone N: chains one by one (default 2)
--gguf PATH      the same through llama.cpp, 1 slot against 8
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

from noesis.constitution.document import load_constitution
from noesis.core.project import find_project
from noesis.dataset.load import read_hand_written
from noesis.llm.clients.protocol import ModelClient
from noesis.llm.clients.reply_cache import open_cache
from noesis.llm.clients.torch_client import TorchClient
from noesis.synthesis.critique_revision import ExampleMaker, Settings
from noesis.synthesis.prompt_combinations import deal, read_lists
from noesis.synthesis.prompt_file import Prompt
from noesis.synthesis.prompt_templates import choose_shots

PROJECT = find_project(Path(__file__).resolve().parents[1])
SETTINGS = Settings(shots=1, answer_tokens=64, critique_tokens=64, attempts=1)


def measure(name: str, voice: ModelClient, count: int, window: int) -> float:
    """Tokens a second of `count` chains, `window` at a time; prints both figures."""
    constitution = load_constitution(PROJECT.constitution)
    seeds = deal(read_lists(PROJECT.data / "constitution_prompts.yaml"), ("en",), count + 1, 0)
    prompts = [
        Prompt(
            id=s.id,
            language="en",
            prompt=f"{s.situation['en']}. {s.asker['en']} asks about {s.topic['en']}: what would you say?",
        )
        for s in seeds
    ]
    shots = {"en": choose_shots(read_hand_written(PROJECT, "en"), constitution, "en", SETTINGS.shots, 0)}
    made = 0

    def add(tokens: int) -> None:
        nonlocal made
        made += tokens

    async def work(cache: Any) -> float:
        maker = ExampleMaker(constitution, voice, voice, shots, cache, SETTINGS, add)
        await maker.make(prompts[-1])  # warm
        nonlocal made
        made = 0
        todo = iter(prompts[:count])

        async def worker() -> None:
            for prompt in todo:
                await maker.make(prompt)

        clock, processor = time.perf_counter(), time.process_time()
        await asyncio.gather(*(worker() for _ in range(window)))
        clock, processor = time.perf_counter() - clock, time.process_time() - processor
        print(f"| {name} | {count} | {made} | {made / clock:.1f} | {made / processor:.1f} |", flush=True)
        return made / clock

    with tempfile.TemporaryDirectory() as folder, open_cache(Path(folder) / "replies.sqlite") as cache:
        return asyncio.run(work(cache))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--chains", type=int, default=32)
    parser.add_argument("--alone", type=int, default=2)
    parser.add_argument("--gguf", type=Path)
    asked = parser.parse_args()
    print("| how | chains | tokens written | tokens/s | tokens a processor second |\n|---|---|---|---|---|")
    alone = measure("torch, one request after another", TorchClient("smollm2", batch=1), asked.alone, 1)
    packed = measure("torch, packed by 32", TorchClient("smollm2"), asked.chains, 64)
    print(f"\npacked is {packed / alone:.1f} times one by one by the clock")
    if asked.gguf:
        from noesis.llm.clients.gguf_client import GgufClient

        alone = measure("llama.cpp, 1 slot", GgufClient(asked.gguf, parallel=1, context=4096), asked.alone, 1)
        slots = measure("llama.cpp, 8 slots", GgufClient(asked.gguf, parallel=8, context=4096), asked.chains, 16)
        print(f"\n8 slots are {slots / alone:.1f} times 1 slot by the clock")


if __name__ == "__main__":
    main()
