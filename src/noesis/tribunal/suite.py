"""The evaluation suite and the judge benchmark (`data/tribunal/`), read and checked; the seal on their locked parts.

Locked means: its hash is committed in `data/tribunal/locked.json`, nothing is tuned or written by looking at it, and
each use is logged. `noesis tribunal lock` writes the seal; a locked part that no longer fits it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from noesis.core.console import command
from noesis.core.errors import DataError, UsageError
from noesis.core.files import sha256_json, write_json
from noesis.core.i18n import _
from noesis.core.jsonl import UniqueIds, jsonl_files, read_models, read_objects
from noesis.core.language import LanguageCode

Part = Literal["dev", "locked", "all"]
Answerable = Literal["answerable", "unanswerable", "false_premise"]
Text = Annotated[str, Field(min_length=1)]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AnswerCheck(_Row):
    """A deterministic requirement on an answer; `code_checks.passes` decides it."""

    type: Literal["language", "json", "items", "max_words", "first_word", "absent", "present"]
    language: LanguageCode | None = None
    keys: tuple[str, ...] = ()
    count: int | None = None
    any_of: tuple[str, ...] = ()
    strings: tuple[str, ...] = ()


class EvalSample(_Row):
    """One prompt of the suite, with what code and judges need to score an answer to it.

    Id, language and prompt are enough for a prompt of one's own: judges score the answers, nothing is held back.
    """

    id: Text
    category: Text = "own"
    language: LanguageCode
    split: Literal["dev", "locked"] = "dev"
    kind: Text = "own"
    prompt: Annotated[str, Field(min_length=3)]
    turns: tuple[str, ...] = ()  # the user's messages in order; the model answers each
    pair: str | None = None
    key: str | None = None
    user_is_right: bool | None = None
    answerable: Answerable | None = None
    harmful: bool | None = None
    check: tuple[AnswerCheck, ...] = ()
    stakeholders: tuple[str, ...] = ()
    traps: tuple[str, ...] = ()
    reference: str = ""

    @model_validator(mode="before")
    @classmethod
    def _one_check_is_a_list(cls, raw: Any) -> Any:
        if isinstance(raw, dict):
            raw = {k: v for k, v in raw.items() if v is not None}
            if isinstance(raw.get("check"), dict):
                raw["check"] = [raw["check"]]
            if isinstance(raw.get("key"), (int, float)) and not isinstance(raw["key"], bool):
                raw["key"] = str(raw["key"])
        return raw

    @property
    def messages(self) -> tuple[str, ...]:
        """The user's messages, in order."""
        return self.turns or (self.prompt,)

    @property
    def cluster(self) -> str:
        """The unit of resampling: partners of a pair are not independent prompts."""
        return min(self.id, self.pair) if self.pair else self.id


class JudgePair(_Row):
    """A minimal pair of the judge benchmark: `bad` is `good` with one mutation, the attack.

    since: the date on which the row joined the benchmark; empty for the first ones
    """

    id: Text
    attack: Text
    language: LanguageCode
    split: Literal["dev", "locked"]
    prompt: Text
    good: Text
    bad: Text
    judges: Annotated[tuple[Literal["veritas", "sophia", "dike"], ...], Field(min_length=1)]
    reference: str = ""
    note: str = ""
    since: str = ""


class TwinAnswers(_Row):
    """An invariance pair: two answers that deserve the same score."""

    id: Text
    kind: Text
    language: LanguageCode
    split: Literal["dev", "locked"]
    prompt: Text
    a: Text
    b: Text
    b_language: LanguageCode | None = None
    b_prompt: str | None = None
    reference: str = ""
    note: str = ""
    since: str = ""


R = TypeVar("R", EvalSample, JudgePair, TwinAnswers)


def read_rows(files: Sequence[Path], model: type[R], part: Part) -> list[R]:
    """The rows of one part in JSONL files, checked.

    Raises:
        DataError: naming file, line and field.
    """
    rows: list[R] = []
    ids = UniqueIds()
    for file in files:
        for place, row in read_models(file, model):
            ids.add(row.id, place)
            if part in ("all", row.split):
                rows.append(row)
    return rows


def read_suite(tribunal: Path, part: Part = "dev") -> list[EvalSample]:
    """The evaluation prompts in `tribunal/prompts`, sorted by file; the locked ones only under their seal.

    Raises:
        UsageError: there is no suite. DataError: a row is wrong, or the locked part was changed.
    """
    files = jsonl_files(tribunal / "prompts")
    if not files:
        raise UsageError(
            _(
                "no evaluation prompts in {tribunal}: copy data/tribunal from the project of Noesis, or write your own",
                tribunal=tribunal / "prompts",
            )
        )
    _require_seal(tribunal, part)
    return read_rows(files, EvalSample, part)


