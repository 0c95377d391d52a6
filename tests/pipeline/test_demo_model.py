"""`noesis demo --model`: a run directory of its own, the project's learning rate."""

from __future__ import annotations

import pytest

from helpers.project import ROOT
from noesis.core.config import load_config
from noesis.core.project import Project
from noesis.pipeline.demo import demo_config, demo_run_name


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (None, "demo"),
        ("Qwen/Qwen2.5-1.5B-Instruct", "demo-qwen2.5-1.5b-instruct"),
        ("models/Qwen2.5-Coder.Q4_K_M.gguf", "demo-qwen2.5-coder.q4-k-m"),
        ("../..", "demo"),
        ("名", "demo"),
    ],
)
def test_each_model_has_a_run_directory(model: str | None, name: str):
    assert demo_run_name(model) == name


def test_another_model_learns_at_the_projects_rate():
    project = Project(ROOT)
    own, other = demo_config(project), demo_config(project, model="Qwen/Qwen2.5-1.5B-Instruct")
    assert own.training.learning_rate == own.training.demo.learning_rate
    assert other.training.learning_rate == load_config(project).training.learning_rate
    assert other.training.model == "Qwen/Qwen2.5-1.5B-Instruct"
