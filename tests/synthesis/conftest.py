"""Fixtures of the synthesis tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def prompts(tmp_path: Path):
    def write(rows: list[dict]) -> Path:
        file = tmp_path / "prompts.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return file

    return write
