"""`runs/<name>/report.html`: one page that works offline and escapes every string that it shows.

Text in it comes from datasets and models and is hostile: Jinja's autoescaping is on, no script is in the page, and its
Content-Security-Policy lets nothing be fetched.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jinja2

from noesis.constitution.document import Constitution
from noesis.core.config import Config
from noesis.core.console import command, duration, printable, say, size
from noesis.core.errors import ModelError, NoesisError, RunError
from noesis.core.files import utc_now, write_text
from noesis.core.i18n import _, ngettext, number, retold, spelled, spoken
from noesis.core.jsonl import MAX_RUN_FILE, LineError, read_json_file, read_objects
from noesis.llm.llama_cpp import REPEAT_PENALTY
from noesis.pipeline.comparison.table import Comparison, difference_in_words
from noesis.pipeline.in_short import in_short
from noesis.pipeline.results import Dial, ReportResult, RunResults
from noesis.pipeline.session import RunSession
from noesis.pipeline.stages.choose import spread_lines
from noesis.pipeline.stages.influence.figures import stored_influence
from noesis.pipeline.stages.kept import in_words as kept_in_words
from noesis.pipeline.stages.kept import seeds_in_words
from noesis.pipeline.stages.tables import FOLDER, write_tables
from noesis.planning.display import stage_title
from noesis.planning.plan import Plan
from noesis.release.parity.certificate import Certificate
from noesis.run.directory import Run
from noesis.run.manifest import Json
from noesis.run.metrics import read_metrics
from noesis.run.stages import STAGES
from noesis.training.job import TrainResult

TEMPLATE = Path(__file__).with_name("page.html")


def run_report(s: RunSession, comparison: Comparison | None = None) -> Path:
    """Write the report again, whatever it was before; returns its path.

    Args:
        comparison: of this run with others, to be shown in it.
    """

    tables: list[Path] = []

    def work() -> Json:
        result = write_report(s.run, s.config, s.constitution, comparison).to_json()
        tables.extend(write_tables(s.run, comparison))
        return result

    s.run.perform("report", work, lambda: [s.run.report, *tables], again=True)
    say(f"  → {s.run.report}")
    found = ngettext("{count:,} table", "{count:,} tables", len(tables))
    say(_("  → {folder}: {tables} as CSV", folder=s.run.path / FOLDER, tables=found))
    return s.run.report


def write_report(
    run: Run, config: Config, constitution: Constitution, comparison: Comparison | None = None
) -> ReportResult:
    """Write the page from what lies in the run directory; a stage that has not run is shown as missing.

    Raises:
        RunError: something in it is not what a stage writes.
    """
    try:
        page = _page(run, config, constitution, comparison)
    except (jinja2.TemplateError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        if isinstance(error, NoesisError):
            raise
        raise RunError(
            _(
                "{path} holds something that no stage writes, so there is no report of it "
                "({name}: {error}): see  {command}",
                path=run.path,
                name=type(error).__name__,
                error=str(error)[:200],
                command=command("verify", run.path),
            )
        ) from None
    write_text(run.report, page)
    return ReportResult(sum(run.result(name) is not None for name in STAGES if name != "report"))


def _page(run: Run, config: Config, constitution: Constitution, comparison: Comparison | None) -> str:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,  # reordering, hiding, half characters
    )
    environment.filters.update(
        counted=_counted,
        duration=duration,
        format=lambda form, *values: spelled(form % values),
        grouped=lambda count: number(count, ","),
        retold=retold,
        sentence=lambda text: text[:1].upper() + text[1:],
        signed=lambda x: number(x, "+.4f"),
        size=size,
    )
    environment.globals.update(_=_)
    shown = [name for name in STAGES if name != "report"]
    records, results, certificate = run.manifest.stages, RunResults(run), certificate_of(run)
    plan = results.executed_plan
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        lang=spoken(),
        run=run.manifest,
        identity=run.identity.to_json(),
        name=run.path.name,
        made=utc_now(),
        repeat_penalty=REPEAT_PENALTY,
        constitution=constitution,
        config=config,
        in_short=in_short(run),
        data=results.export,
        plan=plan,
        compared=compared(run, plan) if plan else [],
        train=results.train,
        losses=_losses(results.train),
        choice=results.choice,
        spread_lines=spread_lines(results.choice) if results.choice else [],
        dial=results.dial,
        dial_chart=dial_chart(results.dial, config.training.tribunal.max_forgetting) if results.dial else None,
        judge=results.judge,
        trial=results.trial,
        influence=stored_influence(run),
        comparison=comparison,
        in_words=difference_in_words,
        kept_in_words=kept_in_words,
        seeds_in_words=seeds_in_words,
        judged=_judged(run.tribunal / "trial_answers.jsonl", run.tribunal / "verdicts.jsonl"),
        merge=results.merge,
        gguf=certificate,
        parity_chart=parity_chart(certificate) if certificate else None,
        answers=_read_jsonl(run.tribunal / "answers.jsonl"),
        curve=loss_curve([(line["step"], line["loss"]) for line in read_metrics(run.metrics)]),
        stages=[(name, run.state(name), records.get(name)) for name in shown],
        outputs=[item for name in shown if name in records for item in records[name].outputs.items()],
    )


def _losses(train: TrainResult | None) -> dict[str, float | None]:
    """Mean training loss by the name of each epoch's adapter, of all seeds."""
    if train is None:
        return {}
    others = {
        f"seed_{seed}_{name}": loss
        for seed, result in (train.seeds or {}).items()
        for name, loss in (result.mean_training_loss or {}).items()
    }
    return (train.mean_training_loss or {}) | others


