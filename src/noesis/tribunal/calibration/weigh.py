"""`noesis tribunal weigh`: what each item is worth, learnt from the readings of one judge on the dev half's pairs.

Logistic regression on the differences within pairs, one parameter an item, with L2 towards equal weights: 66 pairs can
carry no more. What counts is the figure beside it: each attack judged with weights that were learnt without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from noesis.core.config import TribunalSection
from noesis.core.errors import ModelError
from noesis.core.event_loop import run_async
from noesis.core.files import utc_now
from noesis.core.i18n import _, retold
from noesis.core.project import Project
from noesis.llm.clients.spec import parse_spec
from noesis.llm.clients.spending import Spending
from noesis.tribunal.calibration.benchmark import Benchmark
from noesis.tribunal.panel import JudgePanel, open_panel
from noesis.tribunal.reading.asking import judge_kinds
from noesis.tribunal.reading.item_weights import ItemWeights, save_weights
from noesis.tribunal.suite import JudgePair, read_benchmark
from noesis.tribunal.verdict import Unscored, Verdict

L2 = 10.0  # of the distance of each weight from 1, in units of one pair's loss; not tuned
STEPS = 500
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Differences:
    """Good minus bad answer of each pair, by item.

    items: judge and item, the columns
    values: (pairs, items), each item's part in the difference of the mean scores with equal weights
    """

    items: tuple[str, ...]
    values: Floats
    attacks: tuple[str, ...]


def weigh(project: Project, section: TribunalSection, judge: str, *, max_usd: float | None = None) -> ItemWeights:
    """Learn the weights of one judge's items and store them in the project.

    Raises:
        UsageError, DataError, ModelError, CapError: as `calibrate`.
    """
    section = section.model_copy(update={"ask": "score", "item_weights": False})
    pairs, _ = read_benchmark(project.tribunal, "dev")
    benchmark = Benchmark(pairs, [], "dev")
    spec = parse_spec(judge, kinds=judge_kinds("score"))
    with open_panel(project, [spec], section, Spending(max_usd=max_usd)) as panel:
        differences = run_async(_read(panel, benchmark))
        found = learn(differences)
        whole = replace(
            found,
            judge=panel.names[0],
            identity=panel.identities[0],
            rubrics_sha256=panel.rubrics.digest(),
            benchmark_sha256=benchmark.digest(),
            date=utc_now(),
        )
    save_weights(project.calibrations, whole)
    return whole


async def _read(panel: JudgePanel, benchmark: Benchmark) -> Differences:
    places, cases, judges = benchmark.cases()
    async with panel:
        verdicts = await panel.judge(cases, judges, what="read")
    found = {
        (*place, v.judge): v
        for place, of_answer in zip(places, verdicts, strict=True)
        for v in of_answer
        if isinstance(v, Verdict)
    }
    if not found:
        reasons = sorted({v.reason for of_answer in verdicts for v in of_answer if isinstance(v, Unscored)})
        raise ModelError(
            _(
                "{names} gave no verdict, so nothing can be learnt: {reasons}",
                names=panel.names[0],
                reasons=" | ".join(map(retold, reasons[:3])),
            )
        )
    return differences(benchmark.pairs, found)


def differences(pairs: Sequence[JudgePair], verdicts: dict[tuple[str, str, str], Verdict]) -> Differences:
    """The differences within those pairs of which all judges gave a verdict on both answers.

    Args:
        verdicts: by pair, side (good, bad) and judge.
    """
    rows: list[dict[str, float]] = []
    attacks = []
    for pair in pairs:
        keys = [(pair.id, side, judge) for side in ("good", "bad") for judge in pair.judges]
        if any(key not in verdicts for key in keys):
            continue
        row: dict[str, float] = {}
        for key in keys:
            items = verdicts[key].items
            for item in items:
                share = (item.score - 1) / (2 * len(items) * len(pair.judges))  # an abstention is a 1 of 0 to 2
                part = 0.0 if item.how == "abstained" else share
                name = f"{key[2]}.{item.id}"
                row[name] = row.get(name, 0.0) + (part if key[1] == "good" else -part)
        rows.append(row)
        attacks.append(pair.attack)
    names = tuple(sorted({name for row in rows for name in row}))
    values = np.array([[row.get(name, 0.0) for name in names] for row in rows], float).reshape(len(rows), len(names))
    return Differences(names, values, tuple(attacks))


def learn(data: Differences) -> ItemWeights:
    """The weights, and how many pairs they get right; those of the judge itself are left empty."""
    weights = fit(data.values)
    left_out: dict[str, tuple[int, int]] = {}
    attacks = np.array(data.attacks)
    for attack in sorted(set(data.attacks)):
        own = attacks == attack
        left_out[attack] = (_right(data.values[own], fit(data.values[~own])), int(own.sum()))
    return ItemWeights(
        judge="",
        identity="",
        rubrics_sha256="",
        benchmark_sha256="",
        l2=L2,
        weights={name: round(float(w), 4) for name, w in zip(data.items, weights, strict=True)},
        pairs=len(data.attacks),
        equal=_right(data.values, np.ones(len(data.items))),
        learnt=_right(data.values, weights),
        left_out=sum(right for right, _ in left_out.values()),
        left_out_by_attack=left_out,
    )


def fit(values: Floats) -> Floats:
    """Weights of 0 or more that minimise the logistic loss of `values` (pairs, items) and L2 · |weights - 1|²."""
    items = values.shape[1]
    spread = float(np.std(values.sum(1))) if len(values) else 0.0
    if spread == 0:
        return np.ones(items)
    scaled = values / spread
    step = 1 / (0.25 * float(np.linalg.norm(scaled, 2)) ** 2 + 2 * L2)
    weights = np.ones(items)
    for _step in range(STEPS):
        slope = -scaled.T @ (1 / (1 + np.exp(np.clip(scaled @ weights, -50, 50)))) + 2 * L2 * (weights - 1)
        weights = np.maximum(0.0, weights - step * slope)
    return weights


def _right(values: Floats, weights: Floats) -> int:
    return int(np.sum(values @ weights > 1e-9))


def weights_lines(found: ItemWeights) -> list[str]:
    """What was learnt, for a terminal."""
    lines = [
        _("{judge} on {pairs} pairs (dev), L2 {l2:g}", judge=found.judge, pairs=found.pairs, l2=found.l2),
        _("  equal weights      {equal} pairs right", equal=found.equal),
        _("  weights learnt     {learnt}, on the pairs that they were learnt on", learnt=found.learnt),
        _("  attack left out    {left_out}, each attack with weights learnt without it", left_out=found.left_out),
    ]
    lines += [f"    {attack:<20} {right}/{of}" for attack, (right, of) in found.left_out_by_attack.items()]
    heavy = sorted(found.weights.items(), key=lambda pair: -abs(pair[1] - 1))[:6]
    lines.append(_("  furthest from 1    ") + ", ".join(f"{name} {weight:.2f}" for name, weight in heavy))
    if found.left_out <= found.equal:
        lines.append(_("  they do not help on attacks that they have not seen: leave  tribunal: item_weights: false"))
    return lines
