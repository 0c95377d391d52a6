"""The data gate as tests call it, and the hand-written examples."""

from __future__ import annotations

import json
from pathlib import Path

from helpers.project import ROOT
from noesis.constitution.document import load_constitution
from noesis.core.config import load_config
from noesis.core.project import Project
from noesis.dataset.checks.validate import validate

PROJECT = Project(ROOT)
CONFIG = load_config(PROJECT)
CONSTITUTION = load_constitution(PROJECT.constitution)
EXAMPLES = [
    json.loads(line)
    for file in sorted((PROJECT.training / "philosophical").glob("*.jsonl"))
    for line in file.read_text(encoding="utf-8").splitlines()
]
BARE = [
    {
        k: r[k]
        for k in (
            "id",
            "category",
            "prompt",
            "response_initial",
            "critique",
            "response_revised",
            "reasoning",
            "values_applied",
            "difficulty",
        )
    }
    for r in EXAMPLES
]


def check(*files: Path, **options):
    return validate(list(files), CONSTITUTION, CONFIG.training.data.categories, **options)


def codes(report) -> set[str]:
    return {p.code for p in report.problems}
