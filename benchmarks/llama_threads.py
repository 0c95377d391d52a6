"""llama.cpp's speed beside other programs: by its number of threads, and by whether they spin or sleep at a barrier.

    python benchmarks/llama_threads.py --busy 0,1,2 --ways spin:2,sleep:2,sleep:idle
    python benchmarks/llama_threads.py --busy 0 --users 2            two processes with llama.cpp at once

A way is how threads wait and how many there are; `idle`: as many as there are idle cores, as Noesis chooses.

Each measurement is a process of its own with the embedded model: reading 256 tokens, then answering 24. They are taken
in turns, round by round, so that other work on the machine disturbs all alike; medians are printed, and in brackets the
best, which is the nearest to a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

READ, ANSWER = 256, 24  # tokens
SECONDS = 2.0  # of each measurement, at least
SPINS = {"spin": {"GOMP_SPINCOUNT": "300000"}, "sleep": {}}  # libgomp's default, and what Noesis sets


def measure(file: Path, threads: int | None) -> dict[str, float]:
    """Tokens a second, read and answered."""
    from noesis.release.parity.llama_logits import LlamaModel

    with LlamaModel(file, threads=threads) as model:
        ids = model.tokenize("What is courage, and how does one learn it? " * 40)[:READ]
        model.logits(ids)  # warm-up
        read, answered, start = 0, 0, time.perf_counter()
        while time.perf_counter() - start < SECONDS:
            model.logits(ids)
            read += len(ids)
        reading, start = time.perf_counter() - start, time.perf_counter()
        while time.perf_counter() - start < SECONDS:
            answered += len(model.answer(ids[:16], ANSWER, set()))
        return {"read": read / reading, "answer": answered / (time.perf_counter() - start)}


def run(file: Path, way: str, users: int) -> dict[str, float]:
    """`measure` in each of `users` processes at once; their sum."""
    waiting, _, threads = way.partition(":")
    words = [sys.executable, __file__, "--measure", str(file), "--ways", threads]
    environment = os.environ | SPINS[waiting]
    processes = [subprocess.Popen(words, env=environment, stdout=subprocess.PIPE) for _ in range(users)]
    found = [json.loads(process.communicate()[0]) for process in processes]
    return {key: sum(each[key] for each in found) for key in found[0]}


def main() -> None:
    """Print one line for each number of busy programs and each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", default="0,1,2", help="programs that only burn CPU meanwhile")
    parser.add_argument("--ways", default="spin:2,sleep:2,sleep:1,sleep:idle")
    parser.add_argument("--users", type=int, default=1, help="processes with llama.cpp at once; their sum is printed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, int(options.ways) if options.ways.isdecimal() else None)))
        return
    from noesis.llm.embedded import embedded_gguf

    file = embedded_gguf()
    for busy in map(int, options.busy.split(",")):
        found = defaultdict(list)
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            for _ in range(options.rounds):
                for way in options.ways.split(","):
                    found[way].append(run(file, way, options.users))
        finally:
            for process in others:
                process.kill()
                process.wait()
        for way, rounds in found.items():
            line = f"{busy} busy, {options.users} users, {way}:"
            for key in ("read", "answer"):
                rates = [each[key] for each in rounds]
                line += f" {key} {statistics.median(rates):.0f} ({max(rates):.0f}) tok/s"
            print(line, flush=True)


if __name__ == "__main__":
    main()
