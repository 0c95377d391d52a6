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
    Check("nothing lies in the run that does not belong there", "", records.check_contents),
    Check("the settings that decide the adapter are the manifest's", "", origin.deciding_settings),
    Check("all other settings are the manifest's", "", origin.all_settings),
    Check("the examples and the constitution are the manifest's", "", origin.data),
    Check("the base model is the manifest's", "", origin.base_model),
    Check("the parent's adapter is the manifest's", "", origin.parent),
    Check("the ledger adds up", "", origin.ledger),
    Check("the export's statistics follow from the data", "export", origin.statistics),
    Check("the plan's tokens follow from the examples", "plan", origin.tokens),
    Check("what was executed follows the plan", "train", training.executed_plan),
    Check("training's figures follow from metrics.jsonl", "train", training.figures),
    Check("the epochs are those that were trained", "train", training.epochs),
    Check("the saved states are whole", "", training.states),
    Check("the scores are of this base and these adapters", "choose", held_out.scored_models),
    Check("the choice of the checkpoint follows from the scores", "choose", held_out.choice),
    Check("the dial's figures are of this base, this adapter and these examples", "dial", dial.figures),
    Check("the strength follows from the dial's figures", "dial", dial.strength),
    Check("the adapter that is used is the trained one at that strength", "dial", dial.adapter),
    Check("preference and loss follow from the scores", "judge", held_out.preference),
    Check("the screen's flags and totals follow from the answers", "judge", held_out.answers),
    Check("what training broke follows from both models' outcomes", "judge", held_out.kept),
    Check("there is no verdict where no judge was asked", "judge", held_out.ruling_without_judges),
    Check("the verdicts follow from their evidence", "trial", trial.evidence),
    Check("the trial's opinions and means follow from the verdicts", "trial", trial.opinions),
    Check("the ruling has what it needs", "trial", trial.approval),
    Check("the ruling follows from answers and verdicts", "trial", trial.ruling),
    Check("the model's provenance is this run's", "merge", release.origin),
    Check("the model card follows from the results", "merge", release.card),
    Check("the parity certificate follows from its figures", "gguf", release.certificate),
    Check("the adapter's GGUF file is the certified one", "gguf", release.adapter_file),
)


def verify(run: Run, project: Project | None = None, *, sha256: str | None = None) -> Iterator[Finding]:
    """One finding after the other.

    Args:
        project: whose suite and calibrations a trial is derived from.
        sha256: of manifest.json as the user kept it, in hexadecimal.
    """
    if sha256 is not None:
        found = manifest_sha256(run)
        wrong = None if found == _digest(sha256) else f"it has {found}"
        yield Finding("manifest.json has the hash that you kept", wrong)
    evidence = Evidence(run, project)
    yield from _guarded("the stages' records", records.check_stages(run))
    for check in CHECKS:
        if not check.stage or run.state(check.stage) == "done":
            yield from _guarded(check.what, _made(check, evidence))


def _digest(text: str) -> str:
    """The digest in `HEX`, `sha256:HEX` or a line of `sha256sum`. Raises UsageError where there is none."""
    found = re.fullmatch(r"(?:sha256:)?([0-9a-f]{64})(?:\s.*)?", text.strip().lower())
    if found is None:
        raise UsageError(f"--sha256 {text[:80]!r} is no SHA-256 hash: give its 64 hexadecimal digits")
    return found[1]


def manifest_sha256(run: Run) -> str:
    """SHA-256 of manifest.json, which holds the hash of everything that the run's stages have left."""
    return sha256_file(run.path / "manifest.json")


def _made(check: Check, evidence: Evidence) -> Iterator[Finding]:
    try:
        yield Finding(check.what, check.find(evidence))
    except UncheckedError as reason:
        yield Finding(check.what, unchecked=str(reason))


def _guarded(what: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """The findings, and one more where a file is too damaged to go on."""
    try:
        yield from findings
    except DAMAGED as error:
        yield Finding(what, f"can't be read: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
