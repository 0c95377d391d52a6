"""`python benchmarks/tribunal.py`: the gate's error rates, the baselines on the judge benchmark, answers a second one by one and together.

--no-throughput leaves out the last, which needs the embedded model (a minute or two of processor time)
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from noesis.config import TribunalSection, find_project
from noesis.constitution.document import load_constitution
from noesis.tribunal.baselines import baselines, by_attack, keyword_score, screen_figures
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
            said = simulate(mean, 0.2, prompts, TRIALS, SECTION, seed=prompts)
            print(f"| {mean:.2f} | {prompts} | " + " | ".join(f"{said[v]:.3f}" for v in ("APPROVED", "CONDITIONAL", "REJECTED", "UNDECIDED")) + " |")


def bench() -> None:
    folder = PROJECT.data / "tribunal"
    if not (folder / "judge_bench" / "pairs.jsonl").is_file():
        print("no judge benchmark here")
        return
    constitution = load_constitution(PROJECT.constitution)
    for part in ("dev", "locked"):
        pairs, _ = read_benchmark(folder, part)  # type: ignore[arg-type]
        found, keywords, screened = baselines(pairs), by_attack(pairs, keyword_score), screen_figures(pairs, constitution)
        print(f"\njudge benchmark, {part} half, {len(pairs)} pairs")
        for name in ("keywords", "length"):
            f = found[name]
            print(f"{name}: {f['right']}/{f['pairs']} right, {f['accuracy']:.2f} {f['interval_95']}, {f['ties']} ties {f.get('direction', '')}")
        print(f"{screened['name']}: flags {screened['bad_flagged']}/{screened['bad']} bad answers, {screened['good_flagged']}/{screened['good']} good ones")
        print("| attack | keywords right | screen flags |\n|---|---|---|")
        for attack, f in keywords.items():
            print(f"| {attack} | {f['right']}/{f['pairs']} | {screened['by_attack'][attack][0]}/{screened['by_attack'][attack][1]} |")


def throughput() -> None:
    """Tokens a second of the embedded model, greedy answers to prompts of the suite, one slot against many."""
    from noesis.constitution.conversation import opening
    from noesis.models import cache_folder, find_model
    from noesis.release.gguf import write_gguf
    from noesis.serve.engine import Engine

    file = cache_folder() / "models" / "smollm2-plain-f16.gguf"
    model = find_model("smollm2")
    if not file.is_file():
        write_gguf(model.path, file, "f16", name="smollm2", licence=model.licence)
    constitution = load_constitution(PROJECT.constitution)
    conversations = [
        opening(constitution, {"language": "en", "prompt": f"What would you say to someone who asks why {i} is a number?"}) for i in range(PROMPTS)
    ]
    single = 0.0
    for parallel in (1, 4, 8, 16, 32):
        engine = Engine(file, parallel=parallel, context=512)
        engine.answer_all(conversations[:1], max_tokens=8, adapter=False)
        some = conversations if parallel > 1 else conversations[:6]
        started = time.perf_counter()
        answers = engine.answer_all(some, max_tokens=TOKENS, adapter=False)
        seconds = time.perf_counter() - started
        del engine
        rate = len(answers) / seconds
        single = single or rate
        print(f"{parallel} at once: {rate:.2f} answers/s of at most {TOKENS} tokens, {rate / single:.1f} times one by one")


if __name__ == "__main__":
    gate()
    bench()
    if "--no-throughput" not in sys.argv:
        throughput()
