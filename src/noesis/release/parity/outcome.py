"""What follows from a certificate: its figures are printed, files out of tolerance are renamed, the command fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from noesis.core.console import say
from noesis.core.errors import ParityError
from noesis.core.i18n import N_, _, retold
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
            part = {"merged": N_("merged model"), "adapter": N_("adapter GGUF")}.get(name, f"{name} GGUF")
            raise ParityError(
                _(
                    "the {part} must not be used: broken by the stage {broken_by}: {why} "
                    "({figures}); all figures are in {where}",
                    part=retold(part),
                    broken_by=comparison.broken_by,
                    why=retold(comparison.why or ""),
                    figures=retold(_figures(comparison)),
                    where=where,
                )
            )


def _figures(comparison: Comparison) -> str:
    found, allowed = comparison.divergence, comparison.tolerance
    if found.kl_mean is None or found.top1 is None:
        return N_("its logits are not finite")
    return N_(
        "mean KL {kl_mean:.2g} of at most {allowed_kl_mean:.2g}, "
        "same most likely token {top1:.3f} of at least {allowed_top1}",
        kl_mean=found.kl_mean,
        allowed_kl_mean=allowed.kl_mean,
        top1=found.top1,
        allowed_top1=allowed.top1,
    )


def show_certificate(certificate: Certificate) -> None:
    """Print the figures of a certificate that passed, one line per part."""
    for name, comparison in certificate.comparisons():
        found = comparison.divergence
        say(
            _(
                "  {name}: mean KL {kl_mean:.1e}, same most likely token {top1:.3f} "
                "at {positions:,} positions, "
                "greedy answers equal for {shared:.0%} of their length",
                name=name,
                kl_mean=found.kl_mean,
                top1=found.top1,
                positions=certificate.positions,
                shared=comparison.answers.shared,
            )
        )
    if certificate.merge and (other := certificate.merge.on_original_weights):
        say(
            _(
                "  adapter on the base's original weights instead: mean KL {kl_mean:.1e}, "
                "same most likely token {top1:.3f}",
                kl_mean=other.kl_mean,
                top1=other.top1,
            )
        )
    say(_("  token ids equal on {strings} strings, chat templates rendered alike", strings=certificate.strings))
