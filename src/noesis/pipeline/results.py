"""What the stages reported, as typed values: `RunResults` reads them from the manifest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TypeVar

from noesis.core.errors import RunError
from noesis.core.i18n import N_, _
from noesis.core.rooted import is_name
from noesis.core.typed import require_types
from noesis.dataset.statistics import ExportStatistics
from noesis.planning.plan import Plan, stored_plan
from noesis.release.merge_weights import MergeResult
from noesis.release.parity.certificate import Certificate
from noesis.run.adapter_names import folder_of
from noesis.run.directory import Run
from noesis.training.job import TrainResult
from noesis.tribunal.calibration_store import Calibration
from noesis.tribunal.court import UNDECIDED, ReportedRuling, Ruling
from noesis.tribunal.heldout import JudgeResult
from noesis.tribunal.suite import Part
from noesis.tribunal.trial.looks import Looks
from noesis.tribunal.trial_summary import TrialSummary

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class CheckpointScore:
    """The Tribunal's scores of one epoch's answers to the dev prompts.

    Attributes:
        mean: weighted mean of the judges, 0..1.
        accuracy_drop: how far the share of right answers to keyed items fell, base to tuned; None if not measured.
        unfit_reason: why these judges may not decide; None if they may. It is not stored: the choice's reason says it.
        prompts: mean of each prompt (a pair is one); empty in runs of early versions.
    """

    mean: float | None
    accuracy_drop: float | None
    vetoed: bool
    unfit_reason: str | None = None
    prompts: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        own = {"mean": self.mean, "fall": self.accuracy_drop, "vetoed": self.vetoed}
        return own | ({"prompts": self.prompts} if self.prompts else {})

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> CheckpointScore:
        return cls(value["mean"], value["fall"], value["vetoed"], prompts=value.get("prompts", {}))


@dataclass(frozen=True)
class EpochFigures:
    """One epoch on the held-out examples and, if a judge is set, before the Tribunal.

    Attributes:
        preferred: of how many of the `examples` it finds the revised answer likelier.
        mean_margin, held_out_loss: nats per token.
        tribunal: its scores before the Tribunal; None if no judge is set.
    """

    preferred: int
    mean_margin: float
    held_out_loss: float
    examples: int
    tribunal: CheckpointScore | None = None

    def to_json(self) -> dict[str, Any]:
        own = {
            "preferred": self.preferred,
            "mean_margin": self.mean_margin,
            "held_out_loss": self.held_out_loss,
            "examples": self.examples,
        }
        return own if self.tribunal is None else own | {"court": self.tribunal.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> EpochFigures:
        scores = value.get("court")
        return cls(
            value["preferred"],
            value["mean_margin"],
            value["held_out_loss"],
            value["examples"],
            None if scores is None else CheckpointScore.from_json(scores),
        )


@dataclass(frozen=True)
class Spread:
    """A figure of several seeds: mean, standard deviation between seeds, lowest and highest."""

    mean: float
    sd: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(round(fmean(values), 5), round(stdev(values), 5), min(values), max(values))


@dataclass(frozen=True)
class Choice:
    """The result of the stage.

    Attributes:
        adapter: name of the chosen epoch's folder.
        reason: the rule that chose it, in words.
        by_tribunal: whether the Tribunal scored the epochs.
        epochs: name of each epoch → its figures.
        by_significance: whether differences counted only beyond chance; early versions took the best figure.
        seeds: the epoch that was chosen of each seed, by name; empty where there is one.
        disagreement: in words, where one seed alone would have said something else than another; else empty.
    """

    adapter: str
    reason: str
    by_tribunal: bool
    epochs: dict[str, EpochFigures]
    by_significance: bool = False
    seeds: dict[str, str] = field(default_factory=dict)
    disagreement: str = ""

    @property
    def spread(self) -> dict[str, Spread]:
        """Of the figures of the seeds' chosen epochs, by name; empty with one seed."""
        if not self.seeds:
            return {}
        figures = [self.epochs[name] for name in self.seeds.values()]
        return {
            "preferred": Spread.of([float(f.preferred) for f in figures]),
            "mean_margin": Spread.of([f.mean_margin for f in figures]),
            "held_out_loss": Spread.of([f.held_out_loss for f in figures]),
        }

    def to_json(self) -> dict[str, Any]:
        epochs = {name: figures.to_json() for name, figures in self.epochs.items()}
        rule = {"significant": True} if self.by_significance else {}
        found = {"adapter": self.adapter, "by": self.reason, "heard": self.by_tribunal, "epochs": epochs} | rule
        if not self.seeds:
            return found
        spread = {name: asdict(each) for name, each in self.spread.items()}
        return found | {"seeds": self.seeds, "disagreement": self.disagreement, "spread": spread}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Choice:
        epochs = {name: EpochFigures.from_json(figures) for name, figures in value["epochs"].items()}
        seeds = value.get("seeds", {})
        if not all(is_name(name) for name in (value["adapter"], *epochs)):
            raise ValueError(_("an epoch's name is none"))
        if not set(seeds.values()) <= set(epochs):
            raise ValueError(_("a seed's epoch is none of those that were scored"))
        rule = (value.get("significant", False), seeds, value.get("disagreement", ""))
        return cls(value["adapter"], value["by"], value["heard"], epochs, *rule)


