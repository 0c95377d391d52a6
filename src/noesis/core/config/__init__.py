"""The two YAML files as frozen models: `data/training/lora_config.yaml` and `data/training/training_config.yaml`.

People write sparse YAML; each run writes its resolved configuration to `config.json`. Unknown keys are refused with the
nearest known one, and so are contradictions between the files. Command-line options arrive as `overrides`.
"""

from __future__ import annotations

from noesis.core.config.loading import load_config
from noesis.core.config.models import Config, LoraFile, SaveEvery, TrainingFile
from noesis.core.config.sections import (
    JUDGE_CALLS,
    BudgetSection,
    ConstitutionalSection,
    DataSection,
    DemoSection,
    DpoSection,
    GgufSection,
    JudgeTrainingSection,
    JudgeWeights,
    ModalSection,
    Price,
    Quantization,
    ReplaySection,
    RewardSection,
    StrengthSection,
    TribunalSection,
)

__all__ = [
    "JUDGE_CALLS",
    "BudgetSection",
    "Config",
    "ConstitutionalSection",
    "DataSection",
    "DemoSection",
    "DpoSection",
    "GgufSection",
    "JudgeTrainingSection",
    "JudgeWeights",
    "LoraFile",
    "ModalSection",
    "Price",
    "Quantization",
    "ReplaySection",
    "RewardSection",
    "SaveEvery",
    "StrengthSection",
    "TrainingFile",
    "TribunalSection",
    "load_config",
]
