"""The dial on a tiny model: what is measured at a strength is what the adapter at that strength does, everywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_runs import run_all
from noesis.core.errors import CapError, ConfigError, UsageError
from noesis.core.overrides import Overrides
from noesis.core.project import Project
from noesis.pipeline.results import RunResults
from noesis.pipeline.session import reopen_run
from noesis.pipeline.stages.dial import run_dial, with_strength
from noesis.pipeline.stages.gguf import run_gguf
from noesis.pipeline.stages.judge import run_judge
from noesis.pipeline.stages.merge import run_merge
from noesis.pipeline.stages.strength import figures as dial_figures
from noesis.pipeline.stages.strength.figures import figures_file, read_figures
from noesis.pipeline.verify.check_run import verify
from noesis.run.directory import load_run

pytestmark = pytest.mark.slow

ITEMS = [
    {"id": f"k{i}", "language": "en", "kind": "arithmetic", "tier": 1, "prompt": f"What is {i} + {i}?"}
    | {"answer": str(2 * i), "distractors": [str(2 * i + 1), str(2 * i + 3)]}
    for i in range(1, 9)
]

GRID = (0.25, 0.5, 0.75, 1.0, 1.25)


@pytest.fixture
def trained(small_project: Project, tiny_model: Path, tmp_path: Path, quiet_cache: Path):
    folder = small_project.tribunal / "kept"
    folder.mkdir(exist_ok=True, parents=True)
    for file in folder.iterdir():
        file.unlink()
    (folder / "own.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS), encoding="utf-8")
    measured = {"training.strength.fixed": 1.0, "training.strength.grid": GRID, "training.strength.items": len(ITEMS)}
    return run_all(small_project, tiny_model, tmp_path / "run", **measured)


def wrong(path: Path, project: Project) -> list[str]:
    return [f"{found.what}: {found.wrong}" for found in verify(load_run(path), project) if found.wrong]


def test_every_stage_takes_the_adapter_at_its_strength(trained, small_project: Project):
    s, path = trained, trained.run.path
    assert RunResults(s.run).dial.to_json() == {
        "strength": 1.0,
        "adapter": "epoch_0",
        "reason": "it was set",
        "fixed": True,
        "pairs": 0,
        "items": 0,
        "curve": [],
    }
    chosen = run_dial(with_strength(s, None), small_project.tribunal)
    assert [f.strength for f in chosen.curve] == [0.0, *GRID]
    drift = [f.drift for f in chosen.curve]
    assert drift[0] == 0
    assert drift == sorted(drift)  # it grows with the strength
    assert drift[-1] > 0
    whole = read_figures(s.run).measured

    half = run_dial(with_strength(s, 0.5), small_project.tribunal)
    assert (half.strength, half.adapter, half.curve) == (0.5, "epoch_0_at_0.5", ())
    assert s.run.adapter() == s.run.dial / "epoch_0_at_0.5"
    assert {s.run.state(name) for name in ("judge", "merge", "gguf")} == {"stale"}
    s = reopen_run(path)
    judged = run_judge(s, project=small_project)
    assert judged.preference.adapter == half.adapter
    assert judged.kept is not None  # the small tasks, too, are done by the scaled adapter
    assert judged.kept.all.tuned == sum(whole[0.5].right)
    places = dial_figures.pair_places(s)
    margins = [judged.preference.by_example[i].tuned_margin for i in places]
    scaled = whole[0.5].scores
    expected = [r / n - i / m for (r, n), (i, m) in zip(scaled["revised"], scaled["initial"], strict=True)]
    assert margins == pytest.approx(expected, abs=2e-3)  # the adapter's files do what was measured
    run_merge(s)
    certificate = run_gguf(s)
    assert all(found.passed for _, found in certificate.comparisons())
    assert wrong(path, small_project) == []


def test_an_interrupted_dial_goes_on_and_lies_about_it_are_found(
    trained, small_project: Project, monkeypatch: pytest.MonkeyPatch
):
    s = with_strength(trained, None)
    measured: list[int] = []
    outcomes = dial_figures.outcomes

    def stop_at_third(*args: Any, **kwargs: Any) -> Any:
        measured.append(1)
        if len(measured) == 3:
            raise CapError("the cap")
        return outcomes(*args, **kwargs)

    monkeypatch.setattr(dial_figures, "outcomes", stop_at_third)
    with pytest.raises(CapError):
        run_dial(s, small_project.tribunal)
    assert set(read_figures(s.run).measured) == {0.0, 0.25}
    result = run_dial(s, small_project.tribunal)
    assert len(measured) == 3 + 4
    assert result.items == len(ITEMS)
    assert wrong(s.run.path, small_project) == []

    file = figures_file(s.run)
    stored = json.loads(file.read_text(encoding="utf-8"))
    stored["strengths"]["1.25"]["right"] = [not r for r in stored["strengths"]["1.25"]["right"]]
    file.write_text(json.dumps(stored), encoding="utf-8")
    found = "\n".join(wrong(s.run.path, small_project))
    assert "at 1.25 other keyed items are right by what the model did" in found
    assert "by dial/figures.json" in found


def test_no_strength_of_nothing_and_a_warning_beyond_the_grid(
    trained, small_project: Project, capsys: pytest.CaptureFixture[str]
):
    for strength in (0.0, -1.0):
        with pytest.raises(UsageError, match=r"--strength .*: a strength of 0 is the base itself"):
            with_strength(trained, strength)
        with pytest.raises(ConfigError, match="a strength of 0 is the base itself"):
            Overrides(strength=strength).configure(small_project)
    with pytest.raises(UsageError, match="less than or equal to 2"):
        with_strength(trained, 7.0)
    dial = run_dial(with_strength(trained, 1.5))
    assert "strength 1.5 is beyond the grid, which ends at 1.25" in capsys.readouterr().out
    assert dial.adapter == "epoch_0_at_1.5"


def test_a_forged_adapter_and_a_forged_strength_are_found(trained, small_project: Project):
    from noesis.training.state.strength import write_scaled_adapter

    s = with_strength(trained, 0.5)
    run_dial(s)
    epoch = s.run.checkpoints / "epoch_0"
    write_scaled_adapter(epoch, s.run.dial / "epoch_0_at_0.5", 0.75)
    assert "dial/epoch_0_at_0.5 is not epoch_0 at strength 0.5" in "\n".join(wrong(s.run.path, small_project))
    s.run.record_settings(replace(s, config=trained.config).config)
    assert "it is 0.5 as it was set, and config.json sets 1.0" in "\n".join(wrong(s.run.path, small_project))