@dataclass(frozen=True)
class StrengthFigures:
    """The adapter at one strength; 0 is the base.

    Attributes:
        preferred: of how many held-out pairs it finds the revised answer likelier.
        mean_margin, held_out_loss: nats per token.
        kept, lost, gained: keyed items that base and tuned have right, only the base, only the tuned model.
        drift: mean KL divergence from the base on the base's own answers, nats per token.
    """

    strength: float
    preferred: int
    mean_margin: float
    held_out_loss: float
    kept: int
    lost: int
    gained: int
    drift: float

    @property
    def right(self) -> int:
        """Keyed items that it has right."""
        return self.kept + self.gained


@dataclass(frozen=True)
class Dial:
    """The result of the stage dial.

    Attributes:
        strength: the adapter's update is used times this.
        adapter: name of its folder: of the chosen epoch's at strength 1, else of one below dial/.
        reason: why this strength, in words.
        fixed: whether it was set rather than chosen.
        pairs, items: held-out pairs and keyed items of the curve.
        curve: the strengths that were measured, ascending from 0; empty where none were.
    """

    strength: float
    adapter: str
    reason: str
    fixed: bool
    pairs: int = 0
    items: int = 0
    curve: tuple[StrengthFigures, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"curve": [vars(figures) for figures in self.curve]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Dial:
        if not is_name(value["adapter"]):
            raise ValueError(_("an adapter's name is none"))
        return cls(**value | {"curve": tuple(StrengthFigures(**figures) for figures in value["curve"])})


@dataclass(frozen=True)
class TrialJudge:
    """A judge of a trial.

    fit: whether it could decide
    calibration: of its calibration, the figures that reports repeat; None where there is none
    """

    name: str
    identity: str
    fit: bool
    calibration: dict[str, Any] | None

    @classmethod
    def of(cls, name: str, identity: str, found: Calibration | None) -> TrialJudge:
        return cls(name, identity, bool(found and found.may_decide), found.summary() if found else None)


@dataclass(frozen=True)
class TrialResult:
    """The result of the stage trial, as it is in trial.json.

    request: hash of all that decides the result; another one makes the trial run again
    prompts, samples: how many prompts were asked for, and answers to each
    self_judged: the run's own base is among the judges
    court: the ruling on the tuned model with each judge's estimate, as reports show it
    looks: after how many prompts the trial ended, and why; None of early versions, which judged all
    """

    request: str
    part: Part
    prompts: int
    prompts_sha256: str
    samples: int
    rubrics_sha256: str
    judges: tuple[TrialJudge, ...]
    self_judged: bool
    spending: dict[str, Any]
    court: ReportedRuling
    summary: TrialSummary
    looks: Looks | None = None

    @property
    def ruling(self) -> Ruling:
        return self.summary.ruling

    def to_json(self) -> dict[str, Any]:
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("summary", "looks")}
        judges = [vars(judge) for judge in self.judges]
        looks = {} if self.looks is None else {"looks": self.looks.to_json()}
        return own | {"judges": judges, "court": self.court.to_json()} | looks | self.summary.to_json()

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> TrialResult:
        """The result as it was stored.

        Raises:
            KeyError: a field is missing.
        """
        typed = ("summary", "judges", "court", "looks")
        own = {field.name: stored[field.name] for field in fields(cls) if field.name not in typed}
        judges = tuple(TrialJudge(**judge) for judge in stored["judges"])
        court = ReportedRuling.from_json(stored["court"])
        looks = Looks.from_json(stored["looks"]) if "looks" in stored else None
        return cls(**own, judges=judges, court=court, summary=TrialSummary.from_json(stored), looks=looks)


