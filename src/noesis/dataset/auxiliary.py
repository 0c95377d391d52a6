"""What training takes besides the examples: a file of preference pairs, and general instruction rows that are replayed. Both are the user's.

`dpo.pairs` of training_config.yaml, a JSON object a line:  {"id", "language", "prompt", "turns"?, "chosen", "rejected", "p_chosen": 0.5 to 1}
(`noesis constitution prefer` writes such a file; what else a line holds is kept beside it and not read).
`replay.file`:  {"prompt", "response", "system"?}  or  {"messages": [{"role", "content"}, …, the assistant's answer last]}
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from noesis.core.config import Config
from noesis.core.console import say
from noesis.core.errors import DataError, UsageError
from noesis.core.files import sha256_json
from noesis.core.project import Project
from noesis.core.text import normalised
from noesis.dataset.jsonl import MAX_LINE, FileChunk, lines
from noesis.dataset.schema import Turn

Records = list[dict[str, Any]]
Text = Annotated[str, Field(min_length=1)]


class _Row(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class PairRow(_Row):
    """Two answers to one prompt, and how likely the first is the better one."""

    id: Text
    language: Literal["pt", "en"] = "pt"
    prompt: Text
    turns: list[Turn] | None = None
    chosen: Text
    rejected: Text
    p_chosen: Annotated[float, Field(ge=0.5, le=1, allow_inf_nan=False)]

    @model_validator(mode="after")
    def _differ(self) -> PairRow:
        if self.chosen.strip() == self.rejected.strip():
            raise ValueError("chosen and rejected are the same answer")
        return self


class Message(_Row):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text


class ReplayRow(_Row):
    """A conversation whose last message is the assistant's."""

    messages: Annotated[list[Message], Field(min_length=2)]

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and "messages" not in raw and {"prompt", "response"} <= raw.keys():
            named = (("system", raw.get("system")), ("user", raw["prompt"]), ("assistant", raw["response"]))
            return {"messages": [{"role": role, "content": text} for role, text in named if text is not None]}
        return raw

    @model_validator(mode="after")
    def _order(self) -> ReplayRow:
        roles = [m.role for m in self.messages]
        spoken = roles[roles[0] == "system" :]
        if len(spoken) % 2 or any(role != ("user", "assistant")[i % 2] for i, role in enumerate(spoken)):
            raise ValueError("after an optional system message, user and assistant must alternate, the assistant last")
        return self


R = TypeVar("R", PairRow, ReplayRow)


def read_pairs(file: Path, held_out: Records) -> Records:
    """The pairs of a file, checked.

    Args:
        held_out: examples whose prompts must not be trained on.

    Raises:
        UsageError: there is no such file. DataError: naming file and line.
    """
    kept = {normalised(record["prompt"]) for record in held_out}
    seen: dict[tuple[str, str], str] = {}
    rows = []
    for place, row in _read(file, PairRow, "dpo.pairs"):
        if normalised(row.prompt) in kept:
            raise DataError(
                f"{place}: its prompt is that of a held-out example, on which nothing may be trained; take the pair out"
            )
        if (before := seen.setdefault((row.id, row.language), place)) != place:
            raise DataError(f"{place}: the id {row.id!r} is used at {before} too")
        rows.append(row.model_dump(mode="json", exclude_none=True))
    return rows


def read_replay(file: Path) -> Records:
    """The conversations of a file, checked: {"messages": […]} each.

    Raises:
        UsageError: there is no such file. DataError: naming file and line.
    """
    return [row.model_dump(mode="json") for _, row in _read(file, ReplayRow, "replay.file")]


def sample_replay(rows: Records, examples: int, share: float, seed: int) -> Records:
    """So many of `rows` that they are `share` of all rows beside `examples`; the same ones for the same seed, all of them where there are too few."""
    wanted = round(examples * share / (1 - share))
    if len(rows) < wanted:
        say(f"  replay: {wanted} rows would be {share:.0%}, the file holds {len(rows)}: all of them are used")
    return sorted(rows, key=lambda r: hashlib.sha256(f"{seed}:{json.dumps(r, sort_keys=True)}".encode()).hexdigest())[
        :wanted
    ]


def load_auxiliary(project: Project, config: Config, train: Records, held_out: Records) -> dict[str, Records]:
    """What a run with this configuration takes besides its examples, by the name of its file in the run's data: `pairs`, `replay`.

    Raises:
        UsageError: a file is not there. DataError: a line of it is wrong.
    """
    t = config.training
    found: dict[str, Records] = {}
    if t.method != "sft" and t.dpo.pairs is not None:
        found["pairs"] = read_pairs(project.root / t.dpo.pairs, held_out)
    if t.method != "dpo" and t.replay.file is not None:
        found["replay"] = sample_replay(read_replay(project.root / t.replay.file), len(train), t.replay.share, t.seed)
    return found


def read_auxiliary(folder: Path) -> dict[str, Records]:
    """What `besides` found, read again from a run's data folder and checked."""
    found: dict[str, Records] = {}
    if (folder / "pairs.jsonl").is_file():
        found["pairs"] = read_pairs(folder / "pairs.jsonl", [])
    if (folder / "replay.jsonl").is_file():
        found["replay"] = read_replay(folder / "replay.jsonl")
    return found


def data_hash(train: Records, held_out: Records, more: dict[str, Records]) -> str:
    """Of all that a run takes."""
    return sha256_json([train, held_out, more] if more else [train, held_out])


def _read(file: Path, model: type[R], key: str) -> list[tuple[str, R]]:
    if not file.is_file():
        raise UsageError(
            f"{file} is missing, which {key} in training_config.yaml names: put it there, or set {key} to null"
        )
    rows = []
    for number, _, line in lines(FileChunk(file, 0, file.stat().st_size)):
        place = f"{file}:{number + 1}"
        if len(line) > MAX_LINE:
            raise DataError(f"{place}: longer than {MAX_LINE:,} bytes")
        try:
            rows.append((place, model.model_validate(json.loads(line.removeprefix(b"\xef\xbb\xbf")))))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise DataError(
                f"{place}: {where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}"
            ) from None
        except ValueError as error:
            raise DataError(f"{place}: not JSON ({error})") from None
    if not rows:
        raise DataError(f"{file} holds no line, and {key} in training_config.yaml names it")
    return rows
