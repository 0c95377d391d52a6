"""The folder of a reward model that `noesis tribunal train-judge` made, `reward:PATH`; torch-free.

judge.json                what it is, what it was trained on and by which figures it was chosen
reward_head.safetensors   `weight`, (1, H)
bag_of_words.safetensors  what it has to beat: a bag of words trained on the same pairs
adapter_model.safetensors, adapter_config.json   PEFT's, where it has an adapter
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from noesis.core.console import command
from noesis.core.errors import ModelError
from noesis.core.files import sha256_file, sha256_json
from noesis.core.i18n import _
from noesis.core.jsonl import read_json_file
from noesis.core.machine.folders import expanded
from noesis.core.rooted import guard
from noesis.llm.embedded import EMBEDDED, Model
from noesis.llm.hub import find_local_model, is_gguf_file, is_hub_name

JUDGE_FILE, HEAD_FILE, WORDS_FILE = "judge.json", "reward_head.safetensors", "bag_of_words.safetensors"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
LARGEST_RECORD = 1 << 20  # bytes of judge.json, and of each small file: a head 100,000 wide has 400,000


class JudgeRecord(BaseModel):
    """judge.json; fields that say more about the training are kept as they are.

    base, base_revision: the model that it sits on, by name (a file's or folder's without its place) and digest
    layers: of the base that are computed; None: all
    pool: the state of the last token, or the mean over the answer's
    files: SHA-256 of each other file, by name
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    format: Literal[1]
    name: str = Field(min_length=1, max_length=100)
    base: str = Field(min_length=1, max_length=300)
    base_revision: str = Field(max_length=100)
    layers: int | None = Field(default=None, ge=1)
    pool: Literal["last", "mean"]
    files: dict[str, str]
    licence: str = ""
    trained_on: dict[str, Any] = {}


@dataclass(frozen=True)
class JudgeFolder:
    """A reward model's folder, whose files are those that its record names."""

    path: Path
    record: JudgeRecord

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter changes the base; else the head reads the base's own states."""
        return ADAPTER_FILES[0] in self.record.files

    @property
    def words(self) -> Path | None:
        """The file of the bag of words that it has to beat."""
        return self.path / WORDS_FILE if WORDS_FILE in self.record.files else None

    @property
    def identity(self) -> str:
        """What calibrations and the reply cache know it by: the same for the same weights on the same base."""
        r = self.record
        return f"reward:{sha256_json([r.files, r.base_revision, r.pool, r.layers])[:24]}"


def read_judge_folder(path: Path) -> JudgeFolder:
    """The reward model in folder `path`.

    Raises:
        ModelError: it is none, or a file is not the one that its record names. UnsafePathError: it holds a link.
    """
    guard(path)
    file = path / JUDGE_FILE
    if not file.is_file():
        raise ModelError(
            _(
                "{path} is no reward model: {judge_file} is missing; make one with  {command}",
                path=path,
                judge_file=JUDGE_FILE,
                command=command("tribunal", "train-judge"),
            )
        )
    if file.stat().st_size > LARGEST_RECORD:
        raise ModelError(
            _(
                "{file} has more than {largest_record:,} bytes: fetch the reward model again",
                file=file,
                largest_record=LARGEST_RECORD,
            )
        )
    try:
        record = JudgeRecord.model_validate(read_json_file(file, constants=False))
    except (ValidationError, ValueError) as error:
        what = error.errors()[0]["loc"] if isinstance(error, ValidationError) else error
        raise ModelError(
            _("{file} is not the record of a reward model ({what}): fetch it again", file=file, what=what)
        ) from None
    allowed = {HEAD_FILE, WORDS_FILE, *ADAPTER_FILES}
    if HEAD_FILE not in record.files or not record.files.keys() <= allowed:
        raise ModelError(_("{file} names other files than those of a reward model: fetch it again", file=file))
    if big := [name for name in (HEAD_FILE, WORDS_FILE) if _size(path / name) > LARGEST_RECORD]:
        raise ModelError(
            _(
                "{path} has more than {largest_record:,} bytes: fetch the reward model again",
                path=path / big[0],
                largest_record=LARGEST_RECORD,
            )
        )
    for name, digest in record.files.items():
        if not (path / name).is_file() or sha256_file(path / name) != digest:
            raise ModelError(
                _(
                    "{path} is missing or was changed since {judge_file} was written: fetch it again",
                    path=path / name,
                    judge_file=JUDGE_FILE,
                )
            )
    return JudgeFolder(path, record)


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def split_name(name: str) -> tuple[Path, str | None] | None:
    """(folder, base) of `PATH` or `PATH@BASE`, where PATH is the folder of a reward model; None where it is none."""
    path, _, base = name.rpartition("@")
    for folder, own in ((expanded(name), None), (expanded(path), base)):
        if (folder / JUDGE_FILE).is_file() and (own is None or path):
            return folder, own
    return None


def find_judges_base(judge: JudgeFolder, base: str | None = None) -> Model:
    """The base of a reward model, on this machine; nothing is downloaded because a stranger's file names it.

    Args:
        base: where it is; None: as the record names it, a file or folder beside the reward model or in the working
            directory.

    Raises:
        ModelError: it is not here, or it is another one.
    """
    name = base or judge.record.base
    beside = [path for path in (expanded(name), judge.path / name, judge.path.parent / name) if path.exists()]
    if not beside and is_gguf_file(name):
        raise ModelError(
            _("the base of {path} is the file {name}: name it, as reward:{path}@FILE.gguf", path=judge.path, name=name)
        )
    if not beside and not is_hub_name(name) and name != EMBEDDED:
        raise ModelError(
            _("the base of {path} is the folder {name}: name it, as reward:{path}@FOLDER", path=judge.path, name=name)
        )
    found = find_local_model(str(beside[0]) if beside else name)
    if found is None:
        raise ModelError(
            _(
                "the base of {path}, {name}, is not on this machine: fetch it with  hf download {name}",
                path=judge.path,
                name=name,
            )
        )
    if found.revision != judge.record.base_revision:
        raise ModelError(
            _(
                "{name} here is of revision {revision}; {path} was trained on {base_revision}",
                name=name,
                revision=found.revision,
                path=judge.path,
                base_revision=judge.record.base_revision,
            )
        )
    return found