def _counted(count: int, noun: str) -> str:
    """A count with its noun; `make messages` gathers the nouns of the templates."""
    one = "{count:,} " + noun
    return ngettext(one, one + "s", count)


def certificate_of(run: Run) -> Certificate | None:
    """The parity certificate: the stage's result, or the one that made it fail. None if it can't be read."""
    file = run.gguf / "parity.json"
    try:
        if run.result("gguf") is None and run.state("gguf") == "failed" and file.is_file():
            return Certificate.from_json(read_json_file(file, constants=False))
        return RunResults(run).certificate
    except (ModelError, LineError) as error:
        say(f"  {error}")
        return None


def parity_chart(certificate: Certificate, width: int = 640) -> dict[str, Any] | None:
    """Bars of each export's mean KL and its tolerance, in pixels on a logarithmic scale; None if nothing is finite."""
    known = [
        (_("merged model") if name == "merged" else name, kl_mean, found)
        for name, found in certificate.comparisons()
        if (kl_mean := found.divergence.kl_mean) is not None
    ]
    if not known:
        return None
    left, right, lowest = 150, 20, 1e-9
    values = [max(v, lowest) for _, kl_mean, f in known for v in (kl_mean, f.tolerance.kl_mean)]
    low, high = math.floor(math.log10(min(values))) - 0.5, math.ceil(math.log10(max(values))) + 0.2

    def x(value: float) -> float:
        return round(left + (math.log10(max(value, lowest)) - low) / (high - low) * (width - left - right), 1)

    bars = [
        {
            "name": name,
            "y": 16 + 28 * i,
            "width": round(x(kl_mean) - left, 1),
            "limit": x(f.tolerance.kl_mean),
            "kl": number(kl_mean, ".1e"),
            "tolerance": f"{f.tolerance.kl_mean:.0e}",
            "passed": f.passed,
        }
        for i, (name, kl_mean, f) in enumerate(known)
    ]
    floor = 16 + 28 * len(bars)
    decades = range(math.ceil(low), math.floor(high) + 1)
    ticks = [(x(10.0**e), f"1e{e}") for e in decades[:: math.ceil(len(decades) / 6)]]  # legible on a phone
    return {"width": width, "height": floor + 30, "left": left, "floor": floor, "bars": bars, "ticks": ticks}


