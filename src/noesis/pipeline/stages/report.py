"""`runs/<name>/report.html`: one page that works offline and escapes every string that it shows.

Text in it comes from data sets and models and is hostile: Jinja's autoescaping is on, no script is in the page, and its
Content-Security-Policy lets nothing be fetched.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jinja2

from noesis.constitution.document import Constitution
from noesis.core.config import Config
from noesis.core.console import duration, say, size
from noesis.core.files import utc_now, write_text
from noesis.core.jsonl import read_objects
from noesis.llm.llama_cpp import REPEAT_PENALTY
from noesis.pipeline.session import RunSession
from noesis.run.directory import Run
from noesis.run.metrics import read_metrics
from noesis.run.stages import STAGES

TEMPLATE = Path(__file__).with_name("page.html")


def write_report(run: Run, config: Config, constitution: Constitution) -> dict[str, Any]:
    """Write the page from what lies in the run directory; a stage that has not run is shown as missing."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(duration=duration, size=size, signed=lambda x: f"{x:+.4f}")
    metrics = read_metrics(run.metrics)
    answers = run.tribunal / "answers.jsonl"
    plan, train = run.result("plan"), run.result("train")
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        run=run.manifest,
        name=run.path.name,
        made=utc_now(),
        repeat_penalty=REPEAT_PENALTY,
        constitution=constitution,
        config=config,
        data=run.result("export"),
        plan=plan,
        compared=compared(run) if plan else [],
        train=train,
        choice=run.result("choose"),
        judge=run.result("judge"),
        trial=run.result("trial"),
        spoken=_judged(run.tribunal / "trial_answers.jsonl", run.tribunal / "verdicts.jsonl"),
        merge=run.result("merge"),
        gguf=(certificate := certificate_of(run)),
        parity_chart=parity_chart(certificate) if certificate else None,
        answers=read_objects(answers) if answers.is_file() else [],
        curve=loss_curve([(m["step"], m["loss"]) for m in metrics]),
        stages=[(name, run.manifest["stages"].get(name)) for name in STAGES if name != "report"],
        outputs=[
            (path, o)
            for name in STAGES
            for path, o in run.manifest["stages"].get(name, {}).get("outputs", {}).items()
            if name != "report"
        ],
    )
    write_text(run.report, page)
    return {"stages_shown": sum(run.result(name) is not None for name in STAGES if name != "report")}


def certificate_of(run: Run) -> dict[str, Any] | None:
    """The parity certificate: the stage's result, or the one that made it fail."""
    result, file = run.result("gguf"), run.gguf / "parity.json"
    if result is None and run.manifest["stages"].get("gguf", {}).get("status") == "failed" and file.is_file():
        return dict(json.loads(file.read_text(encoding="utf-8")))
    return result


def parity_chart(certificate: dict[str, Any], width: int = 640) -> dict[str, Any] | None:
    """Bars of the mean KL of each export beside its tolerance, in pixels on a logarithmic scale; None where nothing finite is known."""
    parts = [
        ("merged model", certificate.get("merge")),
        *certificate["files"].items(),
        ("adapter", certificate.get("adapter")),
    ]
    known = [(name, f) for name, f in parts if f is not None and f["kl_mean"] is not None]
    if not known:
        return None
    left, right, lowest = 110, 20, 1e-9
    values = [max(v, lowest) for _, f in known for v in (f["kl_mean"], f["tolerance"]["kl_mean"])]
    low, high = math.floor(math.log10(min(values))) - 0.5, math.ceil(math.log10(max(values))) + 0.2

    def x(value: float) -> float:
        return round(left + (math.log10(max(value, lowest)) - low) / (high - low) * (width - left - right), 1)

    bars = [
        {
            "name": name,
            "y": 16 + 28 * i,
            "width": round(x(f["kl_mean"]) - left, 1),
            "limit": x(f["tolerance"]["kl_mean"]),
            "kl": f"{f['kl_mean']:.1e}",
            "tolerance": f"{f['tolerance']['kl_mean']:.0e}",
            "passed": f["passed"],
        }
        for i, (name, f) in enumerate(known)
    ]
    floor = 16 + 28 * len(bars)
    ticks = [(x(10.0**e), f"1e{e}") for e in range(math.ceil(low), math.floor(high) + 1)]
    return {"width": width, "height": floor + 24, "left": left, "floor": floor, "bars": bars, "ticks": ticks}


