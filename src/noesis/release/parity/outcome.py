"""What follows from a certificate: its figures are printed, files out of tolerance are renamed, the command fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from noesis.core.console import say
from noesis.core.errors import ParityError
from noesis.core.rooted import move
from noesis.release.parity.certificate import Certificate, Comparison


def name_files(certificate: Certificate, measured: Path, folder: Path) -> Certificate:
    """Move the files that were measured in `measured` to `folder`, those that must not be used as `*.rejected.gguf`.

    These are the files out of tolerance, and every file of a failed merge. A file takes the place of an earlier one
    only if it passed.

    Returns:
        the certificate with the new names.
    """

    def named(comparison: Comparison, bad_merge: bool) -> Comparison:
        if comparison.file is None:
            return comparison
        file = measured / comparison.file.name
        name = file.name if comparison.passed and not bad_merge else f"{file.stem}.rejected.gguf"
        if file != folder / name:
            move(file, folder / name)
        return replace(comparison, file=replace(comparison.file, name=name))

    bad_merge = certificate.merge is not None and not certificate.merge.passed
    return replace(
        certificate,
        files={kind: named(comparison, bad_merge) for kind, comparison in certificate.files.items()},
        adapter=certificate.adapter and named(certificate.adapter, False),
    )


def require_passed(certificate: Certificate, where: str = "gguf/parity.json") -> None:
    """Fail on the first part that is out of tolerance.

    Args:
        where: the file with all figures, for the message.

    Raises:
        ParityError: naming the part, the stage that broke it, and the figures.
    """
    for name, comparison in certificate.comparisons():
        if not comparison.passed:
            part = {"merged": "merged model", "adapter": "adapter GGUF"}.get(name, f"{name} GGUF")
            raise ParityError(
                f"the {part} must not be used: broken by the stage {comparison.broken_by}: {comparison.why} "
                f"({_figures(comparison)}); all figures are in {where}"
            )


def _figures(comparison: Comparison) -> str:
    found, allowed = comparison.divergence, comparison.tolerance
    if found.kl_mean is None or found.top1 is None:
        return "its logits are not finite"
    return (
        f"mean KL {found.kl_mean:.2g} of at most {allowed.kl_mean:.2g}, "
        f"same most likely token {found.top1:.3f} of at least {allowed.top1}"
    )


def show_certificate(certificate: Certificate) -> None:
    """Print the figures of a certificate that passed, one line per part."""
    for name, comparison in certificate.comparisons():
        found = comparison.divergence
        say(
            f"  {name}: mean KL {found.kl_mean:.1e}, same most likely token {found.top1:.3f} "
            f"at {certificate.positions:,} positions, "
            f"greedy answers equal for {comparison.answers.shared:.0%} of their length"
        )
    if certificate.merge and (other := certificate.merge.on_original_weights):
        say(
            f"  adapter on the base's original weights instead: mean KL {other.kl_mean:.1e}, "
            f"same most likely token {other.top1:.3f}"
        )
    say(f"  token ids equal on {certificate.strings} strings, chat templates rendered alike")
