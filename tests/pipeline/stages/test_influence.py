"""Influence of training examples: the cosines by finite steps, a run's figures kept, shown, and refused where they must be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from noesis.pipeline.stages.influence.figures import ExampleInfluence, Influence


def influence(margins: list[float], kept: list[float | None]) -> Influence:
    examples = [ExampleInfluence(f"e{i}", "en", "?", m, k) for i, (m, k) in enumerate(zip(margins, kept, strict=True))]
    return Influence(("epoch_0",), 13, 2, tuple(examples))


def test_no_example_is_at_both_ends_of_a_table():
    found = influence([0.1 * i - 0.55 for i in range(12)], [None] * 12)
    assert [e.id for e in found.helpful()] == ["e11", "e10", "e9", "e8", "e7", "e6"]
    assert [e.id for e in found.harmful()] == ["e0", "e1", "e2", "e3", "e4", "e5"]
    assert found.breaking() == []
    found = influence([0.2, 0.3], [-0.1, 0.4])
    assert [e.id for e in found.breaking()] == ["e0"]
    assert Influence.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_few_held_out_pairs_and_nothing_lost_are_said(capsys: pytest.CaptureFixture[str]):
    from noesis.pipeline.stages.influence.measure import _say_what

    _say_what(100, 7, 0)
    said = capsys.readouterr().out
    assert "fewer than 8 held-out pairs: the margin's gradient is that of a few answers" in said
    assert "nothing was lost that is compared by likelihood" in said
    _say_what(100, 8, 1)
    assert "fewer" not in (said := capsys.readouterr().out) and "nothing" not in said


@pytest.mark.slow
def test_a_step_on_an_example_moves_the_figure_as_its_cosine_says(
    tiny_model: Path, tiny_adapter: Path, tmp_path: Path, record: dict
):
    import torch

    from helpers.tiny_runs import rows_of, small
    from helpers.training_jobs import sft_job
    from noesis.training.influence.gradients import GradientModel, Weighted
    from noesis.training.packing import pack

    config = small(**{"training.precision": "fp32", "lora.quantization.load_in_4bit": False, "lora.lora_dropout": 0.1})
    rows = rows_of(tiny_model, 5, record)
    examined = GradientModel(sft_job(tiny_model, tmp_path, rows, config))
    figure = [Weighted(rows[3], 0.5 / rows[3].predicted), Weighted(rows[4], -1.0 / rows[4].predicted)]
    seen: list = []
    (cosines,) = examined.similarities(tiny_adapter, rows[:3], [figure], seen.append)
    assert len(seen) == 5
    assert all(-1 <= x <= 1 for x in cosines)

    def value(weighted: list[Weighted]) -> float:
        examined.model.engine.begin_step()
        one = torch.ones(())
        with torch.no_grad():
            losses = [examined.model(pack([(w.row.input_ids, w.row.labels)], []), one, None) for w in weighted]
        return float(sum(-w.weight * loss.double() for w, loss in zip(weighted, losses, strict=True)))

    start = [p.detach().clone() for p in examined.parameters]
    moved = []
    for row in rows[:3]:
        step = examined._gradient([Weighted(row, 1.0)], seen.append)
        length = torch.stack([g.square().sum() for g in step]).sum().sqrt()
        ends = []
        for sign in (1, -1):
            for p, before, g in zip(examined.parameters, start, step, strict=True):
                p.data.copy_(before + sign * 2e-3 * g / length)
            ends.append(value(figure))
        for p, before in zip(examined.parameters, start, strict=True):
            p.data.copy_(before)
        examined.model.engine.begin_step()
        moved.append((ends[0] - ends[1]) / 4e-3)
    slope = moved[0] / cosines[0]
    assert slope > 0
    assert moved == pytest.approx([slope * x for x in cosines], rel=0.02)


@pytest.mark.slow
def test_a_runs_influence_is_kept_shown_and_tied_to_its_adapters(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from helpers.project import ROOT
    from helpers.tiny_runs import OVERRIDES
    from noesis.core.config import load_config
    from noesis.core.errors import RunError, UsageError
    from noesis.core.project import Project
    from noesis.pipeline import registry
    from noesis.pipeline.stages.influence import figures
    from noesis.pipeline.stages.influence.measure import run_influence
    from noesis.pipeline.start_run import from_sources, start_run
    from noesis.pipeline.verify.check_run import verify
    from noesis.training.influence import gradients

    found = Project(ROOT)
    more = {"training.model": str(tiny_model), "training.data.language": "en"}
    config = load_config(found, OVERRIDES | more | {"training.strength.fixed": 1.0})
    s = start_run(found, config, tmp_path / "run", from_sources(found, config))
    with pytest.raises(RunError, match=r"no epoch chosen yet: run .* train "):
        run_influence(s)
    options = registry.PipelineOptions(found)
    registry.run_all(s, options, stages=(*registry.training_stages(), "judge"))
    kept = s.run.tribunal / "kept.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    lost = next(row for row in rows if row["item"].get("answer"))
    lost["base"], lost["tuned"] = ({"scores": [a] + [-5.0] * len(lost["item"]["distractors"])} for a in (-1.0, -9.0))
    kept.write_text("".join(json.dumps(row) + "\n" for row in rows))
    measured = run_influence(s)
    expected = (len(s.dataset.held_out), 1 + _lost_before(rows, lost), 8)
    assert (measured.pairs, measured.lost, len(measured.examples)) == expected
    assert all(example.kept is not None for example in measured.examples)
    monkeypatch.setattr(gradients, "GradientModel", None)  # nothing is computed again
    assert run_influence(s) == measured
    assert run_influence(s, again=True) == measured
    registry.run_all(s, options, stages=("report",))
    page = s.run.report.read_text(encoding="utf-8")
    assert "Which example did it" in page
    findings = list(verify(s.run, found))  # what was written into kept.jsonl is found, nothing of influence is
    assert any(finding.wrong and "kept.jsonl" in finding.wrong for finding in findings)
    assert not any("influence" in f"{finding.what} {finding.wrong}" for finding in findings)
    summary = s.run.path / figures.FOLDER / figures.SUMMARY
    summary.write_text(summary.read_text().replace('"pairs": 1', '"pairs": 2'))
    assert figures.stored_influence(s.run) is None
    other = s.config.with_settings(training={"method": "dpo"})
    from dataclasses import replace

    with pytest.raises(UsageError, match="trained by method: dpo, and influence is measured of training on"):
        run_influence(replace(s, config=other))


def _lost_before(rows: list[dict], but: dict) -> int:
    """Tasks that training really lost."""
    from noesis.tribunal.kept.items import KeptItem
    from noesis.tribunal.kept.measure import Outcome, is_right

    def lost(row: dict) -> bool:
        item = KeptItem.model_validate(row["item"])
        base, tuned = (is_right(item, Outcome.from_json(row[name])) for name in ("base", "tuned"))
        return bool(item.choices) and base and not tuned

    return sum(lost(row) for row in rows if row is not but)
