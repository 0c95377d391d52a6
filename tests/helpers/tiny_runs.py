"""Small settings, rows and runs of a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from helpers.project import ROOT
from noesis.constitution.document import load_constitution
from noesis.core.config import Config, load_config
from noesis.core.project import Project
from noesis.dataset.encode import training_rows
from noesis.dataset.schema import Example
from noesis.llm.row_encoder import open_encoder
from noesis.llm.token_rows import TokenRow

CONSTITUTION = load_constitution(ROOT / "data" / "constitution.yaml")


def small(**overrides: object) -> Config:
    base = {"lora.r": 4, "lora.lora_alpha": 8, "training.num_train_epochs": 1, "training.learning_rate": 1e-2}
    return load_config(Project(ROOT), base | overrides)


PLAIN = {
    "lora.quantization.bnb_4bit_quant_type": "fp4"
}  # what the engine does not know is trained by transformers' own layers


def examples(count: int, record: dict) -> list[Example]:
    rows = [record | {"id": f"x_{i:03}", "prompt": f"Pergunta {i}: o que é a coragem?"} for i in range(count)]
    return [Example.from_json(row) for row in rows]


def rows_of(folder: Path, count: int, record: dict) -> list[TokenRow]:
    return training_rows(
        examples(count, record), open_encoder(folder), CONSTITUTION, include_critique=False, max_length=2048
    )


OVERRIDES = {
    "lora.r": 4,
    "lora.lora_alpha": 8,
    "training.num_train_epochs": 1,
    "max_examples": 8,
    "training.tribunal.answers": 2,
    "training.tribunal.max_new_tokens": 8,
    "training.tribunal.kept_items": 9,
    "training.strength.grid": (0.5, 1.0),
    "training.strength.pairs": 4,
    "training.strength.items": 4,
    "training.strength.answers": 2,
    "training.strength.answer_tokens": 8,
}


def run_all(project: Project, model: Path, path: Path, **overrides: object):
    from noesis.pipeline import registry
    from noesis.pipeline.start_run import from_sources, start_run

    config = load_config(
        project, OVERRIDES | {"training.model": str(model), "training.data.language": "en"} | overrides
    )
    s = start_run(project, config, path, from_sources(project, config))
    registry.run_all(s, registry.PipelineOptions(project))
    return s


def toy_tribunal(root: Path) -> None:
    """A suite of 24 short prompts in place of the project's, six of them scored by code."""
    folder = root / "data" / "tribunal" / "prompts"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows = [
        {
            "id": f"m{i}",
            "category": "maieutics",
            "language": "en",
            "split": "dev",
            "kind": "x",
            "prompt": f"What is {i}?",
            "reference": "r",
        }
        for i in range(22)
    ]
    rows += [
        {**rows[0], "id": f"d{i}", "category": "discipline", "check": {"type": "max_words", "count": 3}}
        for i in range(2)
    ]
    (folder / "toy.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
