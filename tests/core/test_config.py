"""Both YAML files: the committed ones parse, mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.project import ROOT
from noesis.core.config import Config, load_config
from noesis.core.errors import ConfigError, UsageError
from noesis.core.project import Project, find_project


def test_the_committed_files_hold_the_agreed_numbers():
    config = load_config(Project(ROOT))
    assert (config.lora.r, config.lora.lora_alpha) == (64, 128)
    assert set(config.lora.target_modules) == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    assert config.lora.quantization.bnb_4bit_quant_type == "nf4"
    assert config.lora.quantization.bnb_4bit_use_double_quant
    t = config.training
    assert (t.learning_rate, t.lr_scheduler_type, t.warmup_ratio) == (2e-4, "cosine", 0.03)
    assert (t.per_device_train_batch_size, t.gradient_accumulation_steps, t.num_train_epochs, t.max_length) == (
        2,
        4,
        3,
        2048,
    )
    assert t.tribunal.weights.model_dump() == {"veritas": 0.40, "sophia": 0.30, "dike": 0.30}
    assert t.tribunal.approval_threshold == 0.70
    assert len(t.data.categories) == 12


def edit(project: Path, file: str, old: str, new: str) -> None:
    path = project / "data" / "training" / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        (
            "training_config.yaml",
            "\nlearning_rate:",
            "\nlerning_rate:",
            ["training_config.yaml", "'lerning_rate'", "'learning_rate'"],
        ),
        ("lora_config.yaml", "lora_alpha:", "alpha_lora:", ["lora_config.yaml", "'alpha_lora'", "'lora_alpha'"]),
        ("training_config.yaml", "  judge_floor:", "  judge_flor:", ["'tribunal.judge_flor'", "'judge_floor'"]),
        ("training_config.yaml", "veritas: 0.40", "veritas: 0.50", ["tribunal", "add up to 1.1"]),
        (
            "training_config.yaml",
            "conditional_threshold: 0.50",
            "conditional_threshold: 0.90",
            ["conditional_threshold", "above"],
        ),
        ("training_config.yaml", "num_train_epochs: 3", "num_train_epochs: three", ["num_train_epochs", "three"]),
        ("training_config.yaml", "num_train_epochs: 3", "num_train_epochs: 0", ["num_train_epochs"]),
        ("training_config.yaml", "seed: 42", "seed: 42\nseed: 43", ["'seed'", "twice"]),
        ("training_config.yaml", "seed: 42", "seed: [42", ["not valid YAML"]),
        ("training_config.yaml", "learning_rate: 2.0e-4", "learning_rate: .nan", ["learning_rate"]),
        ("lora_config.yaml", "r: 64 ", "r: 0 ", ["lora_config.yaml", "r ="]),
    ],
)
def test_a_mistake_names_file_and_key(project: Path, file: str, old: str, new: str, said: list[str]):
    edit(project, file, old, new)
    with pytest.raises(ConfigError) as caught:
        load_config(Project(project))
    assert caught.value.exit_code == 2
    assert all(part in str(caught.value) for part in said), str(caught.value)


def test_options_win_over_files_and_editing_changes_the_digest(project: Path):
    before = load_config(Project(project))
    assert load_config(Project(project), {"training.num_train_epochs": 7, "lora.r": 8}).training.num_train_epochs == 7
    assert load_config(Project(project), {"training.num_train_epochs": None}) == before
    edit(project, "training_config.yaml", "learning_rate: 2.0e-4", "learning_rate: 1.0e-4")
    assert load_config(Project(project)).digest() != before.digest()


def test_settings_that_do_not_reach_the_adapter_leave_the_digest_alone(project: Path):
    before = load_config(Project(project))
    edit(project, "training_config.yaml", "answers: 6", "answers: 2")
    after = load_config(Project(project))
    assert after != before
    assert after.digest() == before.digest()


def test_the_resolved_configuration_survives_json():
    config = load_config(Project(ROOT))
    assert Config.model_validate_json(config.model_dump_json()) == config


def test_a_missing_project_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="noesis init"):
        find_project()