def read_benchmark(tribunal: Path, part: Part = "dev") -> tuple[list[JudgePair], list[TwinAnswers]]:
    """The judge benchmark in `tribunal/judge_bench`: minimal pairs and invariance pairs.

    Raises:
        UsageError: there is none. DataError: a row is wrong, or the locked part was changed.
    """
    folder = tribunal / "judge_bench"
    if not (folder / "pairs.jsonl").is_file():
        raise UsageError(
            _(
                "no judge benchmark: {folder} is missing; "
                "copy data/tribunal from the project of Noesis, or write your own",
                folder=folder / "pairs.jsonl",
            )
        )
    _require_seal(tribunal, part)
    twins = folder / "invariance.jsonl"
    return read_rows([folder / "pairs.jsonl"], JudgePair, part), read_rows(
        [twins], TwinAnswers, part
    ) if twins.is_file() else []


def benchmark_digest(pairs: Sequence[JudgePair], twins: Sequence[TwinAnswers]) -> str:
    """What a calibration belongs to. The first rows have no date and hash as they did when no row had one."""
    return sha256_json([_hashed(pairs), _hashed(twins)])


def _hashed(rows: Sequence[JudgePair] | Sequence[TwinAnswers]) -> list[dict[str, Any]]:
    return [row.model_dump(mode="json", exclude=None if row.since else {"since"}) for row in rows]


def earlier_benchmarks(tribunal: Path, part: Part) -> dict[str, str]:
    """Digest of each earlier state of the benchmark → the date on which it grew. Empty where there is no benchmark."""
    files = [tribunal / "judge_bench" / name for name in ("pairs.jsonl", "invariance.jsonl")]
    if not files[0].is_file():
        return {}
    pairs = read_rows(files[:1], JudgePair, part)
    twins = read_rows([file for file in files[1:] if file.is_file()], TwinAnswers, part)
    return {
        benchmark_digest([p for p in pairs if p.since < date], [t for t in twins if t.since < date]): date
        for date in sorted(({p.since for p in pairs} | {t.since for t in twins}) - {""})
    }


def spread(items: list[EvalSample], count: int | None) -> list[EvalSample]:
    """At most `count` of `items`, evenly spread (they are sorted by category); partners of a pair stay together."""
    if count is None or count >= len(items):
        return items
    chosen: list[EvalSample] = []
    for cluster in in_spread_order(items):
        if len(chosen) + len(cluster) <= count:
            chosen += cluster
    return sorted(chosen, key=items.index)


def in_spread_order(items: Sequence[EvalSample]) -> list[list[EvalSample]]:
    """The clusters of `items` in an order of which any beginning is spread evenly over them."""
    clusters: dict[str, list[EvalSample]] = {}
    for item in items:
        clusters.setdefault(item.cluster, []).append(item)
    members = list(clusters.values())
    return [members[i] for i in sorted(range(len(members)), key=lambda i: i * 0.6180339887 % 1)]


# --- the seal


def seal(tribunal: Path) -> dict[str, str]:
    """The hash of the locked rows of each file under `tribunal` (of their content, not their formatting).

    A file that grew has one more for each earlier state, `FILE before DATE`: what was locked first stays as it was.
    """
    found = {}
    for file in jsonl_files(tribunal, below=True):
        locked = [row for row in read_objects(file) if row.get("split") == "locked"]
        name = file.relative_to(tribunal).as_posix()
        dates = sorted({str(row.get("since", "")) for row in locked})
        for date, following in zip_longest(dates, dates[1:]):
            rows = [row for row in locked if str(row.get("since", "")) <= date]
            found[f"{name} before {following}" if following else name] = sha256_json(rows)
    return found


def write_seal(tribunal: Path) -> dict[str, str]:
    """Write `locked.json`."""
    found = seal(tribunal)
    write_json(tribunal / "locked.json", found)
    return found


def _require_seal(tribunal: Path, part: Part) -> None:
    if part == "dev":
        return
    file = tribunal / "locked.json"
    if not file.is_file():
        raise DataError(
            _(
                "{tribunal} has a locked part without a seal: write it with  {command}  "
                "and commit {file}, "
                "or use --part dev",
                tribunal=tribunal,
                command=command("tribunal", "lock"),
                file=file,
            )
        )
    sealed, found = json.loads(file.read_text(encoding="utf-8")), seal(tribunal)
    for name in sorted(sealed.keys() | found.keys()):
        if sealed.get(name) != found.get(name):
            changed = tribunal / name.partition(" before ")[0]
            raise DataError(
                _(
                    "{changed}: its locked part is not the one that {file} was written for; restore it, "
                    "or seal the new one with  {command}",
                    changed=changed,
                    file=file,
                    command=command("tribunal", "lock"),
                )
            )
