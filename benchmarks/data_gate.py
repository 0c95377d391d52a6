"""How fast, and in how much memory, the data gate takes 30,000 to 1,000,000 examples.

    python benchmarks/data_gate.py [--rows 30000 …]

Two sets are generated: distinct examples of about 1 kB (words drawn from the project's own), and examples with a prompt
each that share 24 replies (weak answer, critique, revision). Each is validated, clustered, split and exported by the
command line in a process of its own, and by a naive script that loads, shuffles, splits and writes, and finds nothing.
Memory is that of all processes together, sampled every 0.1 s.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from noesis.core.jsonl import read_objects

ROOT = Path(__file__).resolve().parents[1]
NAIVE = """
import json, random, sys
from pathlib import Path
NAMES = "id prompt response_initial critique response_revised reasoning values_applied difficulty".split()
rows = []
for line in open(sys.argv[1], encoding="utf-8"):
    row = json.loads(line)
    assert all(name in row for name in NAMES)
    rows.append(row)
random.Random(42).shuffle(rows)
cut = len(rows) * 13 // 124
out = Path(sys.argv[2]); out.mkdir(parents=True)
for name, part in (("eval", rows[:cut]), ("train", rows[cut:])):
    with open(out / f"{name}.jsonl", "w", encoding="utf-8") as f:
        for row in part:
            f.write(json.dumps(row, ensure_ascii=False) + "\\n")
"""


def make(file: Path, rows: int, answers: int | None) -> None:
    """Write `rows` records; with `answers`, that many different answers for all of them."""
    sources = sorted((ROOT / "data/training/philosophical").glob("*.jsonl"))
    examples = [row for source in sources for row in read_objects(source)]
    words = [word for e in examples for word in f"{e['prompt']} {e['response_revised']}".split()]
    categories = sorted({e["category"] for e in examples})
    values = sorted({value for e in examples for value in e["values_applied"]})
    generator = random.Random(1)

    def text(length: int) -> str:
        return " ".join(generator.choices(words, k=length))

    def reply() -> dict[str, str]:
        critique = f"[VERITAS] {text(4)} [SOPHIA] {text(4)} [DIKE] {text(4)}"
        return {"response_initial": text(25), "critique": critique, "response_revised": text(85)}

    shared = [reply() for _ in range(answers or 0)]
    with open(file, "w", encoding="utf-8") as f:
        for i in range(rows):
            record = {
                "id": f"made_{i:07d}",
                "category": categories[i % len(categories)],
                "prompt": text(18) + "?",
                **(shared[i % answers] if answers else reply()),
                "reasoning": text(5),
                "values_applied": generator.sample(values, 2),
                "difficulty": generator.choice(["easy", "medium", "medium", "hard"]),
            }
            f.write(json.dumps(record, ensure_ascii=False) + "\n")


def run(command: list[str]) -> tuple[float, float]:
    """(seconds, peak bytes of all its processes) of a command that must end well, or say that it refuses."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peak = 0
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):  # a process ended while it was looked at
            peak = max(peak, sum(p.memory_info().rss for p in [watched, *watched.children(recursive=True)]))
        time.sleep(0.1)
    seconds = time.perf_counter() - started
    output = process.stdout.read() if process.stdout else ""
    if process.returncode not in (0, 1):
        raise SystemExit(output[-2000:])
    return seconds, peak


def measure(rows: int, answers: int | None) -> dict[str, Any]:
    """Both commands and the naive script on one made set."""
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "made.jsonl", Path(folder) / "out"
        make(file, rows, answers)
        noesis = [sys.executable, "-m", "noesis", "data"]
        project = ["--project", str(ROOT)]
        result: dict[str, Any] = {
            "rows": rows,
            "answers": answers or rows,
            "megabytes": round(file.stat().st_size / 1e6),
        }
        result["naive_s"], peak = run([sys.executable, "-c", NAIVE, str(file), str(Path(folder) / "naive")])
        result["naive_gib"] = peak / 2**30
        result["validate_s"], peak = run([*noesis, "validate", str(file), *project])
        result["validate_gib"] = peak / 2**30
        result["export_s"], peak = run([*noesis, "export", "--source", str(file), "--out", str(out), *project])
        result["export_gib"] = peak / 2**30
        result["exported"] = sum(part.read_bytes().count(b"\n") for part in out.glob("*.jsonl"))
    return {name: round(value, 2) if isinstance(value, float) else value for name, value in result.items()}


def main() -> None:
    """Print a JSON line for each set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[30_000, 100_000, 300_000, 1_000_000])
    parser.add_argument("--repeated", type=int, nargs="*", default=[300_000], help="rows of the sets with 24 answers")
    arguments = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} CPU cores, "
        f"Python {platform.python_version()}",
        flush=True,
    )
    for rows in arguments.rows:
        print(json.dumps(measure(rows, None)), flush=True)
    for rows in arguments.repeated:
        print(json.dumps(measure(rows, 24)), flush=True)


if __name__ == "__main__":
    main()
