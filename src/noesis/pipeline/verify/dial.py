"""The strength of the adapter: its choice from the figures of each strength, and the adapter from the trained one."""

from __future__ import annotations

from noesis.core.i18n import _, retold
from noesis.pipeline.stages.dial import derive_dial, keyed_items, set_strength
from noesis.pipeline.stages.strength.figures import Figures, figures_key, pair_places, read_figures
from noesis.pipeline.verify.evidence import Evidence, UncheckedError
from noesis.run.adapter_names import folder_of
from noesis.training.state.strength import is_scaled
from noesis.tribunal.kept.items import items_digest
from noesis.tribunal.kept.measure import is_right


def strength(e: Evidence) -> str | None:
    """Whether the strength follows from the setting or, where there is none, from the figures."""
    result, choice, config = e.results.dial, e.results.choice, e.config.training
    assert result is not None
    if choice is None:
        return _("no epoch was chosen, whose adapter it could be")
    fixed = config.strength.fixed
    if result.fixed:
        if result.strength != fixed:
            return _(
                "it is {strength:g} as it was set, and config.json sets {fixed}", strength=result.strength, fixed=fixed
            )
        return (
            None
            if result == set_strength(choice.adapter, result.strength)
            else _("it was set, and says more than that")
        )
    if fixed is not None:
        return _("config.json sets {fixed:g}, and it was chosen", fixed=fixed)
    figures = read_figures(e.run)
    derived = derive_dial(figures, choice.adapter, config.tribunal.max_forgetting)
    if derived != result:
        return _(
            "by dial/figures.json, {strength:g} is used: {reason}",
            strength=derived.strength,
            reason=retold(derived.reason),
        )
    return None


def figures(e: Evidence) -> str | None:
    """Whether the figures are of this base, adapter and data, and what is right follows from what the model did."""
    result, choice = e.results.dial, e.results.choice
    if result is None or choice is None or result.fixed:
        return None
    found, s = read_figures(e.run), e.session
    held_out = [s.dataset.held_out[i].id for i in pair_places(s)]
    if found.ids != held_out or set(found.measured) != {0.0, *e.config.training.strength.grid}:
        return _("dial/figures.json is of other held-out examples or strengths")
    if not (folder_of(e.run.checkpoints, choice.adapter) / "adapter_model.safetensors").is_file():
        raise UncheckedError(_("an adapter is missing"))
    if found.key != figures_key(s, choice.adapter, found.items):
        return _("dial/figures.json is of another model, adapter or settings")
    return _outcomes(e, found)


def _outcomes(e: Evidence, found: Figures) -> str | None:
    if not any(one.right for one in found.measured.values()):
        return None
    items = keyed_items(e.session, e.project.tribunal) if e.project else []
    if items_digest(items) != found.items:
        raise UncheckedError(_("the keyed items that it was measured on are not at hand"))
    for x, one in found.measured.items():
        derived = tuple(is_right(item, outcome) for item, outcome in zip(items, found.outcomes[x], strict=True))
        if derived != one.right:
            return e.differs(_("at {x:g} other keyed items are right by what the model did", x=x))
    return None


def adapter(e: Evidence) -> str | None:
    """Whether the adapter that is used is the trained one at this strength, bit for bit."""
    result, choice = e.results.dial, e.results.choice
    if result is None or choice is None or result.adapter == choice.adapter:
        return None
    trained = folder_of(e.run.checkpoints, choice.adapter)
    if not (trained / "adapter_model.safetensors").is_file():
        raise UncheckedError(_("the trained adapter is missing"))
    same = is_scaled(trained, e.run.dial / result.adapter, result.strength)
    return (
        None
        if same
        else _(
            "dial/{adapter} is not {choice_adapter} at strength {strength:g}",
            adapter=result.adapter,
            choice_adapter=choice.adapter,
            strength=result.strength,
        )
    )
