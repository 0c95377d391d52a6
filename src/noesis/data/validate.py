"""`noesis data validate [PATHS]`: stream JSONL files, report by file and line, summary last.

Errors are what must not be trained on. Users' own files with the nine required fields load as they are.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from noesis.constitution.document import Constitution
from noesis.data.record import ALIASES, Record
from noesis.data.text import CONTROL_TOKEN, PLACEHOLDER, invisible, normalised
from noesis.errors import UsageError

MAX_LINE = 4_000_000  # characters; a longer line is reported, not parsed
TEXT_FIELDS = ("prompt", "response_initial", "critique", "response_revised", "reasoning")
JUDGES = ("[VERITAS]", "[SOPHIA]", "[DIKE]")


@dataclass(frozen=True)
class Problem:
    """Something wrong with one line."""

    file: str
    line: int
    code: str
    message: str
    severity: str = "error"

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.severity}: {self.message} [{self.code}]"


@dataclass
class Report:
    """What validation found."""

    files: int = 0
    rows: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)  # the rows without an error, in order
    problems: list[Problem] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=lambda: {k: Counter() for k in ("language", "category", "difficulty", "value", "stance")})

    @property
    def errors(self) -> list[Problem]:
        return [p for p in self.problems if p.severity == "error"]

    @property
    def warnings(self) -> list[Problem]:
        return [p for p in self.problems if p.severity == "warning"]

    def summary(self) -> dict[str, Any]:
        """The report as JSON would hold it."""
        return {
            "files": self.files,
            "rows": self.rows,
            "valid": len(self.records),
            "errors": len(self.errors),
            "warnings": len(self.warnings),
            "problems": [vars(p) for p in self.problems],
            "counts": {name: dict(sorted(counter.items())) for name, counter in self.counts.items()},
        }


def find_files(paths: list[Path]) -> list[Path]:
    """JSONL files named by `paths`: files as they are, folders by their `*.jsonl`, sorted.

    Raises:
        UsageError: a path does not exist, or a folder holds no JSONL file.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_file():
            files.append(path)
        elif path.is_dir():
            inside = sorted(path.glob("*.jsonl"))
            if not inside:
                raise UsageError(f"{path} holds no .jsonl file: put examples there, one JSON object a line")
            files.extend(inside)
        else:
            raise UsageError(f"{path} does not exist: name a .jsonl file or a folder of them")
    return files