def _judged(answers: Path, verdicts: Path, most: int = 6) -> list[dict[str, Any]]:
    """Answers of the tuned model with what every judge said of them, spans and all: the lowest means first."""
    if not (answers.is_file() and verdicts.is_file()):
        return []
    said = {f"{a['id']}/{a['who']}/{a['sample']}": a for a in read_objects(answers)}
    rows = [v for v in read_objects(verdicts) if v["answer"] in said and "/tuned/" in v["answer"]]
    rows.sort(key=lambda v: (not v["opinion"]["vetoes"], v["opinion"]["mean"] or [2.0]))
    return [{**row, "said": said[row["answer"]]} for row in rows[:most]]


def compared(run: Run) -> list[tuple[str, str, str]]:
    """What the plan expected and what happened, in words: (label, expected, happened); '–' where nothing is known."""
    plan, train = run.result("plan") or {}, run.result("train")
    unknown = "–"
    rows = [
        ("training time", f"{duration(plan['seconds'])} with start", duration(train["seconds"]) if train else unknown),
        ("tokens a second", f"{plan['tokens_per_s']:,.0f}", f"{train['tokens_per_s']:,.0f}" if train else unknown),
        ("peak memory", size(plan["memory_bytes"]), size(train["peak_memory_bytes"]) if train else unknown),
        ("steps", str(plan["steps"]), str(train["steps"]) if train else unknown),
    ]
    for stage in plan.get("stages", []):
        took = [
            run.manifest["stages"][name]["seconds"]
            for name in stage["name"].split(" and ")
            if run.result(name) is not None
        ]
        price = f", {stage['usd']:.2f} USD" if stage["usd"] else ""
        rows.append(
            (f"stage {stage['name']}", duration(stage["seconds"]) + price, duration(sum(took)) if took else unknown)
        )
    # nothing is paid for a machine of one's own; what a rented one cost is known where it was recorded
    paid = run.manifest["cost_usd"] or (unknown if plan.get("rented") else 0.0)
    rows.append(("USD", f"{plan.get('usd', 0):.2f}", paid if isinstance(paid, str) else f"{paid:.2f}"))
    return rows


def loss_curve(points: list[tuple[int, float]], width: int = 640, height: int = 200) -> dict[str, Any] | None:
    """Coordinates of a line chart in pixels, with axis labels; None with fewer than two points."""
    if len(points) < 2:
        return None
    left, right, top, bottom = 46, 10, 10, 26
    steps, losses = [p[0] for p in points], [p[1] for p in points]
    low, high = min(losses), max(losses)
    margin = (high - low or 1) * 0.08
    low, high = low - margin, high + margin

    def x(step: float) -> float:
        return left + (step - steps[0]) / max(steps[-1] - steps[0], 1) * (width - left - right)

    def y(loss: float) -> float:
        return top + (high - loss) / (high - low) * (height - top - bottom)

    ticks = [low + (high - low) * i / 4 for i in range(5)]
    return {
        "width": width,
        "height": height,
        "path": " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in points),
        "points": [(round(x(s), 1), round(y(v), 1), s, round(v, 3)) for s, v in points],
        "y_ticks": [(round(y(v), 1), f"{v:.2f}") for v in ticks],
        "x_ticks": [(round(x(s), 1), s) for s in sorted({steps[0], steps[len(steps) // 2], steps[-1]})],
        "left": left,
        "right": width - right,
        "floor": height - bottom,
    }


def run_report(s: RunSession) -> Path:
    """One self-contained page."""
    from noesis.pipeline.stages.report import write_report

    s.run.perform("report", lambda: write_report(s.run, s.config, s.constitution), lambda: [s.run.report], again=True)
    say(f"  → {s.run.report}")
    return s.run.report
