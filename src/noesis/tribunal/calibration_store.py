"""Stored calibrations (`data/tribunal/calibrations/`): what is known of a judge, and whether it may decide.

A file is named by the hash of the judge's identity and the rubrics, and by the part of the benchmark: a judge that was
measured with other rubrics is another judge. `noesis tribunal calibrate` writes them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from noesis.core.console import command
from noesis.core.files import sha256_json, write_json
from noesis.core.i18n import N_
from noesis.tribunal.rubric import RubricSet
from noesis.tribunal.statistics import Interval
from noesis.tribunal.suite import Part, earlier_benchmarks

Counts = tuple[int, int]  # (right, of)
SUMMARY = ("date", "part", "accuracy", "interval_95", "baselines", "fit", "benchmark_sha256")  # keys that reports show


@dataclass(frozen=True)
class Calibration:
    """One judge on one part of the benchmark.

    accuracy: share of pairs in which the good answer scored higher; None without pairs
    outcomes: pair id → right, wrong, tie or abstained
    baselines: of keywords and length on the same pairs
    fit: whether it beats those and a coin
    sensitivity, specificity: of its approvals, for the corrected pass rate
    details: further figures by their names on disk (by_attack, auroc, length, invariance, reasons, agreement, …)
    spending: of the command that measured it; date: empty until it is stored
    """

    judge: str
    identity: str
    rubrics_sha256: str
    benchmark_sha256: str
    part: Part
    pairs: int
    accuracy: float | None
    interval_95: Interval
    outcomes: dict[str, str] = field(hash=False)
    ties: int
    baselines: dict[str, dict[str, Any]] = field(hash=False)
    fit: bool
    sensitivity: Counts
    specificity: Counts
    details: dict[str, Any] = field(hash=False)
    spending: dict[str, Any] | None = field(default=None, hash=False)
    date: str = ""

    @property
    def may_decide(self) -> bool:
        """Whether this judge may rule: fit, and not only on the half that judges are tuned on."""
        return self.fit and self.part != "dev"

    @property
    def verdicts(self) -> int:
        """How many the judge gave."""
        missing = self.details["abstention"]
        return int(missing["of"] - missing["count"])

    def to_json(self) -> dict[str, Any]:
        stored = {"date": self.date, "made_by": "noesis tribunal calibrate"} if self.date else {}
        return stored | {
            "judge": self.judge,
            "identity": self.identity,
            "rubrics_sha256": self.rubrics_sha256,
            "benchmark_sha256": self.benchmark_sha256,
            "part": self.part,
            "pairs": self.pairs,
            "accuracy": self.accuracy,
            "interval_95": list(self.interval_95),
            "outcomes": self.outcomes,
            "ties": self.ties,
            "baselines": self.baselines,
            "fit": self.fit,
            **self.details,
            "sensitivity": list(self.sensitivity),
            "specificity": list(self.specificity),
            **({"spending": self.spending} if self.spending is not None else {}),
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Calibration:
        """A calibration as it was stored.

        Raises:
            KeyError: it lacks a field.
        """
        rest = {key: value for key, value in stored.items() if key != "made_by"}
        (low, high), sensitivity, specificity = (rest.pop(key) for key in ("interval_95", "sensitivity", "specificity"))
        names = ("judge", "identity", "rubrics_sha256", "benchmark_sha256", "part", "pairs", "accuracy", "outcomes")
        named = {key: rest.pop(key) for key in (*names, "ties", "baselines", "fit")}
        return cls(
            **named,
            interval_95=(low, high),
            sensitivity=(sensitivity[0], sensitivity[1]),
            specificity=(specificity[0], specificity[1]),
            spending=rest.pop("spending", None),
            date=rest.pop("date", ""),
            details=rest,
        )

    def summary(self) -> dict[str, Any]:
        """The figures that a trial's record and the demo repeat."""
        whole = self.to_json()
        return {key: whole[key] for key in SUMMARY}


def load_calibration(
    folder: Path, identity: str, rubrics: RubricSet, *, parts: Sequence[Part] = ("locked", "all", "dev")
) -> Calibration | None:
    """A judge's stored calibration with these rubrics: of the locked half, else of all pairs, else of the dev half."""
    for part in parts:
        file = folder / _name(identity, rubrics, part)
        if file.is_file():
            return Calibration.from_json(json.loads(file.read_text(encoding="utf-8")))
    return None


def grown_since(calibration: Calibration, tribunal: Path) -> str | None:
    """The date on which the benchmark grew after this calibration; None if it did not, or is another benchmark."""
    return earlier_benchmarks(tribunal, calibration.part).get(calibration.benchmark_sha256)


def save_calibration(folder: Path, calibration: Calibration, rubrics: RubricSet) -> Path:
    file = folder / _name(calibration.identity, rubrics, calibration.part)
    write_json(file, calibration.to_json())
    return file


def _name(identity: str, rubrics: RubricSet, part: str) -> str:
    return f"{sha256_json([identity, rubrics.digest()])[:16]}-{part}.json"


def unfit_reason(
    calibrations: Sequence[Calibration | None], names: Sequence[str], ways: Sequence[str] = ()
) -> str | None:
    """Why these judges may not decide; None if each of them is fit by the locked half, and can show evidence.

    Args:
        ways: how each is asked (`tribunal: ask`); empty: all of them quote.
    """
    if not names:
        return N_("no judge is set: name one with --judge")
    for found, name, way in zip(calibrations, names, ways or ["quote"] * len(names), strict=True):
        if way == "score":
            return N_("{name} is read and quotes nothing, so it can raise no veto: rule with --ask both", name=name)
        if found is None or found.part == "dev":
            how = N_("only on the dev half") if found else "never"
            asked = () if way == "quote" else ("--ask", way)
            again = command("tribunal", "calibrate", "--part", "locked", *asked, "--judge", name)
            return N_("judge not fit: {name} was calibrated {how}; run  {again}", name=name, how=how, again=again)
        if not found.fit:
            low, high = found.interval_95
            return N_(
                "judge not fit (accuracy {accuracy:.2f} [{low:.2f}, {high:.2f}]): {name}",
                accuracy=found.accuracy or 0.0,
                low=low,
                high=high,
                name=name,
            )
    return None


@dataclass(frozen=True)
class ErrorCounts:
    """How often a judge is right about good and about bad answers of the benchmark."""

    sensitivity: Counts
    specificity: Counts

    @property
    def total_rate(self) -> float:
        return self.sensitivity[0] / self.sensitivity[1] + self.specificity[0] / self.specificity[1]


def error_counts(calibrations: Sequence[Calibration | None]) -> ErrorCounts | None:
    """The counts for the corrected pass rate, of the worst of several judges; None if any judge's are unknown."""
    known = [
        ErrorCounts(c.sensitivity, c.specificity)
        for c in calibrations
        if c is not None and c.sensitivity[1] and c.specificity[1]
    ]
    if not known or len(known) < len(calibrations):
        return None
    return min(known, key=lambda counts: counts.total_rate)
