"""While a run trains, it says once that it leaves the plan's time by more than a quarter."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.planning import CPU
from noesis.training import recorder


@pytest.mark.parametrize(
    ("rate", "first_s", "said"),
    [
        (40.0, 0.0, "about 25.0 s, not 10.0 s"),
        (90.0, 0.0, ""),
        (160.0, 0.0, "about 6.2 s"),
        (100.0, 8.0, ""),  # compiling in the first step is no slower training
        (40.0, 8.0, "about 33.0 s, not 10.0 s"),
        (1000.0, 0.9, ""),  # ended before it could be told
    ],
)
def test_a_departure_from_the_plan_is_said_once(
    rate: float,
    first_s: float,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(recorder.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(recorder, "DEPARTURE_S", 1.0)
    plan: Any = SimpleNamespace(epochs=1, tokens_per_s=100.0)
    metrics = recorder.Metrics(tmp_path / "metrics.jsonl", plan, CPU, 1000)
    metrics.begin(0.0)
    for step in range(1, 11):
        clock.now += 100 / rate + (first_s if step == 1 else 0.0)
        metrics.write(step=step, steps=10, epoch=step / 10, loss=1.0, lr=0.0, grad_norm=1.0, tokens=100)
    lines = [line for line in capsys.readouterr().out.splitlines() if "where the plan said 100" in line]
    assert len(lines) == (1 if said else 0)
    assert not said or said in lines[0]