def validate(paths: list[Path], constitution: Constitution, categories: tuple[str, ...]) -> Report:
    """Check every line of every file.

    Args:
        categories: the known ones; another is a warning, since categories are configuration.
    """
    report = Report()
    seen: dict[tuple[str, str], str] = {}
    prompts: dict[str, str] = {}
    for file in find_files(paths):
        report.files += 1
        for number, line in _lines(file):
            report.rows += 1
            found = list(_check_line(line, constitution, categories))
            record = found.pop() if found and isinstance(found[-1], dict) else None
            problems = [Problem(str(file), number, *p) for p in found if isinstance(p, tuple)]
            if isinstance(record, dict):
                problems += _check_against_others(record, f"{file}:{number}", seen, prompts, str(file), number)
            report.problems += problems
            if isinstance(record, dict) and not any(p.severity == "error" for p in problems):
                report.records.append(record)
                _count(report, record)
    return report


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered non-empty lines, never more than MAX_LINE of one in memory."""
    with open(file, "rb") as f:
        number = 0
        while line := f.readline(MAX_LINE + 1):
            number += 1
            while len(line) > MAX_LINE and not line.endswith(b"\n"):
                if not (rest := f.readline(MAX_LINE)):
                    break
                if rest.endswith(b"\n"):
                    break
            if line.strip():
                yield number, line


Finding = tuple[str, str] | tuple[str, str, str] | dict[str, Any]


def _check_line(line: bytes, constitution: Constitution, categories: tuple[str, ...]) -> Iterator[Finding]:
    """Problems as (code, message[, severity]); last, if the line is a record, the record itself."""
    if len(line) > MAX_LINE:
        yield "too-long", f"the line is longer than {MAX_LINE:,} bytes"
        return
    try:
        row = json.loads(line.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        yield "not-utf8", f"not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}; save the file as UTF-8"
        return
    except (ValueError, RecursionError) as error:
        yield "not-json", f"not JSON: {error if not isinstance(error, RecursionError) else 'nested too deeply'}"
        return
    if not isinstance(row, dict):
        yield "not-an-object", f"expected a JSON object, found {type(row).__name__}"
        return
    if "messages" in row and "prompt" not in row:
        yield (
            "messages-row",
            "a chat row (`messages`): it has no weak answer and no critique; write it as a record with prompt, response_initial, critique, response_revised",
        )
        return
    wrong = list(_check_fields(row))
    yield from wrong
    if wrong:
        return
    yield from _check_content(row, constitution, categories)
    yield row


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _check_fields(row: dict[str, Any]) -> Iterator[Finding]:
    try:
        Record.model_validate(row)
    except ValidationError as error:
        for item in error.errors()[:5]:
            name = ".".join(str(part) for part in item["loc"]) or "record"
            if item["type"] == "missing":
                other = next((k for k in row if ALIASES.get(k) == name), None)
                yield "missing-field", f"the field {name!r} is missing" + (f"; {other!r} is there: rename it" if other else "")
            elif item["type"] == "extra_forbidden":
                if ALIASES.get(name) not in row and name in ALIASES:
                    continue  # already said with the missing field
                yield "unknown-field", f"unknown field {name!r}"
            else:
                yield "bad-field", f"{name}: {item['msg'].removeprefix('Value error, ')}"


def _check_content(row: dict[str, Any], constitution: Constitution, categories: tuple[str, ...]) -> Iterator[Finding]:
    texts = [(name, row[name]) for name in TEXT_FIELDS]
    texts += [(f"turns[{i}]", turn["content"]) for i, turn in enumerate(row.get("turns") or [])]
    for name, text in texts:
        if match := CONTROL_TOKEN.search(text):
            yield "forged-turn", f"{name} holds {match.group()!r}, a control token of chat templates: it would forge a turn"
        if match := PLACEHOLDER.search(text):
            yield "placeholder", f"{name} holds the unfilled placeholder {match.group()!r}"
        if character := invisible(text):
            yield "invisible", f"{name} holds an invisible character ({character})"
    if normalised(row["response_initial"]) == normalised(row["response_revised"]):
        yield "no-revision", "response_revised says the same as response_initial"
    if row["category"] == "tribunal" and (absent := [judge for judge in JUDGES if judge not in row["critique"]]):
        yield "judges", f"a tribunal example's critique needs a paragraph of each judge; missing: {', '.join(absent)}"
    for value in row["values_applied"]:
        if value not in constitution.value_ids:
            yield "unknown-value", f"values_applied names {value!r}; the constitution has {', '.join(sorted(constitution.value_ids))}"
    for principle in row.get("principles") or []:
        if principle not in constitution.principle_ids:
            yield "unknown-principle", f"principles names {principle!r}, which the constitution does not have"
    if row["category"] not in categories:
        yield "unknown-category", f"category {row['category']!r} is not in training_config.yaml (data.categories)", "warning"


def _check_against_others(
    record: dict[str, Any], here: str, seen: dict[tuple[str, str], str], prompts: dict[str, str], file: str, number: int
) -> list[Problem]:
    problems = []
    key = (record["id"], record.get("language", "pt"))
    if key in seen:
        problems.append(Problem(file, number, "duplicate-id", f"the id {key[0]!r} ({key[1]}) was already used at {seen[key]}"))
    seen.setdefault(key, here)
    turns = " ".join(turn["content"] for turn in record.get("turns") or [])
    prompt = normalised(turns + " " + record["prompt"])
    if prompt in prompts:
        problems.append(Problem(file, number, "duplicate-prompt", f"the same prompt stands at {prompts[prompt]}"))
    prompts.setdefault(prompt, here)
    return problems


def _count(report: Report, record: dict[str, Any]) -> None:
    report.counts["language"][record.get("language", "pt")] += 1
    report.counts["category"][record["category"]] += 1
    report.counts["difficulty"][record["difficulty"]] += 1
    report.counts["stance"][record.get("stance") or "unlabelled"] += 1
    for value in record["values_applied"]:
        report.counts["value"][value] += 1
