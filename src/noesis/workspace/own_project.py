"""A project for another domain: constitution, settings, examples and Tribunal as drafts in its own language.

Nothing of Noesis's own project comes with it: names, folders and settings are those of the new one.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noesis.core.config.schema import write_schemas
from noesis.core.errors import UsageError
from noesis.core.files import write_text
from noesis.core.i18n import N_, _
from noesis.core.language import CODES
from noesis.core.machine.package_files import package_files
from noesis.core.project import Project
from noesis.core.text import slug_of
from noesis.core.yaml_file import yaml_text
from noesis.workspace.comments import commented
from noesis.workspace.draft_tribunal import draft_tribunal
from noesis.workspace.starter import Starter, filled, read_starter

LONGEST = 200  # characters of a name or domain
HELD_OUT = N_("held out of 124; other counts keep the proportion, and hold out a fifth at most")


@dataclass(frozen=True)
class Purpose:
    """What a project is for: the assistant's name, its domain as it stands in a sentence, its language."""

    name: str
    domain: str
    language: str

    def __post_init__(self) -> None:
        for what, text in (("--name", self.name), ("--domain", self.domain)):
            if not text.strip() or not text.isprintable() or len(text) > LONGEST:
                raise UsageError(
                    _(
                        "{what} {text!r}: give a line of at most {longest} characters",
                        what=what,
                        text=text[:40],
                        longest=LONGEST,
                    )
                )
        if not slug_of(self.name):
            raise UsageError(
                _("--name {name!r} has no Latin letter or digit: it names files and the served model", name=self.name)
            )
        require_language(self.language)


def require_language(code: str) -> None:
    """Refuse what is no language code.

    Raises:
        UsageError: it is none.
    """
    if code not in CODES:
        raise UsageError(_("--language {language!r}: give an ISO 639-1 code, for example pt, en or es", language=code))


def write_own_project(project: Project, purpose: Purpose) -> list[Path]:
    """Write all files of the project and return them."""
    starter, words = read_starter(purpose.language), {"name": purpose.name, "domain": purpose.domain}
    source = Project(package_files())
    examples = project.training / "examples" / purpose.language / "examples.jsonl"
    rows = [{"language": purpose.language} | filled(row, words) for row in starter.examples]
    readme = filled(starter.readme, words | {"examples": examples.relative_to(project.root).as_posix()})
    texts = {
        project.root / "README.md": readme,
        project.constitution: _constitution(starter, purpose, words),
        project.prompt_lists: _prompt_lists(starter, purpose, words),
        project.training_yaml: commented(_settings(source, starter, purpose), purpose.language),
        project.lora_yaml: commented(source.lora_yaml.read_text(encoding="utf-8"), purpose.language),
        examples: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
    }
    for file, text in texts.items():
        write_text(file, text)
    return [*texts, *write_schemas(project), *draft_tribunal(project, purpose.domain)]


def _constitution(starter: Starter, purpose: Purpose, words: dict[str, str]) -> str:
    code = purpose.language
    document = {
        "version": "0.1.0",
        "name": purpose.name,
        "values": [
            {"id": v["id"], "judge": v["judge"], code: {"name": v["name"], "text": v["text"]}} for v in starter.values
        ],
        "principles": [{"id": p["id"], "value": p["value"], code: p["text"]} for p in starter.principles],
        "system_prompt": {code: starter.system_prompt},
    }
    return f"# {starter.comment}\n" + yaml_text(filled(document, words))


def _prompt_lists(starter: Starter, purpose: Purpose, words: dict[str, str]) -> str:
    code = purpose.language

    def entries(prefix: str, texts: tuple[str, ...]) -> list[dict[str, Any]]:
        return [{"id": f"{prefix}-{i}", code: text} for i, text in enumerate(texts, 1)]

    lists = {
        "version": "1",
        "topics": [
            {"id": f"topic-{i}", "category": category, code: text}
            for i, (category, text) in enumerate(starter.topics.items(), 1)
        ],
        "situations": entries("situation", starter.situations),
        "askers": entries("asker", starter.askers),
        "difficulties": {name: {code: text} for name, text in starter.difficulties.items()},
    }
    return yaml_text(filled(lists, words))


def _settings(source: Project, starter: Starter, purpose: Purpose) -> str:
    """training_config.yaml with its comments, and the project's own names, language and categories."""
    slug = slug_of(purpose.name)
    text = source.training_yaml.read_text(encoding="utf-8")
    categories = "".join(f"    - {category}\n" for category in starter.categories)
    for pattern, replacement in (
        (r"(?m)^(output_name: )\S+", rf"\g<1>{slug}-v1"),
        (r"(?m)^(data:\n  language: )\S+ .*$", rf"\g<1>{purpose.language}"),
        (r"(?m)^(  categories: .*\n)(?:    - .*\n)+", rf"\g<1>{categories}"),
        (r"(?m)^  language: .*SmolLM2.*\n", ""),  # of the demo: the project's
        (r"(?m)^(  app: )\S+", rf"\g<1>{slug}-training"),
        (r"(?m)^(  volume: )\S+", rf"\g<1>{slug}-data"),
        (r" # held out of 124.*", f" # {HELD_OUT}"),
    ):
        text, found = re.subn(pattern, replacement, text, count=1)
        assert found, pattern  # the file that comes with Noesis; a test makes a project of it
    return text
