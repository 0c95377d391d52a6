"""Which epoch's adapter is used: the court's choice where it may choose, else the held-out examples'; and said so."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.manifest import edited_manifest
from helpers.tiny_runs import run_all
from noesis.core.project import Project
from noesis.pipeline.results import CheckpointScore
from noesis.pipeline.stages.choose import choose_checkpoint, score_checkpoints
from noesis.run.directory import load_run

pytestmark = pytest.mark.slow


@pytest.fixture
def trained(small_project: Project, tiny_model: Path, tmp_path: Path, quiet_cache: Path):
    return run_all(small_project, tiny_model, tmp_path / "run", **{"training.num_train_epochs": 3})


def court(**means: float | None):
    def hear(adapter: Path) -> CheckpointScore:
        return CheckpointScore(
            means[adapter.name],
            accuracy_drop=0.3 if means[adapter.name] == 0.9 else 0.0,
            vetoed=means[adapter.name] == 0.8,
            prompts={} if means[adapter.name] is None else {f"p{i}": means[adapter.name] for i in range(8)},
        )

    return hear


def test_an_epoch_is_chosen_by_the_court_that_may_decide_else_by_the_held_out_examples(trained, tiny_model: Path):
    stored = trained.run.result("choose")
    assert stored["significant"] and stored["by"].endswith("(no judge is set)")
    best = stored["adapter"]
    assert best == trained.run.adapter().name == trained.run.result("judge")["preference"]["adapter"]
    losses = [f["held_out_loss"] for f in stored["epochs"].values()]
    assert len(set(losses)) == 3  # each by its own adapter

    by_court = choose_checkpoint(trained, court(epoch_0=0.6, epoch_1=0.7, epoch_2=0.9))
    assert by_court.adapter == "epoch_1"  # epoch_2 is judged better, but forgot too much
    assert by_court.reason.startswith("the Tribunal's scores, among 2 of 3 epochs")
    assert "scores epoch_0 0.1000 [0.1000, 0.1000] below epoch_1" in by_court.reason
    equal = choose_checkpoint(trained, court(epoch_0=0.6, epoch_1=0.6, epoch_2=0.8))  # epoch_2 has a veto
    assert equal.adapter == "epoch_0" or "epoch_0 is out: its held-out loss" in equal.reason
    assert choose_checkpoint(trained).to_json() == stored  # nothing in it is by chance
    none = choose_checkpoint(trained, court(epoch_0=None, epoch_1=0.8, epoch_2=0.9))
    assert none.adapter == best
    assert "a veto or forgetting in every epoch" in none.reason
    unfit = choose_checkpoint(
        trained, lambda adapter: CheckpointScore(None, None, False, "judge not fit (accuracy 0.54 [0.45, 0.63])")
    )
    assert (unfit.adapter, "(judge not fit (accuracy 0.54" in unfit.reason) == (best, True)


def test_an_epoch_scored_alone_has_the_same_figures_and_is_not_scored_again(trained, monkeypatch: pytest.MonkeyPatch):
    """Beside the training of the next epoch one is scored on its own: adapters must not mix when several are scored."""
    together = score_checkpoints(trained, ["epoch_0", "epoch_1", "epoch_2"])
    files = sorted((trained.run.tribunal / "checkpoints").iterdir())
    assert [f.name for f in files] == ["base.json", "epoch_0.json", "epoch_1.json", "epoch_2.json"]
    files[2].unlink()
    alone = score_checkpoints(trained, ["epoch_1"])
    for part in ("revised", "initial"):
        assert alone["epoch_1"][part] == [pytest.approx(pair) for pair in together["epoch_1"][part]]
    monkeypatch.setattr("noesis.training.likelihood.log_likelihoods", lambda *a, **k: pytest.fail("scored again"))
    assert score_checkpoints(trained, ["epoch_0", "epoch_1", "epoch_2"])["epoch_2"] == together["epoch_2"]


def test_a_lie_about_the_choice_is_found(trained):
    from noesis.pipeline.verify.check_run import verify

    assert [found for found in verify(trained.run) if found.wrong] == []
    with edited_manifest(trained.run.path) as manifest:
        manifest["stages"]["choose"]["result"]["epochs"]["epoch_0"]["preferred"] += 1
    assert "the choice of the checkpoint follows from the scores" in [
        found.what for found in verify(load_run(trained.run.path)) if found.wrong
    ]
