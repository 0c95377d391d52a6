"""The run directory: where its files are, and the one way to run a stage. Files are written whole or not at all.

runs/<name>/manifest.json   what this run is made of, and the state of every stage
runs/<name>/config.json     the resolved configuration
runs/.archive/<name>-<id>   where a run is moved, whole, when another configuration takes its name

A stage is `done` when its outputs are on disk with the hashes that its record lists, and not before.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from noesis import __version__
from noesis.core.config import Config
from noesis.core.console import command, say
from noesis.core.errors import CapError, RunError, UsageError
from noesis.core.files import sha256_file, sweep, sync_file, utc_now, write_json, write_text
from noesis.core.i18n import N_, _, in_english, joined
from noesis.core.libraries import library_versions
from noesis.run.adapter_names import EPOCH, folder_of, seed_folders
from noesis.run.archive import MOVING, RUN_FILES, archive, finish_archiving
from noesis.run.folder import guard_run, require_run_folder
from noesis.run.ledger import LedgerEntry, StageMeter, total, unrecorded_cost
from noesis.run.manifest import Extension, Identity, Json, Manifest, OutputFile, Parent, StageRecord
from noesis.run.manifest_file import read_manifest
from noesis.run.settings import read_settings
from noesis.run.stages import is_derived

SETTINGS = "config.json"
ADAPTER = "adapter_model.safetensors"  # in the folder of an epoch
MANIFEST_LOCK = ".manifest.lock"  # held while the manifest is read, changed and written; a moment
LONGEST_WRITE_S = 60.0


class Run:
    """One run directory. Make one with `open_run`, read one with `load_run`.

    Attributes:
        usd_per_s: price of this machine.
        working_since: when a stage of this process started, on the monotonic clock; None while none is running.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self._manifest = manifest
        self.usd_per_s = 0.0
        self.working_since: float | None = None

    # --- where things are
    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def dial(self) -> Path:
        return self.path / "dial"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tribunal(self) -> Path:
        return self.path / "tribunal"

    @property
    def merged(self) -> Path:
        return self.path / "merged" / self._manifest.output_name

    @property
    def gguf(self) -> Path:
        return self.path / "gguf"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def parent(self) -> Path | None:
        """The folder with the adapter that a fork starts from; None if the run is no fork."""
        return self.path / "parent" if self._manifest.parent else None

    def config(self) -> Config:
        """The resolved configuration that this run was made with.

        Raises:
            RunError: it can't be read.
        """
        return read_settings(self.path / SETTINGS)

    def adapters(self) -> dict[str, list[Path]]:
        """The adapters of the finished epochs, in order, by seed; "" is the run's first. Raises as `epochs`."""
        places = {"": self.checkpoints} | {p.name.removeprefix("seed_"): p for p in seed_folders(self.checkpoints)}
        return {seed: self.epochs(place) for seed, place in places.items()}

    def epochs(self, place: Path | None = None) -> list[Path]:
        """The adapters of the finished epochs, in order; of another seed, in folder `place`. Raises RunError: none."""
        place = place or self.checkpoints
        found = {int(p.name.removeprefix("epoch_")): p for p in place.glob("epoch_*") if EPOCH(p.name)}
        whole = [found[i] for i in sorted(found) if (found[i] / ADAPTER).is_file()]
        if self.result("train") is not None:  # one that training did not leave was put there by somebody
            whole = [p for p in whole if self._relative(p / ADAPTER) in self._manifest.stages["train"].outputs]
        if not whole:
            train = command("train", "--run", self.path)
            if self.result("train") is None:
                raise RunError(_("{path} holds no trained adapter: run  {train}  first", path=self.path, train=train))
            raise RunError(
                _(
                    "the adapters that training left in {folder} are missing: restore them from a copy "
                    "( {verify}  lists what is missing), or train again with  {train}",
                    folder=place,
                    verify=command("verify", self.path),
                    train=train,
                )
            )
        return whole

    def adapter(self) -> Path:
        """The adapter to use: of the epoch that the stage `choose` settled on (before it, the last one that finished),
        at the strength that `dial` did.

        Raises:
            RunError: nothing was trained yet, or the chosen adapter is not one that its stage left.
        """
        dialled = self.result("dial") if self.state("dial") == "done" else None
        scaled = self.dial / str((dialled or {}).get("adapter", ""))
        if scaled.parent == self.dial and self._relative(scaled / ADAPTER) in self._manifest.stages["dial"].outputs:
            if (scaled / ADAPTER).is_file():
                return scaled
            again = _("choose it again with  {command}", command=command("dial", self.path))
            lost = _("{path} is missing, the adapter at the strength that was chosen", path=scaled)
            raise RunError(_("{what}: {remedy}", what=lost, remedy=again))
        return self.trained_adapter()

    def trained_adapter(self) -> Path:
        """The adapter of the chosen epoch as it was trained.

        Raises:
            RunError: as `adapter`.
        """
        adapters = self.adapters()
        choice = self.result("choose") if self.state("choose") == "done" else None
        if choice is None:
            return adapters[""][-1]
        folder = folder_of(self.checkpoints, str(choice.get("adapter")))
        if any(folder in epochs for epochs in adapters.values()):
            return folder
        named = {"path": self.path, "chosen": choice.get("adapter")}
        lost = _("{path} chose {chosen!r}, which is not among the adapters that training left here", **named)
        raise RunError(_("{what}: see  {command}", what=lost, command=command("verify", self.path)))

    # --- what the manifest says
    @property
    def manifest(self) -> Manifest:
        return self._manifest

    def refresh(self) -> None:
        """Read what others have written meanwhile; RunError if another run has taken its place."""
        self._manifest = self._stored()

    @property
    def identity(self) -> Identity:
        return self._manifest.identity

    def state(self, stage: str) -> str:
        """The status of a stage by the manifest: done, stale, failed, interrupted, running or not run."""
        return self._manifest.state(stage)

    def is_done(self, stage: str) -> bool:
        """Whether `stage` ran to its end and neither what it read nor what it wrote has changed since."""
        return self.state(stage) == "done" and not self.changed(stage)

    def changed(self, stage: str, *, thoroughly: bool = False) -> list[str]:
        """What is wrong with the outputs of a stage: `name: missing` or `name: changed`.

        Args:
            thoroughly: hash every file; otherwise a file with the recorded size and time counts as unchanged.
        """
        record = self._manifest.stages.get(stage)
        outputs = record.outputs.items() if record else ()
        said = {"missing": N_("{name}: missing"), "changed": N_("{name}: changed")}
        problems = {name: self._problem(self.path / name, o, thoroughly=thoroughly) for name, o in outputs}
        return [_(said[problem], name=name) for name, problem in problems.items() if problem]

    def vouches_for(self, stage: str, file: Path, *, thoroughly: bool = False) -> bool:
        """Whether a stage lists `file`, and it is as the stage left it; `thoroughly` as in `changed`."""
        record = self._manifest.stages.get(stage)
        output = record.outputs.get(self._relative(file)) if record else None
        return output is not None and self._problem(file, output, thoroughly=thoroughly) is None

    def result(self, stage: str) -> Json | None:
        """What a finished stage reported, None if it has not run."""
        return self._manifest.result(stage)

    def executed_plan(self) -> Json | None:
        """The plan that was carried out: the smaller one if training ran out of memory, else the stage's."""
        executed = (self.result("train") or {}).get("smaller_plan")
        return dict(executed) if executed else self.result("plan")

    def spent(self) -> tuple[float, float]:
        """(USD, seconds) in the ledger, including those of a process that was killed."""
        ledger = self._manifest.ledger
        killed = unrecorded_cost(self.path, ledger) if self.working_since is None else None
        return total(ledger if killed is None else [*ledger, killed])

    # --- what changes the manifest
    def perform(
        self, stage: str, work: Callable[[], Json], outputs: Callable[[], Sequence[Path]], *, again: bool = False
    ) -> Json:
        """Run a stage unless it is done; record result, time, outputs. Stages that read another outcome become stale.

        Args:
            stage: one of `STAGES`, or the name of other work whose time and cost the run should know.
            work: does it and returns its result (plain JSON).
            outputs: lists the files that it left; called afterwards.
        """
        self._manifest = self._stored()
        previous = self._manifest.stages.get(stage)
        if self.is_done(stage) and not again and previous is not None:
            say(_("  already done"))
            return dict(previous.result or {})
        before = previous.seconds if previous is not None and previous.status == "interrupted" else 0.0
        record = StageRecord("running", utc_now(), before, self._manifest.inputs_for(stage))
        killed = unrecorded_cost(self.path, self._manifest.ledger)
        sweep(self.path)
        self._change(lambda m: m.with_stage(stage, record).with_cost([killed] if killed else []))
        meter = StageMeter(self.path, stage, record.started, self.usd_per_s)
        self.working_since = meter.started_at
        try:
            result: Json = in_english(work())
            left = [file for file in sorted(outputs()) if not file.name.startswith(".")]
            files = {self._relative(file): self._recorded(stage, file) for file in left}
        except BaseException as error:
            # reaching the cap is not a failure: the stage continues under a higher cap
            status = "failed" if isinstance(error, Exception) and not isinstance(error, CapError) else "interrupted"
            cost = meter.stop("capped" if isinstance(error, CapError) else status)
            stopped = replace(record, status=status, seconds=round(before + cost.seconds, 2))
            self._end(lambda m: m.with_stage(stage, stopped), cost)
            raise
        cost = meter.stop("done")
        seconds = round(before + cost.seconds, 2)
        done = replace(record, status="done", seconds=seconds, outputs=files, result=json.loads(json.dumps(result)))
        self._end(lambda m: m.with_finished(stage, done, previous), cost)
        return result

    def book(self, entries: Iterable[LedgerEntry]) -> None:
        """Add what was spent on this run elsewhere to its ledger; an entry already in it is not counted twice."""
        booked = tuple(entries)
        self._change(lambda m: m.with_cost(booked))

    def write_derived(self, stage: str, file: Path, text: str) -> None:
        """Write a derived file of a finished stage again, such as the model card, and record its new hash."""
        name = self._relative(file)
        if not is_derived(stage, name):
            raise ValueError(_("{name} is not a derived file of {stage}", name=name, stage=stage))
        write_text(file, text)
        written = self._recorded(stage, file)
        self._change(lambda m: m.with_output(stage, name, written))

    def set_parent(self, parent: Parent | None) -> None:
        """Record which adapter this run starts from."""
        if parent != self._manifest.parent:
            self._change(lambda m: replace(m, parent=parent))

    def extend(self, identity: Identity, config: Config) -> None:
        """Continue with a configuration that asks for more epochs; everything from the plan on must be done again."""
        earlier = Extension(self.config().training.num_train_epochs, self.result("train") is not None)
        self._change(lambda m: replace(m, identity=identity, history=(*m.history, earlier)).with_stale("plan"))
        self.record_settings(config)

    def record_settings(self, config: Config) -> None:
        """Let these settings hold from now on; those that do not decide the adapter may be newer than the run."""
        file = self.path / SETTINGS
        if self.config() != config or self._manifest.settings_sha256 != sha256_file(file):
            write_json(file, config.model_dump(mode="json"))
            self._change(lambda m: replace(m, settings_sha256=sha256_file(file)))

    @staticmethod
    def _problem(file: Path, output: OutputFile, *, thoroughly: bool) -> str | None:
        """`missing`, `changed`, or None where the file is as recorded."""
        if not file.is_file():
            return "missing"
        found = file.stat()
        known = not thoroughly and found.st_mtime_ns == output.mtime_ns
        same = found.st_size == output.bytes and (known or sha256_file(file) == output.sha256)
        return None if same else "changed"

    def _relative(self, file: Path) -> str:
        """A file's name in the manifest."""
        return file.relative_to(self.path).as_posix()

    def _recorded(self, stage: str, file: Path) -> OutputFile:
        """A file's record, once it is on the disk."""
        sync_file(file)
        found, derived = file.stat(), is_derived(stage, self._relative(file))
        return OutputFile(found.st_size, sha256_file(file), found.st_mtime_ns, derived)

    def _end(self, change: Callable[[Manifest], Manifest], cost: LedgerEntry) -> None:
        self.working_since = None
        self._change(lambda m: change(m).with_cost([cost]))

    def _change(self, change: Callable[[Manifest], Manifest]) -> None:
        """Write what `change` makes of the manifest as it is on the disk: what others wrote meanwhile is kept.

        Raises:
            RunError: it is no longer the manifest of this run.
        """
        with FileLock(self.path / MANIFEST_LOCK, timeout=LONGEST_WRITE_S):
            self._manifest = change(self._stored())
            write_json(self.path / "manifest.json", self._manifest.to_json())

    def _stored(self) -> Manifest:
        """The manifest on the disk. Raises RunError if it is another run's, or of other settings than this object's."""
        found, own = read_manifest(self.path), self._manifest
        if found is None or (found.created, found.identity) != (own.created, own.identity):
            told = _("{run} was replaced or given other settings by another command while this one ran", run=self.path)
            raise RunError(_("{what}: run the same command again", what=told))
        return found


