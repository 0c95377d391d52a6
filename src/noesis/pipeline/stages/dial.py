"""Stage dial: how strongly the chosen adapter is used. `noesis dial RUN`, and `--strength` to set it.

The adapter's update of the base is scaled over a grid and measured at each strength: the held-out pairs, keyed items
and the drift from the base (`strength/figures.py`); `strength/rule.py` chooses. An adapter at another strength than the
trained one is written below dial/, and everything after this stage takes it for the run's adapter.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from noesis.core.config import StrengthSection
from noesis.core.console import say
from noesis.core.errors import UsageError
from noesis.core.files import files_in, make_folder
from noesis.core.i18n import N_, _, retold
from noesis.core.rooted import remove
from noesis.pipeline.results import Dial, read_result
from noesis.pipeline.session import RunSession
from noesis.pipeline.stages.choose import score_checkpoints
from noesis.pipeline.stages.strength.figures import Figures, figures_file, measure_strengths
from noesis.pipeline.stages.strength.rule import choose_strength, strength_figures
from noesis.pipeline.tracking import dial_figures, track
from noesis.planning.budget import require_remaining
from noesis.run.adapter_names import folder_of
from noesis.run.manifest import Json
from noesis.tribunal.kept.items import KeptItem, read_kept_items, subset

TRAINED = 1.0
SET = N_("it was set")  # the reason of a strength that nobody chose


def run_dial(s: RunSession, tribunal: Path | None = None, *, again: bool = False) -> Dial:
    """Set or choose the strength, and write the adapter at it.

    Args:
        tribunal: folder of the Tribunal's data, with the keyed items; None: losses are not known.

    Raises:
        CapError: the budget is spent.
        DataError: a keyed item is wrong.
    """
    section = s.config.training.strength
    fixed = section.fixed
    if fixed is not None and fixed > max(section.grid):
        say(
            _(
                "  strength {fixed:g} is beyond the grid, which ends at {grid:g}: nothing is known of it",
                fixed=fixed,
                grid=max(section.grid),
            )
        )

    def work() -> Json:
        require_remaining(s.budget(), "choosing the strength")
        make_folder(s.run.dial)
        epoch = s.run.trained_adapter().name
        dial = set_strength(epoch, fixed) if fixed is not None else _choose(s, epoch, keyed_items(s, tribunal))
        _write_adapter(s, epoch, dial)
        track(s, dial_figures(dial))
        return dial.to_json()

    before = s.run.result("dial") or {}
    again = again or (bool(before) and (before.get("strength") if before.get("fixed") else None) != fixed)
    stored = s.run.perform("dial", work, lambda: files_in(s.run.dial, below=True), again=again)
    dial = read_result(s.run, "dial", stored, Dial.from_json)
    show_dial(dial)
    return dial


def with_strength(s: RunSession, strength: float | None) -> RunSession:
    """The session with the strength set from now on; None: it is chosen.

    Raises:
        UsageError: it is no strength.
    """
    section = s.config.training.strength
    try:
        section = StrengthSection.model_validate(section.model_dump() | {"fixed": strength})
    except ValidationError as error:
        raise UsageError(
            _(
                "--strength {strength:g}: {errors}",
                strength=strength,
                errors=error.errors()[0]["msg"].removeprefix("Value error, "),
            )
        ) from None
    s = replace(s, config=s.config.with_settings(training={"strength": section}))
    s.run.record_settings(s.config)
    return s


def keyed_items(s: RunSession, tribunal: Path | None) -> list[KeptItem]:
    """The keyed items of a dial, evenly spread: in the run's language, or in all where it has none of its own."""
    if tribunal is None:
        return []
    language = s.config.training.data.language
    own = read_kept_items(tribunal, (language,))
    return subset(own or read_kept_items(tribunal), s.config.training.strength.items)


def set_strength(epoch: str, strength: float) -> Dial:
    """The result where the strength was set; nothing is measured for it."""
    return Dial(strength, scaled_name(epoch, strength), SET, fixed=True)


def derive_dial(figures: Figures, epoch: str, max_forgetting: float) -> Dial:
    """The result where the strength is chosen, from the figures."""
    strength, reason = choose_strength(figures.ids, figures.measured, max_forgetting)
    items = len(figures.measured[0.0].right)
    curve = strength_figures(figures.ids, figures.measured)
    return Dial(strength, scaled_name(epoch, strength), reason, False, len(figures.ids), items, curve)


def scaled_name(epoch: str, strength: float) -> str:
    """Name of an epoch's adapter at this strength."""
    return epoch if strength == TRAINED else f"{epoch}_at_{strength:g}"


def _choose(s: RunSession, epoch: str, items: list[KeptItem]) -> Dial:
    training = s.config.training
    return derive_dial(measure_strengths(s, epoch, items), epoch, training.tribunal.max_forgetting)


def _write_adapter(s: RunSession, epoch: str, dial: Dial) -> None:
    """Leave below dial/ this strength's adapter with its scores, and no other."""
    from noesis.training.state.strength import write_scaled_adapter

    keep = {dial.adapter, f"{dial.adapter}.json", *([figures_file(s.run).name] if dial.curve else [])}
    for item in s.run.dial.iterdir():
        if item.name not in keep:
            remove(item)
    if dial.adapter != epoch:
        write_scaled_adapter(folder_of(s.run.checkpoints, epoch), s.run.dial / dial.adapter, dial.strength)
        score_checkpoints(s, [dial.adapter])


def show_dial(dial: Dial) -> None:
    """Print the curve, the strength and why."""
    for f in dial.curve:
        what = "base" if not f.strength else _("strength {strength:g}", strength=f.strength)
        kept = (
            _(
                "; {right} of {items} keyed items right (lost {lost}, gained {gained})",
                right=f.right,
                items=dial.items,
                lost=f.lost,
                gained=f.gained,
            )
            if dial.items
            else ""
        )
        say(
            _(
                "  {what}: prefers {preferred} of {pairs} revisions, margin {mean_margin:+.4f}, "
                "held-out loss {held_out_loss:.4f}{kept}; drift {drift:.4f}",
                what=what,
                preferred=f.preferred,
                pairs=dial.pairs,
                mean_margin=f.mean_margin,
                held_out_loss=f.held_out_loss,
                kept=kept,
                drift=f.drift,
            )
        )
    say(_("  strength {strength:g} is used: {reason}", strength=dial.strength, reason=retold(dial.reason)))
