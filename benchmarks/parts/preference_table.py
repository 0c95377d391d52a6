"""The table of preference.py: each arm's figures, and paired differences to `sft` with bootstrap intervals."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from parts.forgetting import choose

ROOT = Path(__file__).resolve().parents[2]


def read(file: Path) -> list[dict[str, Any]]:
    """The lines of a results file; one that was cut off is left out."""
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
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


def drifts(line: dict[str, Any], base: dict[str, Any]) -> dict[str, float]:
    """Loss a token on each of the base's own answers, minus the base's."""
    return {name: (base["drift"][name][0] - score) / n for name, (score, n) in line.get("drift", {}).items()}


def keyed(line: dict[str, Any]) -> dict[str, bool]:
    """Whether the answers that code can grade are right."""
    from noesis.constitution.analysis_block import hide_analysis
    from noesis.tribunal.code_checks import right
    from noesis.tribunal.suite import read_suite

    items = {item.id: item for item in read_suite(ROOT / "data" / "tribunal") if not item.turns}
    graded = {
        name: right(items[name], hide_analysis(answer))
        for name, answer in line.get("answers", {}).items()
        if name in items
    }
    return {
        name: bool(verdict)
        for name, verdict in graded.items()
        if verdict is not None or items[name].key or items[name].check
    }


def summary(line: dict[str, Any]) -> str:
    margins = [e["plain"][0] / e["plain"][1] - e["plain"][2] / e["plain"][3] for e in line["examples"]]
    loss = -sum(e["plain"][0] for e in line["examples"]) / sum(e["plain"][1] for e in line["examples"])
    seconds = line["training"].get("seconds", 0)
    preferred = f"prefers {sum(m > 0 for m in margins)}/{len(margins)}, margin {sum(margins) / len(margins):+.3f}"
    return f"{preferred}, loss {loss:.3f}, {seconds} s + {line['measure_seconds']} s"


def table(options: argparse.Namespace) -> None:
    from noesis.core.config import TribunalSection
    from noesis.tribunal.statistics import bootstrap, clustered, mcnemar, sign_flip

    lines = [line for file in options.files or [options.work / "results.jsonl"] for line in read(file)]
    bases = {line["seed"]: line for line in lines if line["method"] == "base"}
    arms: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if line["seed"] in bases:
            arms.setdefault(line["arm"], []).append(line)

    def values(arm: str, name: str, figure: str) -> dict[tuple[int, str], float]:
        if figure == "drift":
            return {
                (line["seed"], key): v for line in arms[arm] for key, v in drifts(line, bases[line["seed"]]).items()
            }
        return {
            (line["seed"], key): v[figure]
            for line in arms[arm]
            for key, v in by_example(line, bases[line["seed"]], name).items()
        }

    def mean(found: dict[tuple[int, str], float]) -> str:
        return f"{sum(found.values()) / len(found):.3f}" if found else "–"

    head = (
        "arm",
        "seeds",
        "prefers the revision",
        "margin",
        "held-out loss",
        "the same given the critique",
        "reward accuracy",
        "drift",
        "keyed right",
        "s",
    )
    print(f"| {' | '.join(head)} |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for arm, cells in sorted(arms.items(), key=lambda pair: (pair[0] != "base", "critique" in pair[0], pair[0])):
        block = ", ".join(mean(values(arm, "block", figure)) for figure in ("preference", "margin", "loss"))
        plain = [mean(values(arm, "plain", figure)) for figure in ("preference", "margin", "loss")]
        right = [verdict for line in cells for verdict in keyed(line).values()]
        seconds = sum(line["training"].get("seconds", 0) for line in cells) / len(cells)
        reward = "–" if arm == "base" else mean(values(arm, "plain", "reward"))
        drift = "–" if arm == "base" else mean(values(arm, "plain", "drift"))
        print(
            f"| {arm} | {len(cells)} | {' | '.join(plain)} | {block} | {reward} | {drift} | {sum(right)} of "
            f"{len(right)} | {seconds:.0f} |"
        )
    print(
        "\nPaired differences to `sft` on the same examples, 95% bootstrap intervals over examples, p by sign flips:\n"
    )
    print("| arm | preference | margin | loss | drift | keyed lost, won |")
    print("|---|---|---|---|---|---|")
    for arm in sorted(arms):
        if arm == "sft" or "sft" not in arms:
            continue
        cells_ = []
        for figure in ("preference", "margin", "loss", "drift"):
            mine, theirs = values(arm, "plain", figure), values("sft", "plain", figure)
            keys = [key for key in mine if key in theirs]
            differences, names = [mine[key] - theirs[key] for key in keys], [key[1] for key in keys]
            if not keys or (arm == "base" and figure == "drift"):
                cells_.append("–")
                continue
            sums, counts = clustered(differences, names)
            low, high = bootstrap(sums, counts)
            cells_.append(
                f"{sum(differences) / len(differences):+.3f} [{low:+.3f}, {high:+.3f}] p {sign_flip(sums / counts):.3f}"
            )
        known = {(line["seed"], name): ok for line in arms["sft"] for name, ok in keyed(line).items()}
        pairs = [
            (known[line["seed"], name], ok)
            for line in arms[arm]
            for name, ok in keyed(line).items()
            if (line["seed"], name) in known
        ]
        lost, won = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
        print(f"| {arm} | {' | '.join(cells_)} | {lost}, {won} (McNemar {mcnemar(lost, won):.2f}) |")
    if "base" in arms:
        right = {arm: [ok for line in cells for ok in keyed(line).values()] for arm, cells in arms.items()}
        share = {arm: sum(oks) / len(oks) for arm, oks in right.items() if oks}
        preference = {arm: values(arm, "plain", "preference") for arm in share if arm != "base"}
        if preference:
            mean_of = {arm: sum(found.values()) / len(found) for arm, found in preference.items()}
            fall = {arm: share["base"] - share[arm] for arm in preference}
            print(f"\nThe rule of decision 0046: {choose(mean_of, fall, TribunalSection().max_forgetting)}")