@dataclass(frozen=True)
class ReportResult:
    """The result of the stage report: how many stages it shows."""

    stages_shown: int

    def to_json(self) -> dict[str, int]:
        return {"stages_shown": self.stages_shown}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> ReportResult:
        return cls(stored["stages_shown"])


def scores_folder(run: Run) -> Path:
    """Where the scores of the held-out examples lie: a file for the base, one for each epoch."""
    return run.tribunal / "checkpoints"


def adapter_folder(run: Run, name: str) -> Path:
    """The folder of an adapter by its name: of an epoch's, or of one at another strength."""
    scaled = run.dial / name
    return scaled if scaled.is_dir() else folder_of(run.checkpoints, name)


def scores_file(run: Run, name: str) -> Path:
    """The scores of the base or of an adapter; those of an adapter at another strength lie beside it."""
    folder = run.dial if (run.dial / name).is_dir() else scores_folder(run)
    return folder / f"{name}.json"


def read_result(run: Run, stage: str, stored: S, from_json: Callable[[S], T]) -> T:
    """The result of a stage from the manifest's JSON, with the types that it declares.

    Raises:
        RunError: it is damaged. ModelError: the certificate is.
    """
    try:
        found = from_json(stored)
        require_types(found)
        return found
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, IndexError) as error:
        where = {"path": run.path / "manifest.json", "stage": stage, "name": type(error).__name__, "error": error}
        told = _(
            "{path}: the result of the stage {stage} can't be read "
            "({name}: {error}): restore the file, or run the stage again",
            **where,
        )
        raise RunError(told) from None


class RunResults:
    """The results of a run's stages; None for a stage that has not run. Each is read when it is asked for.

    Raises:
        RunError: a result is damaged; ModelError: the certificate is.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def _read(self, stage: str, from_json: Callable[[dict[str, Any]], T]) -> T | None:
        stored = self._run.result(stage)
        return None if stored is None else read_result(self._run, stage, stored, from_json)

    @property
    def export(self) -> ExportStatistics | None:
        return self._read("export", ExportStatistics.from_json)

    @property
    def plan(self) -> Plan | None:
        """The stage's plan; None also for that of an early version."""
        return read_result(self._run, "plan", self._run.result("plan"), stored_plan)

    @property
    def executed_plan(self) -> Plan | None:
        """The plan that was carried out: the smaller one if training ran out of memory, else the stage's."""
        return read_result(self._run, "train", self._run.executed_plan(), stored_plan)

    @property
    def train(self) -> TrainResult | None:
        return self._read("train", TrainResult.from_json)

    @property
    def choice(self) -> Choice | None:
        return self._read("choose", Choice.from_json)

    @property
    def dial(self) -> Dial | None:
        return self._read("dial", Dial.from_json)

    @property
    def judge(self) -> JudgeResult | None:
        return self._read("judge", JudgeResult.from_json)

    @property
    def merge(self) -> MergeResult | None:
        return self._read("merge", MergeResult.from_json)

    @property
    def certificate(self) -> Certificate | None:
        return self._read("gguf", Certificate.from_json)

    @property
    def trial(self) -> TrialResult | None:
        return self._read("trial", TrialResult.from_json)

    @property
    def ruling(self) -> Ruling:
        """The Tribunal's ruling: of the trial if there was one, else that no judge is set."""
        found = self.trial or self.judge
        return Ruling(UNDECIDED, N_("not judged")) if found is None else found.court
