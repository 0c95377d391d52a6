"""Examples that a person writes on the served page, added to the project's hand-written ones.

What arrives is hostile: only the fields of a record are taken, each line passes the checks of `noesis data validate`
before it is written, and neither an example nor the file grows without bound.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from noesis.constitution.document import load_constitution
from noesis.core.config import load_config
from noesis.core.errors import DataError, UsageError
from noesis.core.files import append_line, sha256_json
from noesis.core.i18n import _
from noesis.core.jsonl import iter_lines
from noesis.core.project import Project
from noesis.dataset.checks.line import Rules, check_line

FILE = "from_page.jsonl"
FIELDS = (  # in the order in which they are written, after the id
    "language", "category", "prompt", "turns", "response_initial", "critique", "response_revised", "reasoning",
    "values_applied", "difficulty",
)  # fmt: skip
MAX_EXAMPLE, MAX_FILE = 200_000, 20_000_000  # bytes


class PageExamples:
    """One project's examples from the page."""

    def __init__(self, project: Project) -> None:
        """Read what examples may name.

        Raises:
            ConstitutionError, ConfigError: the project's own files are wrong.
        """
        self._project = project
        self._constitution = load_constitution(project.constitution)
        categories = load_config(project).training.data.categories
        values = tuple(sorted(self._constitution.value_ids))
        self._rules = Rules(values, self._constitution.principle_ids, categories)

    @property
    def place(self) -> Path:
        """The folder whose subfolders, one a language, hold the files."""
        return self._project.training

    def choices(self) -> dict[str, Any]:
        """The languages, values (id and a name in each language) and categories that an example may name."""
        languages = self._constitution.languages
        values = [{"id": v.id, "names": {code: v[code].name for code in languages}} for v in self._constitution.values]
        return {"languages": languages, "values": values, "categories": list(self._rules.categories)}

    def add(self, record: dict[str, Any]) -> dict[str, Any]:
        """Check a record without its id, and append it to the file of its language.

        Returns:
            `file`, `id`, and `warnings` that a person should look at.

        Raises:
            DataError: it must not be trained on. UsageError: it is saved already, or there is no more room.
        """
        if unknown := sorted(record.keys() - set(FIELDS)):
            raise DataError(_("an example from the page has no field {unknown!r}", unknown=unknown[0][:80]))
        row = {name: record[name] for name in FIELDS if record.get(name) not in (None, [])}
        try:
            name = f"page_{sha256_json(row)[:12]}"
            line = json.dumps({"id": name} | row, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError):
            raise DataError(_("the example holds half a character, or a number that is none: write it anew")) from None
        if len(line) > MAX_EXAMPLE:
            raise DataError(_("the example has more than {max_example:,} bytes: shorten it", max_example=MAX_EXAMPLE))
        example, findings = check_line(line, self._rules, hand_written=True)
        if example is None:
            raise DataError("; ".join(finding.message for finding in findings if not finding.warning))
        if example.language not in (languages := self._constitution.languages):
            spoken = " and ".join(languages)
            raise DataError(
                _(
                    "language {language!r}: the project's constitution speaks {spoken} only",
                    language=example.language,
                    spoken=spoken,
                )
            )
        file = self._project.sources(example.language)[0] / FILE
        self._require_new(file, example.id)
        append_line(file, line.decode())
        return {"file": str(file), "id": example.id, "warnings": [finding.message for finding in findings]}

    @staticmethod
    def _require_new(file: Path, name: str) -> None:
        if not file.exists():
            return
        if file.stat().st_size > MAX_FILE:
            raise UsageError(
                _(
                    "{file} has more than {max_file:,} bytes: move its examples to other files",
                    file=file,
                    max_file=MAX_FILE,
                )
            )
        for line in iter_lines(file):
            if f'"{name}"'.encode() in line.data:
                raise UsageError(_("this example is saved already, in {file}", file=file))
            if not line.data.endswith(b"\n"):
                raise UsageError(_("the last line of {file} does not end in a line break: add one", file=file))
