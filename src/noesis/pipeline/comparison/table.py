"""`noesis compare RUN RUN …`: several tuned models side by side, each paired with the first on what all runs share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from noesis.core.console import command, path_here, say
from noesis.core.errors import NoesisError, UsageError
from noesis.core.i18n import _, number, retold
from noesis.core.project import Project
from noesis.pipeline.comparison.by_principle import prompt_clusters
from noesis.pipeline.comparison.measures import RunMeasures, read_measures
from noesis.tribunal.court import Ruling
from noesis.tribunal.statistics import Interval, bootstrap, clustered, sign_flip


@dataclass(frozen=True)
class Cell:
    """One run's figure, and its difference from the first run's: mean, 95% interval, p by sign flips.

    The first run has no difference; with a single example or pair there is no interval.
    """

    value: float
    difference: float | None = None
    interval_95: Interval | None = None
    p: float | None = None


@dataclass(frozen=True)
class Measure:
    """A measure of all runs.

    items: shared by all of them; cells: of each run, in order; none where they can't be compared
    why: they can't be compared
    """

    name: str
    items: int
    cells: tuple[Cell, ...]
    why: str = ""


@dataclass(frozen=True)
class Comparison:
    """Runs side by side; the first is what the others are compared with."""

    runs: tuple[str, ...]
    measures: tuple[Measure, ...]
    rulings: tuple[Ruling, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare_runs_side_by_side(paths: Sequence[Path], project: Project | None) -> Comparison:
    """Loss and preference on shared held-out examples, means and keyed items on shared prompts of the trials, rulings.

    Args:
        project: whose suite knows pairs and keys; None: every prompt counts as one, and there are no keyed figures.

    Raises:
        UsageError: fewer than two runs, the same twice, or none at a path. RunError: a run is damaged.
    """
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise UsageError(
            _(
                "name at least two different runs to compare:  {command}",
                command=command("compare", "runs/before", "runs/after"),
            )
        )
    runs = [read_measures(path, project) for path in paths]
    return Comparison(
        tuple(run.name for run in runs),
        (_loss(runs), _preference(runs), _tribunal(runs, project), _keyed(runs, project)),
        tuple(run.ruling for run in runs),
    )


def _loss(runs: Sequence[RunMeasures]) -> Measure:
    name = _("held-out loss, nats a token")
    shared = _shared([run.losses for run in runs])
    if not shared:
        return _nothing(name, runs, "held-out", _("the runs share no held-out example"))
    if any(len({run.losses[key][1] for run in runs}) > 1 for key in shared):
        return Measure(name, 0, (), _("their tokenizers differ, so losses per token can't be compared"))
    weights = {key: float(runs[0].losses[key][1]) for key in shared}
    return _measure(name, [{k: run.losses[k][0] for k in shared} for run in runs], runs[0].clusters, weights)


def _preference(runs: Sequence[RunMeasures]) -> Measure:
    name = _("prefers the revised answer")
    shared = _shared([run.preferred for run in runs])
    if not shared:
        return _nothing(name, runs, "held-out", _("the runs share no held-out example"))
    return _measure(name, [{k: float(run.preferred[k]) for k in shared} for run in runs], runs[0].clusters)


def _tribunal(runs: Sequence[RunMeasures], project: Project | None) -> Measure:
    name = "the Tribunal's mean"
    shared = _shared([run.tribunal for run in runs])
    if not shared:
        return _nothing(name, runs, "trial", _("the trials share no prompt"))
    if len({run.judges for run in runs}) > 1:
        return Measure(name, 0, (), _("they were scored by different judges or rubrics: judge them with one --judge"))
    return _measure(name, [{k: run.tribunal[k] for k in shared} for run in runs], _pairs(project))


def _keyed(runs: Sequence[RunMeasures], project: Project | None) -> Measure:
    name = _("keyed items right")
    shared = _shared([run.keyed for run in runs])
    if not shared:
        why = "keyed" if any("keyed" in run.missing for run in runs) else "trial"
        return _nothing(name, runs, why, _("the trials share no keyed item"))
    return _measure(name, [{k: float(run.keyed[k]) for k in shared} for run in runs], _pairs(project))


def _shared(sides: Sequence[Mapping[str, object]]) -> list[str]:
    return [key for key in sides[0] if all(key in side for side in sides[1:])]


def _nothing(name: str, runs: Sequence[RunMeasures], part: str, otherwise: str) -> Measure:
    why = next((f"{path_here(Path(run.name))}: {run.missing[part]}" for run in runs if part in run.missing), otherwise)
    return Measure(name, 0, (), why)


def _pairs(project: Project | None) -> dict[str, str]:
    return {} if project is None else prompt_clusters(project.tribunal)


def _measure(
    name: str,
    sides: Sequence[Mapping[str, float]],
    clusters: Mapping[str, str],
    weights: Mapping[str, float] | None = None,
) -> Measure:
    """The cells of one measure.

    Args:
        sides: each run's value of each shared item, in one order.
        weights: what a value is divided by to be a figure (tokens); 1 each where None.
    """
    keys = list(sides[0])
    names = [clusters.get(key, key) for key in keys]
    counts, _ = clustered([1.0 if weights is None else weights[key] for key in keys], names)
    cells = []
    for i, side in enumerate(sides):
        value = round(sum(side.values()) / float(counts.sum()), 4)
        if i == 0:
            cells.append(Cell(value))
            continue
        sums, _ = clustered([side[key] - sides[0][key] for key in keys], names)
        low, high = bootstrap(sums, counts)
        interval = (round(low, 4), round(high, 4)) if len(sums) > 1 else None
        p = round(sign_flip(sums / counts), 4)
        cells.append(Cell(value, round(float(sums.sum() / counts.sum()), 4), interval, p))
    return Measure(name, len(keys), tuple(cells))


def show_comparison(found: Comparison) -> None:
    """Print the table, measure by measure."""
    names = [path_here(Path(name)) for name in found.runs]
    width = max(map(len, names))
    for measure in found.measures:
        on = _(" ({items} shared)", items=measure.items) if measure.cells else f": {measure.why}"
        say(f"  {measure.name}{on}")
        for name, cell in zip(names, measure.cells, strict=False):
            say(f"    {name:<{width}}  {number(cell.value, '7.4f')}   {difference_in_words(cell)}".rstrip())
    say(_("  the Tribunal's verdict"))
    for name, ruling in zip(names, found.rulings, strict=True):
        say(f"    {name:<{width}}  {ruling.verdict}: {retold(ruling.reason)}")


def difference_in_words(cell: Cell) -> str:
    """`+0.1200 [+0.0400, +0.2000], p 0.010`; empty for the first run."""
    if cell.difference is None:
        return ""
    interval = ""
    if cell.interval_95 is not None:
        low, high = (number(end, "+.4f") for end in cell.interval_95)
        interval = f" [{low}, {high}]"
    return f"{number(cell.difference, '+.4f')}{interval}, p {number(cell.p or 0.0, '.3f')}"


def project_or_none(given: Path | None) -> Project | None:
    """The project that was named, or the one here; None where there is none."""
    from noesis.core.project import find_project

    if given is not None:
        return find_project(given)
    try:
        return find_project(None)
    except NoesisError:
        return None
