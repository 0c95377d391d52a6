"""manifest.json: what a run is made of, and the state of every stage.

Frozen values: `Run` alone replaces one by the next and writes it. `to_json` and `from_json` are the only places that
know the keys on disk. Format 3 is written; `manifest_file.py` reads all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from noesis.core.errors import UnsafePathError
from noesis.core.files import sha256_json
from noesis.core.i18n import N_, _
from noesis.core.libraries import library_versions
from noesis.core.rooted import below, is_name
from noesis.core.typed import MOST
from noesis.run.ledger import LedgerEntry, total
from noesis.run.stages import downstream_of, needs_of

FORMAT = 3  # raise it when a record gets a new field, or `noesis verify` derives something in another way
Json = dict[str, Any]


@dataclass(frozen=True)
class Identity:
    """What decides the adapter. Two runs with equal identities are the same run."""

    config_sha256: str
    dataset_sha256: str
    constitution_sha256: str
    base_model: str
    revision: str
    parent_sha256: str | None = None  # of the adapter that a fork starts from

    def to_json(self) -> dict[str, str]:
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Identity:
        """Raises: KeyError: a field is missing."""
        parent = value.get("parent_sha256")
        own = {f.name: str(value[f.name]) for f in fields(cls) if f.name != "parent_sha256"}
        return cls(**own, parent_sha256=None if parent is None else str(parent))

    def differences(self, other: Identity) -> list[str]:
        """What differs, in words."""
        own, others = self.to_json(), other.to_json()
        return [
            key.removesuffix("_sha256").replace("_", " ")
            for key in sorted(own.keys() | others.keys())
            if own.get(key) != others.get(key)
        ]


@dataclass(frozen=True)
class OutputFile:
    """A file that a stage left. `derived`: it can be written again from other results, and is no part of the digest."""

    bytes: int
    sha256: str
    mtime_ns: int | None = None
    derived: bool = False

    def to_json(self) -> Json:
        found: Json = {"bytes": self.bytes, "sha256": self.sha256}
        if self.mtime_ns is not None:
            found["mtime_ns"] = self.mtime_ns
        return found | ({"derived": True} if self.derived else {})

    @classmethod
    def from_json(cls, value: Json) -> OutputFile:
        mtime = value.get("mtime_ns")
        size = int(value["bytes"])
        if not 0 <= size < MOST:
            raise ValueError(_("{size} is no size of a file", size=size))
        return cls(
            size,
            str(value["sha256"]),
            None if mtime is None else int(mtime),
            bool(value.get("derived", False)),
        )


@dataclass(frozen=True)
class StageRecord:
    """The last time that a stage was run.

    Attributes:
        status: running, done, stale (done, but what it read has changed since), failed or interrupted.
        seconds: with those of the interrupted attempts that it continued.
        inputs: stage that it read from → digest of what it read.
        result: what it reported, plain JSON; None unless it ran to its end.
    """

    status: str
    started: str = ""
    seconds: float = 0.0
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, OutputFile] = field(default_factory=dict)
    result: Json | None = None

    def digest(self) -> str:
        """What the stage left, in one hash: its result and its files, without derived ones."""
        files = {name: output.sha256 for name, output in self.outputs.items() if not output.derived}
        return sha256_json({"files": files, "result": self.result})

    def to_json(self) -> Json:
        found: Json = {
            "status": self.status,
            "started": self.started,
            "seconds": self.seconds,
            "inputs": dict(self.inputs),
            "outputs": {name: output.to_json() for name, output in self.outputs.items()},
        }
        return found if self.result is None else found | {"result": self.result}

    @classmethod
    def from_json(cls, value: Json) -> StageRecord:
        """Raises: UnsafePathError: an output outside the run; KeyError, TypeError, ValueError: no record."""
        result = value.get("result")
        return cls(
            str(value["status"]),
            str(value.get("started", "")),
            float(value.get("seconds", 0.0)),
            {str(name): str(sha256) for name, sha256 in value.get("inputs", {}).items()},
            {_own_file(name): OutputFile.from_json(output) for name, output in value.get("outputs", {}).items()},
            None if result is None else dict(result),
        )


@dataclass(frozen=True)
class Parent:
    """The run that a fork starts from. `steps`: how many its adapter was trained."""

    run: str
    adapter: str
    adapter_sha256: str
    steps: int | None
    identity: Identity

    def to_json(self) -> Json:
        return asdict(self) | {"identity": self.identity.to_json()}

    @classmethod
    def from_json(cls, value: Json) -> Parent:
        identity = Identity.from_json(value["identity"])
        return cls(
            str(value["run"]), _plain_name(value["adapter"]), str(value["adapter_sha256"]), value.get("steps"), identity
        )


@dataclass(frozen=True)
class Extension:
    """A time that `--resume` added epochs: how many there were, and whether they had all been trained."""

    epochs: int
    finished: bool

    def to_json(self) -> Json:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Json) -> Extension:
        return cls(int(value["epochs"]), bool(value["finished"]))


@dataclass(frozen=True)
class Manifest:
    """The whole of manifest.json.

    Attributes:
        cost_usd, worked_seconds: the sums of the ledger when it was written.
        settings_sha256: of config.json, all settings included; None in a run of an early version, whose identity covers
            only the settings that decide the adapter.
        base_file: `title`, `licence` and `lineage` of a base that is a GGUF file, by its own words; None: others.
        made_in: the format that the run began in. What it could not record is not asked of it.
    """

    noesis: str
    created: str
    output_name: str
    identity: Identity
    libraries: Mapping[str, str]
    python: str
    system: str
    cost_usd: float = 0.0
    worked_seconds: float = 0.0
    ledger: tuple[LedgerEntry, ...] = ()
    stages: Mapping[str, StageRecord] = field(default_factory=dict)
    parent: Parent | None = None
    history: tuple[Extension, ...] = ()
    settings_sha256: str | None = None
    base_file: Mapping[str, str] | None = None
    made_in: int = FORMAT

    @property
    def is_early(self) -> bool:
        """Whether the run began in an earlier format, which recorded less."""
        return self.made_in < FORMAT

    def to_json(self) -> Json:
        found: Json = {
            "format": FORMAT,
            "noesis": self.noesis,
            "created": self.created,
            "output_name": self.output_name,
            "identity": self.identity.to_json(),
            "libraries": dict(self.libraries),
            "python": self.python,
            "system": self.system,
            "cost_usd": self.cost_usd,
            "worked_seconds": self.worked_seconds,
            "ledger": [entry.to_json() for entry in self.ledger],
            "stages": {name: record.to_json() for name, record in self.stages.items()},
        }
        if self.settings_sha256 is not None:
            found["settings_sha256"] = self.settings_sha256
        if self.base_file is not None:
            found["base_file"] = dict(self.base_file)
        if self.parent is not None:
            found["parent"] = self.parent.to_json()
        if self.history:
            found["history"] = [extension.to_json() for extension in self.history]
        if self.is_early:
            found["made_in_format"] = self.made_in
        return found

    @classmethod
    def from_json(cls, value: Json) -> Manifest:
        """Raises: UnsafePathError: a name leads out of the run. KeyError, TypeError, ValueError, AttributeError: not a
        manifest of this format."""
        return cls(
            str(value.get("noesis", "")),
            str(value.get("created", "")),
            _plain_name(value["output_name"]),
            Identity.from_json(value["identity"]),
            {str(name): str(version) for name, version in value.get("libraries", {}).items()},
            str(value.get("python", "")),
            str(value.get("system", "")),
            float(value.get("cost_usd", 0.0)),
            float(value.get("worked_seconds", 0.0)),
            tuple(LedgerEntry.from_json(entry) for entry in value.get("ledger", [])),
            {name: StageRecord.from_json(record) for name, record in value["stages"].items()},
            Parent.from_json(value["parent"]) if "parent" in value else None,
            tuple(Extension.from_json(extension) for extension in value.get("history", [])),
            str(value["settings_sha256"]) if "settings_sha256" in value else None,
            {str(key): str(said) for key, said in value["base_file"].items()} if "base_file" in value else None,
            min(int(value.get("made_in_format", FORMAT)), int(value.get("format", 1))),
        )

    # --- reading
    def result(self, stage: str) -> Json | None:
        """What a finished stage reported, None if it has not run."""
        record = self.stages.get(stage)
        return None if record is None or record.result is None else dict(record.result)

    def state(self, stage: str) -> str:
        """The status of a stage, or `not run`. One that is recorded as done is stale if an input has changed since."""
        record = self.stages.get(stage)
        if record is None:
            return N_("not run")
        if record.status == "done" and not all(
            self.is_as_read(name, digest) for name, digest in record.inputs.items() if name in needs_of(stage)
        ):
            return "stale"
        return record.status

    def is_as_read(self, stage: str, digest: str) -> bool:
        """Whether `stage` is done and left what `digest` says."""
        return self.state(stage) == "done" and self.stages[stage].digest() == digest

    def inputs_for(self, stage: str) -> dict[str, str]:
        """The digests of what `stage` would read now."""
        return {name: self.stages[name].digest() for name in needs_of(stage) if self.state(name) == "done"}

    def library_differences(self, *, always: bool = False) -> list[str]:
        """Libraries whose major version has changed while training was under way (or `always`), in words."""
        if not always and self.state("train") in ("not run", "done"):
            return []
        here = library_versions()
        return [
            _("another {name}: {here} instead of {old}", name=name, here=here[name], old=old)
            for name, old in self.libraries.items()
            if name in here and _major(old) != _major(here[name])
        ]

    # --- the manifest after a change
    def with_stage(self, stage: str, record: StageRecord) -> Manifest:
        return replace(self, stages={**self.stages, stage: record})

    def with_output(self, stage: str, name: str, file: OutputFile) -> Manifest:
        """With another record of one of the files of `stage`."""
        record = self.stages[stage]
        return self.with_stage(stage, replace(record, outputs={**record.outputs, name: file}))

    def with_finished(self, stage: str, record: StageRecord, previous: StageRecord | None) -> Manifest:
        """`record` in place of `previous`; stages that read anything other than what it left become stale."""
        after, digest = self.with_stage(stage, record), record.digest()
        changed = previous is None or previous.result is None or previous.digest() != digest
        downstream = downstream_of(stage)
        for name in downstream:
            reader = after.stages.get(name)
            if reader is None or reader.status != "done":
                continue
            if stage in needs_of(name):
                affected = reader.inputs.get(stage) != digest
            else:  # it reads this stage through others; those that it recorded make it stale themselves
                affected = changed and any(n in downstream and n not in reader.inputs for n in needs_of(name))
            if affected:
                after = after.with_stage(name, replace(reader, status="stale"))
        return after

    def with_stale(self, stage: str) -> Manifest:
        """`stage` and everything that reads it, directly or not, has to be done again."""
        stale = {
            name: replace(self.stages[name], status="stale")
            for name in (stage, *downstream_of(stage))
            if name in self.stages
        }
        return replace(self, stages={**self.stages, **stale})

    def with_cost(self, entries: Iterable[LedgerEntry]) -> Manifest:
        """With more entries in the ledger; one that is in it already is not added again.

        Who was taken for killed, and lives, knows better what it took.
        """
        ledger = list(self.ledger)
        for entry in entries:
            places = [i for i, booked in enumerate(ledger) if entry.id and booked.id == entry.id]
            if not places:
                ledger.append(entry)
            elif ledger[places[0]].ended == "killed" and entry.ended not in (None, "killed"):
                ledger[places[0]] = entry
        usd, seconds = total(ledger)
        return replace(self, ledger=tuple(ledger), cost_usd=usd, worked_seconds=seconds)


def _major(version: str) -> list[str]:
    """`5.23.0` → 5; below 1.0 the second number counts."""
    parts = version.split(".")
    return parts[:2] if parts[0] == "0" else parts[:1]


def _plain_name(name: Any) -> str:
    """A name that becomes part of a path, held to the rule of `output_name` in training_config.yaml."""
    if not is_name(name):
        raise UnsafePathError(
            _("holds the name {name!r}, which is no name of a folder: don't trust this run", name=name)
        )
    return str(name)


def _own_file(name: str) -> str:
    """The name of a file of the run, relative to it."""
    try:
        below(Path(), name)
    except UnsafePathError:
        raise UnsafePathError(
            _("names the file {name!r}, which is not in the run: don't trust this run", name=name)
        ) from None
    return name