def dial_chart(dial: Dial, max_forgetting: float, width: int = 640) -> dict[str, Any] | None:
    """What each strength gains and breaks, as line charts of one size in pixels; None if none was measured.

    The chart of the keyed items has a line at the fewest that may be right.
    """
    if not dial.curve:
        return None
    curves: list[tuple[str, list[float], str]] = [
        (_("revisions preferred, of {pairs}", pairs=dial.pairs), [f.preferred for f in dial.curve], ".0f"),
        (_("mean margin, nats a token"), [f.mean_margin for f in dial.curve], "+.3f"),
        (_("drift from the base, nats a token"), [f.drift for f in dial.curve], ".3f"),
    ]
    fewest, keyed = None, ""
    if dial.items:
        keyed = _("keyed items right, of {items}", items=dial.items)
        curves.insert(2, (keyed, [f.right for f in dial.curve], ".0f"))
        fewest = dial.curve[0].right - max_forgetting * dial.items
    strengths = [f.strength for f in dial.curve]
    height, left, right, top, bottom = 240, 90, 30, 44, 34
    end = max(*strengths, dial.strength)

    def panel(title: str, values: list[float], form: str) -> dict[str, Any]:
        limit = fewest if title == keyed else None
        shown = [*values, *([] if limit is None else [limit])]
        low, high = min(shown), max(shown)
        low, high = low - 0.1 * (high - low or 1), high + 0.1 * (high - low or 1)

        def x(value: float) -> float:
            return round(left + value / end * (width - left - right), 1)

        def y(value: float) -> float:
            return round(top + (high - value) / (high - low) * (height - top - bottom), 1)

        points = [(x(s), y(v), number(s, "g"), number(v, form)) for s, v in zip(strengths, values, strict=True)]
        return {
            "title": title,
            "points": points,
            "path": " ".join(f"{px},{py}" for px, py, _, _ in points),
            "x_ticks": [(x(s), number(s, "g")) for s in strengths],
            "y_ticks": [(y(v), number(v, form)) for v in (min(values), max(values))],
            "used": x(dial.strength),
            "limit": None if limit is None else y(limit),
        }

    size = {"width": width, "height": height, "left": left, "right": width - right}
    return size | {"top": top, "floor": height - bottom, "panels": [panel(*curve) for curve in curves]}


def _judged(answers: Path, verdicts: Path, most: int = 6) -> list[dict[str, Any]]:
    """Answers of the tuned model with each judge's verdict and evidence, the lowest means first."""
    by_name = {f"{a['id']}/{a['who']}/{a['sample']}": a for a in _read_jsonl(answers)}
    rows = [v for v in _read_jsonl(verdicts) if v["answer"] in by_name and "/tuned/" in v["answer"]]
    rows.sort(key=lambda v: (not v["opinion"]["vetoes"], v["opinion"]["mean"] or [2.0]))
    return [{**row, "said": by_name[row["answer"]]} for row in rows[:most]]


def _read_jsonl(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; none if it is missing."""
    return read_objects(file, most=MAX_RUN_FILE) if file.is_file() else []


def compared(run: Run, plan: Plan) -> list[tuple[str, str, str]]:
    """What the plan expected and what happened, in words: (label, expected, happened); '–' where nothing is known."""
    train = RunResults(run).train
    unknown = "–"
    rows = [
        (
            _("training time"),
            _("{time} with start", time=duration(plan.seconds)),
            duration(train.seconds) if train else unknown,
        ),
        (
            _("tokens a second"),
            number(plan.tokens_per_s, ",.0f"),
            number(train.tokens_per_s, ",.0f") if train else unknown,
        ),
        (_("peak memory"), size(plan.memory_bytes), size(train.peak_memory_bytes) if train else unknown),
        (_("steps"), str(plan.steps), str(train.steps) if train else unknown),
    ]
    for stage in plan.stages:
        names = [name for name in stage.name.split(" and ") if run.result(name) is not None]
        seconds = [run.manifest.stages[name].seconds for name in names]
        price = _(", {usd:.2f} USD", usd=stage.usd) if stage.usd else ""
        actual = duration(sum(seconds)) if seconds else unknown
        rows.append((_("stage {name}", name=stage_title(stage.name)), duration(stage.seconds) + price, actual))
    # nothing is paid for one's own machine; what a rented one cost is known if it was recorded
    known = run.manifest.cost_usd or not plan.rented
    rows.append((_("USD"), number(plan.usd, ".2f"), number(run.manifest.cost_usd or 0.0, ".2f") if known else unknown))
    return rows


def loss_curve(points: list[tuple[int, float]], width: int = 640, height: int = 200) -> dict[str, Any] | None:
    """Coordinates of a line chart in pixels, with axis labels; None with fewer than two points."""
    if len(points) < 2:
        return None
    left, right, top, bottom = 64, 10, 14, 32
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
        "y_ticks": [(round(y(v), 1), number(v, ".2f")) for v in ticks],
        "x_ticks": [(round(x(s), 1), s) for s in sorted({steps[0], steps[len(steps) // 2], steps[-1]})],
        "left": left,
        "right": width - right,
        "floor": height - bottom,
    }
