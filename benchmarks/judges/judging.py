"""`python benchmarks/judges/judging.py --judge gguf:PATH`: judges that are read against judges that quote.

Speed on the same pairs in the same run, and how far the two ways agree; then, read, the accuracy on the dev half, what
the items are worth (each attack with weights learnt without it), and with --locked once on the locked half. Nothing is
taken from a cache. A gguf: judge quotes and is read pair by pair in turn, so that a busy machine is busy for both. A
torch: judge can't quote: what it writes in answer to the same requests, in batches, is timed and thrown away.
llama.cpp's threads spin while they wait for one another: beside other work, `taskset -c 0` gives it one thread, and
the CPU seconds are the figure to compare.

--pairs N   pairs for the speed, spread over the dev half (0: no speed)
--count N   pairs of each half for the accuracy (0: none)
--locked    the locked half as well: this is a use of it; say so where the figures are shown
--short     items without their anchors, which are most of what is read: faster; is it as good?
--out DIR   the calibrations, as `noesis tribunal calibrate` would store them
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from noesis.core.config import TribunalSection
from noesis.core.files import write_json
from noesis.core.project import find_project
from noesis.llm.clients.open import open_client
from noesis.llm.clients.reply_cache import ReplyCache, open_cache
from noesis.llm.clients.spec import READ_KINDS, parse_spec
from noesis.llm.clients.spending import Spending
from noesis.tribunal.calibration.benchmark import Benchmark, measure_judges
from noesis.tribunal.calibration.weigh import differences, learn
from noesis.tribunal.judge import build_request
from noesis.tribunal.panel import JudgePanel, read_rubrics
from noesis.tribunal.reading.asking import Asking, open_asking
from noesis.tribunal.suite import JudgePair, read_benchmark
from noesis.tribunal.verdict import Verdict

PROJECT = find_project(Path(__file__).resolve().parents[2])
RUBRICS = read_rubrics(PROJECT)
SECTION = TribunalSection(ask="score")
READ = open_asking(PROJECT, SECTION)


def without_anchors() -> Asking:
    """Reading with items of a question alone."""
    wording = READ.wording
    assert wording is not None
    pt = wording.pt.model_copy(update={"item": "Critério: {question}\n0 = não, 1 = em parte, 2 = sim. 0, 1 ou 2?"})
    en = wording.en.model_copy(update={"item": "Criterion: {question}\n0 = no, 1 = partly, 2 = yes. 0, 1 or 2?"})
    return replace(READ, wording=wording.model_copy(update={"pt": pt, "en": en}))


@dataclass
class Clock:
    """seconds, CPU seconds (llama.cpp's process included), verdicts and tokens (prompts and replies, shared beginnings
    each time) of one way of asking."""

    seconds: float = 0.0
    cpu: float = 0.0
    verdicts: int = 0
    tokens: int = 0
    scores: dict[tuple[str, str, str], float | None] = field(default_factory=dict)

    def line(self, way: str) -> str:
        return (
            f"  {way:<8} {self.verdicts} verdicts in {self.seconds:.1f} s: "
            f"{self.verdicts / self.seconds:.3f} verdicts/s ({self.verdicts / self.cpu:.3f} a CPU second), "
            f"{self.tokens / self.seconds:.0f} tokens/s"
        )


def cpu_seconds() -> float:
    own = psutil.Process()
    return sum(t.user + t.system for t in (p.cpu_times() for p in (own, *own.children(recursive=True))))


def spread(pairs: list[JudgePair], count: int | None) -> list[JudgePair]:
    return pairs if count is None or count >= len(pairs) else pairs[:: max(1, len(pairs) // count)][:count]


async def timed(client: Any, cache: ReplyCache, asking: Asking, pairs: list[JudgePair], clock: Clock) -> None:
    """Adds the verdicts on both sides of `pairs`."""
    places, cases, judges = Benchmark(pairs, [], "dev").cases()
    began, cpu = time.perf_counter(), cpu_seconds()
    verdicts = await JudgePanel(RUBRICS, [client], cache, (), [asking]).judge(cases, judges, what="judge")
    clock.seconds += time.perf_counter() - began
    clock.cpu += cpu_seconds() - cpu
    for place, of_answer in zip(places, verdicts, strict=True):
        for v in of_answer:
            clock.verdicts += 1
            clock.scores[(*place, v.judge)] = v.score if isinstance(v, Verdict) else None
            clock.tokens += v.prompt_tokens + v.completion_tokens if isinstance(v, Verdict) else 0


async def written(client: Any, pairs: list[JudgePair], clock: Clock) -> None:
    """Adds the replies to the requests of judges that quote, whatever is in them."""
    _, cases, judges = Benchmark(pairs, [], "dev").cases()
    requests = [
        build_request(RUBRICS, RUBRICS.rubrics[name], case)[0]
        for case, names in zip(cases, judges, strict=True)
        for name in names
    ]
    began, cpu = time.perf_counter(), cpu_seconds()
    replies = await asyncio.gather(*(client.ask(request) for request in requests), return_exceptions=True)
    clock.seconds += time.perf_counter() - began
    clock.cpu += cpu_seconds() - cpu
    clock.verdicts += len(replies)
    clock.tokens += sum(getattr(reply, "completion_tokens", 0) for reply in replies)


async def speed(client: Any, kind: str, cache: ReplyCache, asking: Asking, pairs: list[JudgePair]) -> None:
    quoted, read = Clock(), Clock()
    if kind == "torch":
        await timed(client, cache, asking, pairs[:1], Clock())  # kernels are chosen in the first pass
        await written(client, pairs, quoted)
        await timed(client, cache, asking, pairs[1:], read)
    else:
        for number, pair in enumerate(pairs, 1):
            await timed(client, cache, Asking(), [pair], quoted)
            await timed(client, cache, asking, [pair], read)
            if number < len(pairs):
                print(f"  after {number} pairs\n{quoted.line('quoted')}\n{read.line('read')}", flush=True)
    print(quoted.line("written" if kind == "torch" else "quoted"), flush=True)
    print(read.line("read"))
    print(
        f"  read is {quoted.seconds / quoted.verdicts / (read.seconds / read.verdicts):.1f} times as fast", flush=True
    )
    agreement(pairs, quoted, read)


def agreement(pairs: list[JudgePair], quoted: Clock, read: Clock) -> None:
    """How far the two ways give the same scores and prefer the same answer."""
    both = [(q, r) for key, r in read.scores.items() if (q := quoted.scores.get(key)) is not None and r is not None]
    if len(both) < 3:
        return
    x, y = np.array(both).T
    correlation = float(np.corrcoef(x, y)[0, 1]) if x.std() and y.std() else float("nan")
    signs = []
    for pair in pairs:
        keys = [(pair.id, judge) for judge in pair.judges]
        gaps = [
            [of.scores.get((name, "good", judge)), of.scores.get((name, "bad", judge))]
            for of in (quoted, read)
            for name, judge in keys
        ]
        if all(value is not None for gap in gaps for value in gap):
            halves = np.array(gaps, float).reshape(2, len(keys), 2)
            signs.append(np.sign((halves[:, :, 0] - halves[:, :, 1]).sum(1).round(9)))
    same = sum(bool(a == b) for a, b in signs)
    ties = [int(sum(s[i] == 0 for s in signs)) for i in (0, 1)]
    print(f"  scores of {len(both)} verdicts correlate by {correlation:.2f}, mean difference {np.mean(y - x):+.3f}")
    print(f"  the same answer preferred in {same} of {len(signs)} pairs; ties: {ties[0]} quoted, {ties[1]} read")


async def accuracy(
    client: Any, cache: ReplyCache, asking: Asking, count: int | None, locked: bool, out: Path | None
) -> None:
    for part in ("dev", "locked") if locked else ("dev",):
        pairs, twins = read_benchmark(PROJECT.tribunal, part)  # type: ignore[arg-type]
        benchmark = Benchmark(spread(pairs, count), twins if count is None else [], part)  # type: ignore[arg-type]
        panel = JudgePanel(RUBRICS, [client], cache, (), [asking])
        began = time.perf_counter()
        (found,) = await measure_judges(panel, benchmark, SECTION)
        d = found.details
        print(
            f"  {part}: {round((found.accuracy or 0) * found.pairs)} of {found.pairs} pairs right {found.interval_95}, "
            f"{found.ties} ties, {d['items']}, {time.perf_counter() - began:.1f} s; keywords "
            f"{found.baselines['keywords']['right']}, length {found.baselines['length']['right']}"
        )
        print("    " + ", ".join(f"{name} {f['count']}/{f['of']}" for name, f in d["by_attack"].items()), flush=True)
        if out is not None:
            write_json(out / f"{found.judge}-{part}.json", found.to_json())
        if part == "dev":
            asking = await weights(panel, benchmark, asking)


async def weights(panel: JudgePanel, benchmark: Benchmark, asking: Asking) -> Asking:
    """What the items are worth; returns how to ask on: with the weights only if they help on attacks left out."""
    places, cases, judges = benchmark.cases()
    verdicts = await panel.judge(cases, judges, what="read")
    scored = {
        (*place, v.judge): v
        for place, of_answer in zip(places, verdicts, strict=True)
        for v in of_answer
        if isinstance(v, Verdict)
    }
    found = learn(differences(benchmark.pairs, scored))
    print(
        f"    item weights: {found.equal} right with equal weights, {found.learnt} with those learnt, "
        f"{found.left_out} of {found.pairs} with the attack left out"
    )
    return replace(asking, weights=found.weights) if found.left_out > found.equal else asking


async def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--judge", action="append", required=True)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--count", type=int)
    parser.add_argument("--locked", action="store_true")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    asking = without_anchors() if options.short else READ
    dev, _ = read_benchmark(PROJECT.tribunal, "dev")
    for text in options.judge:
        spec = parse_spec(text, kinds=READ_KINDS)
        client = open_client(spec, SECTION, Spending())
        print(json.dumps({"judge": client.name, "identity": asking.identity(client.identity)}), flush=True)
        with tempfile.TemporaryDirectory() as folder, open_cache(Path(folder) / "replies.sqlite") as cache:
            if options.pairs:
                await speed(client, spec.kind, cache, asking, spread(dev, options.pairs))
            if options.count != 0:
                await accuracy(client, cache, asking, options.count, options.locked, options.out)
        await client.close()


if __name__ == "__main__":
    asyncio.run(main())
