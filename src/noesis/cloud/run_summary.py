"""The last lines of a run on Modal: where everything is on the volume, what it cost, how often it was preempted."""

from __future__ import annotations

from pathlib import Path

from noesis.cloud.cost import metered_lines
from noesis.cloud.volume.layout import get_command
from noesis.cloud.volume.notes import OpenedRun, judged_epochs
from noesis.core.console import command, size
from noesis.core.files import sha256_file
from noesis.core.i18n import N_, _, ngettext
from noesis.run.directory import Run, load_run
from noesis.run.manifest import Manifest
from noesis.tribunal.court import Ruling
from noesis.tribunal.heldout import Preference

NAMES = {
    "train": N_("training"),
    "judge": N_("judging"),
    "trial": N_("the trial"),
    "merge": N_("merging"),
    "gguf": N_("writing GGUF"),
}


def summary_lines(root: Path, *, volume: str | None = None, no_trial: str | None = None) -> list[str]:
    """The summary of the run at `root`, the volume's root.

    Args:
        volume: its name, for the commands to type; None: as the run's configuration says.
        no_trial: why the judges held no trial this time.
    """
    run = load_run(root)
    volume = volume or run.config().training.modal.volume
    opened = OpenedRun.read(root)
    lines = ["", _("Where everything is on the volume"), *_places(run)]
    lines += ["", *_epochs(run), *_verdict(run, no_trial)]
    lines += ["", _("What it cost"), *metered_lines(run.manifest, run.config().training.budget.brl_per_usd)]
    lines += preemption_lines(run.manifest, opened.starts if opened else 1)
    target = f"runs/{run.merged.name}"
    if run.is_done("merge"):
        lines += [
            "",
            _("Next:    {command}", command=command("cloud", "pull", target)),
            _("   or    {command}", command=get_command(volume, f"/merged/{run.merged.name}", "model_output")),
        ]
    kept = command("verify", target, "--sha256", sha256_file(run.path / "manifest.json"))
    return [
        *lines,
        "",
        _("Keep     {kept}", kept=kept),
        _("         shows after the pull that this is still this run's manifest"),
    ]


def _places(run: Run) -> list[str]:
    """Each part of the run that exists: its path on the volume and its size."""
    found = []
    for name, path in (
        ("adapters", run.checkpoints),
        ("strength", run.dial),
        ("model", run.merged),
        ("GGUF", run.gguf),
        ("report", run.report),
        ("metrics", run.metrics),
    ):
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        files = [p for p in files if "resume" not in p.relative_to(run.path).parts]
        if files:
            total = size(sum(p.stat().st_size for p in files))
            found.append(f"  {name:9} /{path.relative_to(run.path).as_posix()}  {total}")
    return found


def _epochs(run: Run) -> list[str]:
    """Held-out loss and preference after each epoch; the last one is judged as the run's own."""
    found = [(judged.epoch, judged.preference) for judged in judged_epochs(run.path)]
    own = run.result("judge")
    if own and found:
        found.append((found[-1][0] + 1, Preference.from_json(own["preference"])))
    return [
        _(
            "  epoch_{epoch}  held-out loss {held_out_loss:.4f}, prefers the revised answer {preferred}/{examples}",
            epoch=epoch,
            held_out_loss=p.tuned.held_out_loss,
            preferred=p.tuned.preferred,
            examples=p.examples,
        )
        for epoch, p in found
    ]


def _verdict(run: Run, no_trial: str | None) -> list[str]:
    found = run.result("trial") or run.result("judge")
    if not found:
        return []
    ruling = Ruling.from_json(found["court"])
    lines = [f"  Tribunal: {ruling.verdict}: {ruling.reason}"]
    if no_trial is not None and ruling.reason != no_trial:
        lines.append(_("  That is of an earlier trial; none was held now: {no_trial}", no_trial=no_trial))
    return lines


def preemption_lines(manifest: Manifest, starts: int = 1) -> list[str]:
    """How often a stage's container was preempted before the stage had ended.

    Args:
        starts: containers of the training; one that was killed before it could publish anything is in no ledger.
    """
    counts: dict[str, int] = {}
    for entry in manifest.ledger:
        if entry.ended in ("interrupted", "killed"):
            counts[entry.stage] = counts.get(entry.stage, 0) + 1
    if starts - 1 > counts.get("train", 0):
        counts["train"] = starts - 1
    return [
        ngettext(
            "  {stage} was preempted {count} time and resumed each time",
            "  {stage} was preempted {count} times and resumed each time",
            n,
            stage=_(NAMES[stage]) if stage in NAMES else stage,
        )
        for stage, n in counts.items()
    ]
