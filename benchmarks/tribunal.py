"""`python benchmarks/tribunal.py`: the gate's error rates, the baselines on the judge benchmark, tokens per second.

--no-throughput leaves out the last, which needs the embedded model (a minute or two of CPU time)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from noesis.constitution.document import load_constitution
from noesis.core.config import TribunalSection
from noesis.core.project import find_project
from noesis.tribunal.calibration.baselines import baselines, by_attack, keyword_score, screen_figures
from noesis.tribunal.gate import simulate
from noesis.tribunal.suite import read_benchmark

PROJECT = find_project(Path(__file__).resolve().parents[1])
SECTION = TribunalSection()
TRIALS = 10_000
TOKENS, PROMPTS = 64, 32  # of each answer, and how many


def gate() -> None:
    print("gate, 10,000 simulated trials a row, true scores beta-distributed with standard deviation 0.2")
    print("| true mean | prompts | APPROVED | CONDITIONAL | REJECTED | UNDECIDED |\n|---|---|---|---|---|---|")
    for mean in (0.50, 0.65, 0.70, 0.75, 0.80):
        for prompts in (20, 60, 220):
            shares = simulate(mean, 0.2, prompts, TRIALS, SECTION, seed=prompts)
            print(
                f"| {mean:.2f} | {prompts} | "
                + " | ".join(f"{shares[v]:.3f}" for v in ("APPROVED", "CONDITIONAL", "REJECTED", "UNDECIDED"))
                + " |"
            )


def bench() -> None:
    folder = PROJECT.data / "tribunal"
    if not (folder / "judge_bench" / "pairs.jsonl").is_file():
        print("no judge benchmark here")
        return
    constitution = load_constitution(PROJECT.constitution)
    for part in ("dev", "locked"):
        pairs, _ = read_benchmark(folder, part)  # type: ignore[arg-type]
        found, keywords, screened = (
            baselines(pairs),
            by_attack(pairs, keyword_score),
            screen_figures(pairs, constitution),
        )
        print(f"\njudge benchmark, {part} half, {len(pairs)} pairs")
        for name in ("keywords", "length"):
            f = found[name]
            print(
                f"{name}: {f['right']}/{f['pairs']} right, {f['accuracy']:.2f} {f['interval_95']}, "
                f"{f['ties']} ties {f.get('direction', '')}"
            )
        for name, rows in (("first", [p for p in pairs if not p.since]), ("later", [p for p in pairs if p.since])):
            of = baselines(rows)
            print(
                f"{name} rows, {len(rows)}: keywords {of['keywords']['accuracy']:.2f}, "
                f"length {of['length']['accuracy']:.2f} ({of['length']['direction']})"
            )
        print(
            f"{screened['name']}: flags {screened['bad_flagged']}/{screened['bad']} bad answers, "
            f"{screened['good_flagged']}/{screened['good']} good ones"
        )
        print("| attack | keywords right | screen flags |\n|---|---|---|")
        for attack, f in keywords.items():
            flagged, of = screened["by_attack"][attack]
            print(f"| {attack} | {f['right']}/{f['pairs']} | {flagged}/{of} |")


def throughput() -> None:
    """Tokens per second of the embedded model, one conversation at a time against batches; per CPU second, too."""
    import torch
    from transformers import AutoModelForCausalLM

    from noesis.constitution.dialogue import opening_messages
    from noesis.core.project import cache_folder
    from noesis.llm.generation.batch import generate_batch
    from noesis.llm.hub import find_model
    from noesis.llm.llama_cpp import LlamaEngine
    from noesis.llm.tokenizer import load_tokenizer
    from noesis.release.gguf.writer import write_gguf

    found = find_model("smollm2")
    constitution, tokenizer = load_constitution(PROJECT.constitution), load_tokenizer(found.path)
    conversations = [
        opening_messages(constitution, "en", f"What would you say to someone who asks why {i} is a number?")
        for i in range(PROMPTS)
    ]

    def timed(name: str, count: int, work: Callable[[list[Any]], list[str]]) -> None:
        work(conversations[:1])
        clock, cpu = time.perf_counter(), time.process_time()
        tokens = sum(len(tokenizer(text)["input_ids"]) for text in work(conversations[:count]))
        clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
        print(f"{name}: {tokens / clock:.0f} tokens/s, {tokens / cpu:.0f} per CPU second", flush=True)

    model = AutoModelForCausalLM.from_pretrained(found.path, dtype=torch.bfloat16).eval()
    timed(
        "torch, bfloat16, one by one",
        3,
        lambda some: generate_batch(model, tokenizer, some, max_tokens=TOKENS, batch=1),
    )
    for size in (8, 32):
        timed(
            f"torch, bfloat16, {size} a batch",
            PROMPTS,
            lambda some, size=size: generate_batch(model, tokenizer, some, max_tokens=TOKENS, batch=size),
        )  # type: ignore[misc]
    file = cache_folder() / "models" / "smollm2-plain-f16.gguf"
    if not file.is_file():
        write_gguf(found.path, file, "f16", name="smollm2", licence=found.licence)
    for parallel in (1, 16):
        engine = LlamaEngine(file, parallel=parallel, context=512)
        timed(
            f"llama.cpp, F16, {parallel} slots",
            3 if parallel == 1 else PROMPTS,
            lambda some, e=engine: e.answer_all(some, max_tokens=TOKENS, adapter=False),
        )  # type: ignore[misc]
        del engine


if __name__ == "__main__":
    gate()
    bench()
    if "--no-throughput" not in sys.argv:
        throughput()
