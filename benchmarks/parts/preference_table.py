"""The tables of preference.py: each arm's figures, paired differences to `sft`, and what the rule chooses."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from noesis.tribunal.statistics import bootstrap, clustered, mcnemar, sign_flip
from parts.forgetting import choose

Lines = list[dict[str, Any]]
Values = dict[tuple[int, str], float]  # (seed, example or item) → figure


def read(file: Path) -> Lines:
    """The lines of a results file, which may be compressed; one that was cut off is left out."""
    if not file.is_file():
        return []
    whole = file.read_bytes()
    lines = []
    for text in (gzip.decompress(whole) if file.suffix == ".gz" else whole).decode().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def by_example(line: dict[str, Any], base: dict[str, Any], name: str) -> dict[str, dict[str, float]]:
    """Figures of each held-out example; name: plain or block."""
    found = {}
    for mine, theirs in zip(line["examples"], base["examples"], strict=True):
        (c, cn, r, rn), (c0, _, r0, _) = mine[name], theirs[name]
        margin, reward = c / cn - r / rn, (c - c0) - (r - r0)
        found[mine["id"]] = {
            "preference": float(margin > 0),
            "margin": margin,
            "loss": -c / cn,
            "reward": float(reward > 0),
        }
    return found


class Arm:
    """The lines of one arm, each beside the base's of the same seed."""

    def __init__(self, lines: Lines, bases: dict[int, dict[str, Any]]) -> None:
        self.lines, self.bases = lines, bases

    def values(self, figure: str, name: str = "plain") -> Values:
        """A figure of each example; `right`, of each small task; `drift`, of each of the base's answers, a token."""
        found: Values = {}
        for line in self.lines:
            seed, base = line["seed"], self.bases[line["seed"]]
            if figure == "right":
                found |= {(seed, item): float(ok) for item, ok in line["kept"].items()}
            elif figure == "drift":
                found |= {(seed, str(i)): kl / n for i, (kl, n) in enumerate(line["drift"]) if n}
            else:
                found |= {(seed, k): v[figure] for k, v in by_example(line, base, name).items()}
        return found

    def cell(self, figure: str, name: str = "plain", *, spread: bool = False) -> str:
        """The mean, with the standard deviation of the seeds' means if there are several."""
        found = self.values(figure, name)
        if not found:
            return "–"
        seeds = sorted({seed for seed, _ in found})
        means = [fmean(v for (s, _), v in found.items() if s == seed) for seed in seeds]
        between = f" ± {stdev(means):.3f}" if spread and len(means) > 1 else ""
        return f"{fmean(found.values()):.3f}{between}"

    def interval(self, figure: str) -> str:
        found = self.values(figure)
        low, high = bootstrap(*clustered(list(found.values()), [key for _, key in found]))
        return f"[{low:.2f}, {high:.2f}]"

    def kept(self) -> tuple[int, int, int]:
        """(kept, lost, gained) of all seeds' small tasks."""
        pairs = [(ok, line["kept"][k]) for line in self.lines for k, ok in self.bases[line["seed"]]["kept"].items()]
        return (
            sum(b and t for b, t in pairs),
            sum(b and not t for b, t in pairs),
            sum(t and not b for b, t in pairs),
        )


def difference(mine: Values, theirs: Values) -> str:
    """Mean paired difference with its interval, over examples, and p by sign flips."""
    keys = [key for key in mine if key in theirs]
    if not keys:
        return "–"
    sums, counts = clustered([mine[key] - theirs[key] for key in keys], [name for _, name in keys])
    low, high = bootstrap(sums, counts)
    return f"{sums.sum() / counts.sum():+.3f} [{low:+.3f}, {high:+.3f}] p {sign_flip(sums / counts):.3f}"


def table(files: Sequence[Path]) -> None:
    """Print both tables, the fall of each arm, and the rule's winner."""
    from noesis.core.config import TribunalSection

    lines = [line for file in files for line in read(file)]
    bases = {line["seed"]: line for line in lines if line["arm"] == "base"}
    by_arm: dict[str, Lines] = {}
    for line in lines:
        if line["seed"] in bases:
            by_arm.setdefault(line["arm"], []).append(line)
    if not by_arm:
        raise SystemExit(f"no base and no arm in {', '.join(map(str, files))}: measure with  preference.py run")
    arms = {name: Arm(found, bases) for name, found in by_arm.items()}
    _figures(arms)
    _differences(arms)
    tuned = [name for name in arms if name != "base"]
    if tuned:
        right = {name: fmean(arms[name].values("right").values()) for name in arms}
        preference = {name: fmean(arms[name].values("preference").values()) for name in tuned}
        fall = {name: right["base"] - right[name] for name in tuned}
        print(f"\nThe rule of decision 0046: {choose(preference, fall, TribunalSection().max_forgetting)}")


def _figures(arms: dict[str, Arm]) -> None:
    head = (
        "arm",
        "seeds",
        "prefers the revision",
        "95%",
        "margin",
        "held-out loss",
        "given the critique: prefers, margin, loss",
        "small tasks right",
        "kept, lost, gained",
        "drift",
        "s",
    )
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for name, arm in arms.items():
        block = ", ".join(arm.cell(figure, "block") for figure in ("preference", "margin", "loss"))
        seconds = fmean(line["training"].get("seconds", 0) for line in arm.lines)
        cells = [
            name,
            str(len(arm.lines)),
            arm.cell("preference", spread=True),
            arm.interval("preference"),
            arm.cell("margin", spread=True),
            arm.cell("loss", spread=True),
            block,
            arm.cell("right", spread=True),
            ", ".join(map(str, arm.kept())),
            arm.cell("drift", spread=True),
            f"{seconds:.0f}",
        ]
        print(f"| {' | '.join(cells)} |")


def _differences(arms: dict[str, Arm]) -> None:
    if "sft" not in arms:
        return
    print(
        "\nPaired differences to `sft`, 95% bootstrap intervals over examples (or tasks), p by sign flips; each seed's"
    )
    print("McNemar p of lost against gained is of the base beside the arm, on one seed's tasks:\n")
    head = ("arm", "preference", "margin", "loss", "small tasks right", "drift", "McNemar by seed")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for name, arm in arms.items():
        figures = ("preference", "margin", "loss", "right", "drift")
        cells = [difference(arm.values(f), arms["sft"].values(f)) if name != "sft" else "–" for f in figures]
        by_seed = [Arm([line], arm.bases).kept() for line in arm.lines]
        p = ", ".join(f"{mcnemar(lost, gained):.3f}" for _, lost, gained in by_seed) if name != "base" else "–"
        print(f"| {name} | {' | '.join(cells)} | {p} |")
