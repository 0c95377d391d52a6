"""Calibrations as they are kept in the project, and what they say of a judge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from noesis.core.files import sha256_json, write_json
from noesis.tribunal.rubric import RubricSet


def load_calibration(folder: Path, identity: str, bench: RubricSet) -> dict[str, Any] | None:
    """The kept calibration of this judge with these rubrics; that on the locked half before that on the dev half."""
    for part in ("locked", "all", "dev"):
        file = folder / _name(identity, bench, part)
        if file.is_file():
            return dict(json.loads(file.read_text(encoding="utf-8")))
    return None


def save_calibration(folder: Path, calibration: dict[str, Any], bench: RubricSet, date: str) -> Path:
    file = folder / _name(calibration["identity"], bench, calibration["part"])
    write_json(file, {"date": date, "made_by": "noesis tribunal calibrate", **calibration})
    return file


def _name(identity: str, bench: RubricSet, part: str) -> str:
    return f"{sha256_json([identity, bench.digest()])[:16]}-{part}.json"


def unfit_reason(calibrations: Sequence[dict[str, Any] | None], names: Sequence[str]) -> str | None:
    """Why these judges may not decide, None if each is fit by the locked half."""
    if not names:
        return "no judge is seated: name one with --judge"
    for found, name in zip(calibrations, names, strict=True):
        if found is None or found["part"] == "dev":
            how = "only on the dev half" if found else "never"
            return f"judge not fit: {name} was calibrated {how}; run  noesis tribunal calibrate --part locked --judge …"
        if not found["fit"]:
            low, high = found["interval_95"]
            return f"judge not fit (accuracy {found['accuracy']:.2f} [{low:.2f}, {high:.2f}]): {name}"
    return None


def error_counts(calibrations: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Sensitivity and specificity counts for the corrected pass rate; of the judge with the worst sum where there are several."""
    whole = [c for c in calibrations if c is not None and c["sensitivity"][1] and c["specificity"][1]]
    if not whole or len(whole) < len(calibrations):
        return None
    worst = min(
        whole, key=lambda c: c["sensitivity"][0] / c["sensitivity"][1] + c["specificity"][0] / c["specificity"][1]
    )
    return {"sensitivity": worst["sensitivity"], "specificity": worst["specificity"]}


def calibration_summary(calibration: dict[str, Any] | None) -> dict[str, Any] | None:
    if calibration is None:
        return None
    return {
        key: calibration[key]
        for key in ("date", "part", "accuracy", "interval_95", "baselines", "fit", "benchmark_sha256")
    }
