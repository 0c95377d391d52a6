"""The cards of a data set on the Hub: README.md with the Hub's front matter, and croissant.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noesis.core.text import counted
from noesis.release.hub.croissant import CONFORMS_TO, CONTEXT, described

PARTS = {
    "train": ("train.jsonl", "The examples that were trained on."),
    "eval": ("eval.jsonl", "The examples that were held out."),
}
ABOUT = (
    "Examples for constitutional fine-tuning: a question, a weak answer, what is wrong with it, and a better answer."
)


@dataclass(frozen=True)
class DatasetCard:
    """What the cards say.

    repo: the data set's name on the Hub
    folder: with the files of PARTS
    licence: its id on the Hub, such as cc-by-4.0; None: none is given
    languages: ISO 639-1
    examples: how many are trained on, how many held out
    """

    repo: str
    folder: Path
    licence: str | None
    languages: tuple[str, ...]
    examples: tuple[int, int]
    dataset_sha256: str
    constitution_sha256: str

    def readme(self) -> str:
        """Markdown with the Hub's front matter."""
        trained, held_out = self.examples
        return "\n".join(
            [
                "---",
                *([f"license: {self.licence}"] if self.licence else []),
                f"language: [{', '.join(self.languages)}]",
                "task_categories: [text-generation]",
                "configs:",
                "- config_name: default",
                "  data_files:",
                "  - {split: train, path: train.jsonl}",
                "  - {split: test, path: eval.jsonl}",
                "---",
                "",
                f"# {self.repo.rpartition('/')[2]}",
                "",
                f"{ABOUT} {counted(trained, 'example')} to train on, {held_out} held out; the constitution that they",
                "serve is constitution.yaml. The fields are described in croissant.json.",
                "",
                "| | |",
                "|---|---|",
                f"| examples | sha256 {self.dataset_sha256[:16]} |",
                f"| constitution | sha256 {self.constitution_sha256[:16]} |",
                "",
                "`response_initial` is the weak answer: not to be trained on.",
                *([] if self.licence else ["", "No licence is given: ask before you use it."]),
                "",
            ]
        )

    def croissant(self) -> str:
        """JSON-LD."""
        licence = {"license": self.licence} if self.licence else {}
        card: dict[str, Any] = {
            "@context": CONTEXT,
            "@type": "sc:Dataset",
            "conformsTo": CONFORMS_TO,
            "name": self.repo.rpartition("/")[2],
            "description": ABOUT,
            **licence,
            "version": self.dataset_sha256[:16],
            "inLanguage": list(self.languages),
            "isLiveDataset": False,
            **described(self.folder, PARTS),
        }
        return json.dumps(card, ensure_ascii=False, indent=2) + "\n"
