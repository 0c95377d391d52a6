"""The JSON Schema of the two YAML files (https://json-schema.org), which editors complete and check by.

The first line of each file, `# yaml-language-server: $schema=…`, names the schema beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from noesis.core.config.models import LoraFile, TrainingFile
from noesis.core.files import write_json
from noesis.core.project import Project

FileName = Literal["training", "lora"]
MODELS: dict[FileName, type[TrainingFile] | type[LoraFile]] = {"training": TrainingFile, "lora": LoraFile}


def json_schema(name: FileName) -> dict[str, Any]:
    """The schema of `training_config.yaml` or `lora_config.yaml`."""
    draft = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return draft | MODELS[name].model_json_schema() | {"title": f"{name}_config.yaml"}


def write_schemas(project: Project) -> list[Path]:
    """Write both beside the files that they are of."""
    written = []
    for name in MODELS:
        file = project.schema(name)
        write_json(file, json_schema(name))
        written.append(file)
    return written
