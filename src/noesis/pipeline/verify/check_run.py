"""`noesis verify RUN`: hash every file, derive again what can be derived, and say what could not be.

Each result is derived from the rawest thing that the run records of it: a choice from the scores of each example, a
ruling from the answers and each judge's verdicts. Who rewrites all of these and the manifest too is found only by a
hash or a signature from outside; `noesis verify RUN --sha256 HEX` compares the manifest with such a hash.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from noesis.core.errors import NoesisError, UsageError
from noesis.core.files import sha256_file
from noesis.core.i18n import N_, _
from noesis.core.project import Project
from noesis.pipeline.verify import dial, held_out, origin, records, release, training, trial
from noesis.pipeline.verify.evidence import Evidence, Finding, UncheckedError
from noesis.run.directory import Run

DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, NoesisError)


@dataclass(frozen=True)
class Check:
    """One check. `stage`: it is made where that stage is done; empty: always."""

    what: str
    stage: str
    find: Callable[[Evidence], str | None]


CHECKS = (
    Check(N_("nothing lies in the run that does not belong there"), "", records.check_contents),
    Check(N_("the settings that decide the adapter are the manifest's"), "", origin.deciding_settings),
    Check(N_("all other settings are the manifest's"), "", origin.all_settings),
    Check(N_("the examples and the constitution are the manifest's"), "", origin.data),
    Check(N_("the base model is the manifest's"), "", origin.base_model),
    Check(N_("the parent's adapter is the manifest's"), "", origin.parent),
    Check(N_("the ledger adds up"), "", origin.ledger),
    Check(N_("the export's statistics follow from the data"), "export", origin.statistics),
    Check(N_("the plan's tokens follow from the examples"), "plan", origin.tokens),
    Check(N_("what was executed follows the plan"), "train", training.executed_plan),
    Check(N_("training's figures follow from metrics.jsonl"), "train", training.figures),
    Check(N_("the epochs are those that were trained"), "train", training.epochs),
    Check(N_("the saved states are whole"), "", training.states),
    Check(N_("the scores are of this base and these adapters"), "choose", held_out.scored_models),
    Check(N_("the choice of the checkpoint follows from the scores"), "choose", held_out.choice),
    Check(N_("the dial's figures are of this base, this adapter and these examples"), "dial", dial.figures),
    Check(N_("the strength follows from the dial's figures"), "dial", dial.strength),
    Check(N_("the adapter that is used is the trained one at that strength"), "dial", dial.adapter),
    Check(N_("preference and loss follow from the scores"), "judge", held_out.preference),
    Check(N_("the screen's flags and totals follow from the answers"), "judge", held_out.answers),
    Check(N_("what training broke follows from both models' outcomes"), "judge", held_out.kept),
    Check(N_("there is no verdict where no judge was asked"), "judge", held_out.ruling_without_judges),
    Check(N_("the verdicts follow from their evidence"), "trial", trial.evidence),
    Check(N_("the trial's opinions and means follow from the verdicts"), "trial", trial.opinions),
    Check(N_("the ruling has what it needs"), "trial", trial.approval),
    Check(N_("the ruling follows from answers and verdicts"), "trial", trial.ruling),
    Check(N_("the model's provenance is this run's"), "merge", release.origin),
    Check(N_("the model card follows from the results"), "merge", release.card),
    Check(N_("the parity certificate follows from its figures"), "gguf", release.certificate),
    Check(N_("the adapter's GGUF file is the certified one"), "gguf", release.adapter_file),
)


def verify(run: Run, project: Project | None = None, *, sha256: str | None = None) -> Iterator[Finding]:
    """One finding after the other.

    Args:
        project: whose suite and calibrations a trial is derived from.
        sha256: of manifest.json as the user kept it, in hexadecimal.
    """
    if sha256 is not None:
        found = manifest_sha256(run)
        wrong = None if found == _digest(sha256) else _("it has {found}", found=found)
        yield Finding(_("manifest.json has the hash that you kept"), wrong)
    evidence = Evidence(run, project)
    yield from _guarded(_("the stages' records"), records.check_stages(run))
    for check in CHECKS:
        if not check.stage or run.state(check.stage) == "done":
            yield from _guarded(_(check.what), _made(check, evidence))


def _digest(text: str) -> str:
    """The digest in `HEX`, `sha256:HEX` or a line of `sha256sum`. Raises UsageError where there is none."""
    found = re.fullmatch(r"(?:sha256:)?([0-9a-f]{64})(?:\s.*)?", text.strip().lower())
    if found is None:
        raise UsageError(_("--sha256 {text!r} is no SHA-256 hash: give its 64 hexadecimal digits", text=text[:80]))
    return found[1]


def manifest_sha256(run: Run) -> str:
    """SHA-256 of manifest.json, which holds the hash of everything that the run's stages have left."""
    return sha256_file(run.path / "manifest.json")


def _made(check: Check, evidence: Evidence) -> Iterator[Finding]:
    try:
        yield Finding(_(check.what), check.find(evidence))
    except UncheckedError as reason:
        yield Finding(_(check.what), unchecked=str(reason))


def _guarded(what: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """The findings, and one more where a file is too damaged to go on."""
    try:
        yield from findings
    except DAMAGED as error:
        yield Finding(
            what,
            _("can't be read: {name}: {error}", name=type(error).__name__, error=" ".join(str(error).split())[:200]),
        )