def open_run(
    path: Path,
    identity: Identity,
    config: Config,
    *,
    fresh: bool = False,
    archive_to: Path | None = None,
    base_file: Mapping[str, str] | None = None,
) -> Run:
    """The run at `path` if it has this identity, else a new one; another run found there is archived whole.

    Args:
        archive_to: where an old run goes; default: `.archive/` next to `path`. On a volume, whose root is the run,
            a folder in it.
        base_file: as the manifest's.

    Raises:
        UsageError: what is at `path` is no run. RunError: it can't be read, or leads elsewhere.
    """
    guard_run(path) if archive_to else require_run_folder(path)
    archives = archive_to or path.parent / ".archive"
    finish_archiving(path, archives)
    old = read_manifest(path)
    if old is not None and old.identity == identity and not fresh and not old.library_differences():
        return Run(path, old)
    if old is not None or any((path / name).exists() for name in RUN_FILES):
        moved = archive(path, archives)
        say(_("  the old run was moved to {moved} ({why})", moved=moved, why=_why_archived(old, identity)))
    write_json(path / SETTINGS, config.model_dump(mode="json"))
    manifest = Manifest(
        noesis=__version__,
        created=utc_now(),
        output_name=config.training.output_name,
        identity=identity,
        libraries=library_versions(),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        settings_sha256=sha256_file(path / SETTINGS),
        base_file=base_file,
    )
    write_json(path / "manifest.json", manifest.to_json())
    return Run(path, manifest)


def _why_archived(old: Manifest | None, identity: Identity) -> str:
    if old is None:
        return _("it had no manifest")
    changed = [_("another {name}", name=name) for name in old.identity.differences(identity)]
    return joined(", ", changed + old.library_differences()) or _("requested with --fresh")


def load_run(path: str | Path) -> Run:
    """An existing run.

    Raises:
        UsageError: there is none at `path`.
        RunError: its manifest can't be read, or names or links in it lead elsewhere.
    """
    path = Path(path)
    guard_run(path)
    manifest, train = read_manifest(path), command("train", "--run", path)
    if manifest is None and (path / MOVING).is_file():
        half = _("{path} was being archived when its process was killed", path=path)
        raise UsageError(_("{what}; {command}  completes that and starts a new run", what=half, command=train))
    if manifest is None:
        missing = _("no run in {path}: {file} is missing", path=path, file=path / "manifest.json")
        make_one = _("make one with  {train}  or  {demo}", train=train, demo=command("demo"))
        raise UsageError(joined("; ", (missing, make_one)))
    return Run(path, manifest)
