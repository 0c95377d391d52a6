"""What a model was made from: `noesis.json` next to the merged weights, and the metadata of its GGUF files."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from noesis.core.errors import ModelError
from noesis.core.files import write_text
from noesis.core.i18n import _
from noesis.core.jsonl import read_json_file
from noesis.llm.hub import is_hub_name

FILE_NAME = "noesis.json"


@dataclass(frozen=True)
class Provenance:
    """Base, data and constitution of a model. It is shown, never acted upon; an empty string is unknown."""

    noesis: str = ""  # version
    base: str = ""  # Hub id, a folder, or what a GGUF file calls itself
    base_revision: str = ""
    base_lineage: str = ""  # of a GGUF file: its quantisation, and what that was made from
    licence: str = ""
    dataset_sha256: str = ""
    constitution_sha256: str = ""
    config_sha256: str = ""
    adapter_sha256: str = ""
    system_prompt: str = ""  # in the language the model was trained in
    system_prompt_pt: str = ""
    system_prompt_en: str = ""

    @property
    def base_url(self) -> str | None:
        """The base's page on the Hub; None for a base that is a folder."""
        return f"https://huggingface.co/{self.base}" if is_hub_name(self.base) else None

    def to_json(self) -> dict[str, str]:
        """The known fields, in order."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name))}

    @classmethod
    def from_json(cls, raw: Any) -> Provenance:
        """Read untrusted JSON: unknown keys and values that are not strings are left out."""
        given = raw if isinstance(raw, dict) else {}
        return cls(**{f.name: given[f.name] for f in fields(cls) if isinstance(given.get(f.name), str)})

    def save(self, folder: Path) -> None:
        """Write `noesis.json` into a model folder."""
        write_text(folder / FILE_NAME, json.dumps(self.to_json(), ensure_ascii=False, indent=2))


def read_provenance(model: Path) -> Provenance:
    """The `noesis.json` of a model folder; an empty Provenance where there is none.

    Raises:
        ModelError: the file is not JSON.
    """
    file = model / FILE_NAME
    if not file.is_file():
        return Provenance()
    try:
        return Provenance.from_json(read_json_file(file, constants=False))
    except ValueError:
        raise ModelError(_("{file} is damaged (no JSON object): merge again, or remove it", file=file)) from None


def write_metadata(writer: Any, provenance: Provenance, *, default_licence: str = "") -> None:
    """Add licence, base and the `noesis.*` keys to a GGUFWriter.

    Args:
        default_licence: used where the provenance names none.
    """
    writer.add_license(provenance.licence or default_licence)
    if provenance.base:
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, provenance.base)
        writer.add_base_model_version(0, provenance.base_revision)
        if provenance.base_url is not None:
            writer.add_base_model_repo_url(0, provenance.base_url)
    for key, value in provenance.to_json().items():
        writer.add_string(f"noesis.{key}", value)
