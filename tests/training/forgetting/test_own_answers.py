"""Runs that replay the base's own answers, or that distil: planned, trained, verified, gone on with, made again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from noesis.core.config import load_config
from noesis.core.project import Project
from noesis.llm.llama_cpp import LlamaEngine
from noesis.pipeline import registry
from noesis.pipeline.replay import replay
from noesis.pipeline.session import RunSession
from noesis.pipeline.start_run import from_sources, start_run
from noesis.pipeline.verify.check_run import verify
from noesis.run.directory import load_run

pytestmark = pytest.mark.slow

SMALL = {
    "lora.r": 4,
    "lora.lora_alpha": 8,
    "training.num_train_epochs": 1,
    "training.data.language": "en",
    "max_examples": 8,
}


def train(project: Project, model: Path, path: Path, **settings: object) -> RunSession:
    config = load_config(project, SMALL | {"training.model": str(model)} | settings)
    s = start_run(project, config, path, from_sources(project, config))
    registry.run_all(s, stages=("plan", "train", "choose"))
    return s


def wrong(path: Path) -> list[str]:
    return [f"{f.what}: {f.wrong}" for f in verify(load_run(path)) if f.wrong]


def test_the_bases_own_answers_are_made_once_and_kept_in_the_run(
    small_project: Project,
    tiny_model: Path,
    tmp_path: Path,
    quiet_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    asked: list[int] = []
    answer_all = LlamaEngine.answer_all

    def counting(self: LlamaEngine, conversations: list, **more: object) -> list[str]:
        asked.append(len(conversations))
        return answer_all(self, conversations, **more)

    monkeypatch.setattr(LlamaEngine, "answer_all", counting)
    settings = {"training.replay": {"kl_weight": 1.0, "share": 0.2, "max_new_tokens": 8}}
    path = tmp_path / "run"
    s = train(small_project, tiny_model, path, **settings)
    assert s.plan is not None
    assert any("the base writes 2 answers first" in reason for reason in s.plan.reasons)
    assert any("kl_weight: the base reads" in reason for reason in s.plan.reasons)
    assert asked == [2]
    stored = json.loads((path / "checkpoints" / "own_answers.json").read_text(encoding="utf-8"))
    assert len(stored["answers"]) == 2
    assert "checkpoints/own_answers.json" in s.run.manifest.stages["train"].outputs
    assert any("kl" in json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines())
    assert wrong(path) == []

    # a run whose training has to go on asks nothing again
    shutil.rmtree(path / "checkpoints" / "epoch_0")
    train(small_project, tiny_model, path, **settings)
    assert asked == [2]
    assert replay(path).identical
    assert asked == [2, 2]  # made again in a directory of its own

    # answers that somebody changed, or that are none, are not trained on
    from noesis.core.files import sha256_json

    stored["answers"] = ["Something else.", 7]
    stored["sha256"] = sha256_json(stored["answers"])
    (path / "checkpoints" / "own_answers.json").write_text(json.dumps(stored), encoding="utf-8")
    assert any("own_answers.json" in line for line in wrong(path))
    train(small_project, tiny_model, path, **settings)
    assert asked == [2, 2, 2]
    assert wrong(path) == []


def test_a_run_distils(small_project: Project, tiny_model: Path, tmp_path: Path, quiet_cache: Path):
    settings = {"training.method": "distill", "training.distill": {"max_new_tokens": 8}}
    path = tmp_path / "run"
    s = train(small_project, tiny_model, path, **settings)
    assert s.plan is not None
    assert any("answers of 8 tokens at most" in reason for reason in s.plan.reasons)
    assert wrong(path) == []
    assert replay(path).identical
