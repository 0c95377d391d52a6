"""`noesis demo --model` and `--language`: what they change, and what is said of the language."""

from __future__ import annotations

import pytest

from helpers.command import speaking
from helpers.project import ROOT
from noesis.core.config import load_config
from noesis.core.project import Project
from noesis.pipeline.demo import _tell_language, demo_config, demo_run_name


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


@pytest.mark.parametrize(
    ("spoken", "language", "model", "said"),
    [
        ("en", None, None, ""),
        ("pt", None, None, "  língua en; para treinar com os exemplos em pt, acrescente  --language pt\n"),
        ("pt", "en", None, ""),
        ("en", "pt", None, "  smollm2 was trained on English: in pt expect poor answers"),
        ("pt", "pt", None, "  smollm2 foi treinado em inglês: em pt, espere respostas fracas"),
        ("pt", "pt", "Qwen/Qwen2.5-1.5B-Instruct", ""),
        ("en", "both", None, ""),
    ],
)
def test_the_language_is_said_where_it_is_not_what_one_expects(
    spoken: str, language: str | None, model: str | None, said: str, capsys: pytest.CaptureFixture[str]
):
    project = Project(ROOT)
    config = demo_config(project, model=model, language=language)
    assert config.training.data.language == (language or "en")
    with speaking(spoken):
        _tell_language(project, config, chosen=language is not None)
    found = capsys.readouterr().out
    assert found.startswith(said) and found.count("\n") == bool(said)
