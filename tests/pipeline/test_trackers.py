"""`report_to`: TensorBoard for real, its event files read back; what a tracker must not learn, and one that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import noesis
from helpers.project import small_project_in
from helpers.tiny_runs import toy_tribunal
from noesis.core.config import load_config
from noesis.core.errors import UsageError
from noesis.core.project import Project
from noesis.pipeline.session import reopen_run
from noesis.pipeline.tracking import track
from noesis.run.metrics import read_metrics
from noesis.training.tracking import trackers
from noesis.training.tracking.trackers import Trackers, require_trackers

SECRETS = {
    "HF_TOKEN": "hf_secret0123456789",
    "NOESIS_KEY_API_OPENAI_COM": "sk-secret0123456789",
    "WANDB_API_KEY": "wk0123",
}


def tracking_project(root: Path, names: str) -> Project:
    project = small_project_in(root / "project")
    toy_tribunal(project.root)
    text = project.training_yaml.read_text(encoding="utf-8")
    project.training_yaml.write_text(text.replace("report_to: []", f"report_to: [{names}]"), encoding="utf-8")
    return project


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """tag → (step, value) of every event in the run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted((run / "tensorboard").iterdir()):
        events = EventAccumulator(str(file)).Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, []).extend((e.step, e.value) for e in events.Scalars(tag))
    return found


@pytest.mark.slow
def test_tensorboard_is_told_each_step_and_what_the_stages_find(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("tensorboard")
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NOESIS_CACHE", str(tmp_path / "cache"))
    project = tracking_project(tmp_path, "tensorboard")
    settings: dict[str, Any] = {"language": "en", "epochs": 2, "max_examples": 16, "kept_items": 9, "strength": 1.0}
    run = noesis.train(project, tmp_path / "run", model=str(tiny_model), **settings)
    noesis.judge(run, project=project)
    noesis.merge(run)
    noesis.export_gguf(run, ["f16"])
    found, lines = scalars(run.path), read_metrics(run.metrics)
    assert [step for step, _ in found["train/loss"]] == [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [value for _, value in found["train/loss"]] == pytest.approx([line["loss"] for line in lines])
    assert found["eval/dial/strength"] == [(4, 1.0)] and found["eval/certificate/f16/passed"] == [(4, 1.0)]
    assert {"eval/judge/held_out_loss_base", "eval/judge/held_out_loss_tuned", "train/lr"} <= set(found)
    written = b"".join(file.read_bytes() for file in (run.path / "tensorboard").iterdir())
    assert not any(value.encode() in written for value in SECRETS.values())
    assert b"learning_rate" in written  # the settings are there
    from helpers.command import noesis as command

    assert command("verify", run.path).returncode == 0


def test_it_is_off_by_default(small_project: Project):
    assert load_config(small_project).training.report_to == ()


def test_a_tracker_that_is_not_installed_is_said_before_training(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install mlflow"):
        require_trackers(["mlflow"])


@pytest.mark.slow
def test_one_that_fails_is_left_out_and_the_others_go_on(
    tmp_path: Path, small_project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import transformers.integrations

    told: list[int] = []

    class Works(transformers.TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            told.append(state.global_step)

    class Breaks(Works):
        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise ConnectionError("no route\nto host")

    monkeypatch.setattr(transformers.integrations, "get_reporting_integration_callbacks", lambda names: [Breaks, Works])
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    told_of = Trackers(["wandb", "mlflow"], load_config(small_project), tmp_path, arguments)
    for step in (1, 2):
        told_of.log({"loss": 1.0}, step=step)
    told_of.close()
    assert told == [1, 2]
    assert capsys.readouterr().err.count("wandb failed") == 1


@pytest.mark.slow
def test_a_strangers_run_sends_nothing_to_a_tracker_that_the_user_does_not_name(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from noesis.pipeline.start_run import from_sources, start_run

    told: list[Any] = []
    monkeypatch.setattr(trackers, "report", lambda names, *_: told.append(names))
    strangers, mine = (
        tracking_project(tmp_path / "a", "wandb, tensorboard"),
        small_project_in(tmp_path / "b" / "project"),
    )
    config = load_config(strangers, {"training.model": str(tiny_model), "training.data.language": "en"})
    started = start_run(strangers, config, tmp_path / "run", from_sources(strangers, config))
    track(started, {"judge/x": 1.0})
    monkeypatch.setenv("NOESIS_PROJECT", str(mine.root))
    track(reopen_run(tmp_path / "run"), {"judge/x": 1.0})
    monkeypatch.setenv("NOESIS_PROJECT", str(strangers.root))
    track(reopen_run(tmp_path / "run"), {"judge/x": 1.0})
    assert told == [("wandb", "tensorboard"), ("tensorboard",), ("wandb", "tensorboard")]
    assert "names wandb in report_to, your project does not" in capsys.readouterr().out
