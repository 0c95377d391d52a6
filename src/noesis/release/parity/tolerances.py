"""How far an export may be from its reference, and which stage is at fault when it is further.

The tolerances separate sound files from the known errors by a wide margin (docs/decisions/0004 and 0022).
"""

from __future__ import annotations

from collections.abc import Sequence

from noesis.release.parity.certificate import AnswerAgreement, Comparison, Divergence, Finding, Tolerance
from noesis.release.parity.figures import within_tolerance

# F32 and F16 prove the conversion; the quants are a quality budget. Merging rounds to 16 bits once.
TOLERANCES = {
    "merge": Tolerance(1e-3, 0.97, 0.6),
    "f32": Tolerance(2e-5, 0.985, 0.8),
    "f16": Tolerance(4e-5, 0.985, 0.8),
    "q8_0": Tolerance(3e-2, 0.85),
    "q4_k_m": Tolerance(0.4, 0.65),
    "adapter": Tolerance(1e-4, 0.96, 0.6),
}
# Quantisation disturbs models with billions of weights less.
LARGE_TOLERANCES = {"q8_0": Tolerance(5e-3, 0.93), "q4_k_m": Tolerance(6e-2, 0.85)}
LARGE_FROM = 3e9  # weights


def tolerance_of(kind: str, weights: float) -> Tolerance:
    """The tolerance of a kind of export (a GGUF kind, `merge` or `adapter`) for a model with this many weights."""
    return LARGE_TOLERANCES.get(kind, TOLERANCES[kind]) if weights > LARGE_FROM else TOLERANCES[kind]


def assess(
    divergence: Divergence,
    answers: AnswerAgreement,
    tolerance: Tolerance,
    *,
    stage: str,
    symptom: str,
    findings: Sequence[Finding] = (),
) -> Comparison:
    """A comparison with its outcome: it passes within the tolerance and without a finding.

    Args:
        stage: blamed where the figures are out of tolerance and nothing was found.
        symptom: the reason given in that case.
    """
    if within_tolerance(divergence, tolerance, answers) and not findings:
        return Comparison(divergence, answers, tolerance, passed=True)
    return Comparison(
        divergence,
        answers,
        tolerance,
        passed=False,
        findings=tuple(findings),
        broken_by=findings[0].stage if findings else stage,
        why="; ".join(finding.what for finding in findings) or symptom,
    )
