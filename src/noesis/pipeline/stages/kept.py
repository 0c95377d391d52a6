"""What training broke, as part of the stage judge: the small tasks by base and tuned model, and how far it drifted.

Each item, with what both models did, is a row of `tribunal/kept.jsonl`; every figure follows from these rows.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from noesis.core.console import Progress, duration, say
from noesis.core.i18n import _, joined, retold
from noesis.core.project import Project
from noesis.llm.tokenizer import ChatTokenizer, load_tokenizer
from noesis.pipeline.results import RunResults
from noesis.pipeline.session import RunSession
from noesis.run.adapter_names import folder_of
from noesis.tribunal.kept.figures import KeptFigures, KeptGroup, kept_figures
from noesis.tribunal.kept.form import Form, form_of
from noesis.tribunal.kept.items import KeptItem, items_digest, read_kept_items, subset
from noesis.tribunal.kept.measure import Outcome, conversation, is_right, outcomes

KEPT = ("tribunal", "kept.jsonl")
MOST_DRIFT = 24  # of the base's own answers, on which the drift is measured

Rows = list[dict[str, Any]]


def measure_items(s: RunSession, adapter: Path, project: Project | None) -> Rows:
    """A row for each item: the item, what base and tuned model did, and the drift on the base's answer.

    Args:
        project: whose items are measured; none where it has no `data/tribunal/kept`, or the settings ask for none.

    Raises:
        DataError: an item is wrong.
    """
    count = s.config.training.tribunal.kept_items
    items = subset(read_kept_items(project.tribunal), count) if project is not None and count else []
    if not items:
        return []
    from noesis.llm.generation.drift import drift_on
    from noesis.training.base_model import compute_context, load_base, with_adapter

    started = time.monotonic()
    tokenizer = load_tokenizer(s.model.path)
    model = with_adapter(load_base(s.model.path, s.as_trained, s.device, longest=1), adapter)
    found: dict[str, list[Outcome]] = {}
    with compute_context(model, s.as_trained, s.device):
        for name in ("base", "tuned"):
            with Progress(_("small tasks ({name})", name=retold(name)), len(items), _("items")) as progress:
                if name == "base":
                    with model.disable_adapter():
                        found[name] = outcomes(model, tokenizer, items, on_items=progress.advance)
                else:
                    found[name] = outcomes(model, tokenizer, items, on_items=progress.advance)
        said = [i for i, outcome in enumerate(found["base"]) if outcome.said][:MOST_DRIFT]
        drift = drift_on(
            model, tokenizer, [conversation(items[i]) for i in said], [found["base"][i].said for i in said]
        )
        by_seed = _of_other_seeds(s, model, tokenizer, items)
    del model
    gc.collect()
    rows: Rows = [
        {"item": item.model_dump(mode="json", exclude_defaults=True), "base": base.to_json(), "tuned": tuned.to_json()}
        for item, base, tuned in zip(items, found["base"], found["tuned"], strict=True)
    ]
    for i, (total, tokens) in zip(said, drift, strict=True):
        rows[i]["drift"] = [round(total, 5), tokens]
    for seed, of_seed in by_seed.items():
        for row, outcome in zip(rows, of_seed, strict=True):
            row.setdefault("seeds", {})[seed] = outcome.to_json()
    say(
        _(
            "  small tasks: {items} items by both models in {monotonic}",
            items=len(items),
            monotonic=duration(time.monotonic() - started),
        )
    )
    return rows


def _of_other_seeds(
    s: RunSession, model: Any, tokenizer: ChatTokenizer, items: Sequence[KeptItem]
) -> dict[str, list[Outcome]]:
    """What the chosen epochs of the seeds that are not used do, at the strength of the one that is."""
    from noesis.training.base_model import swap_adapter
    from noesis.training.state.strength import at_strength

    results = RunResults(s.run)
    choice, dial = results.choice, results.dial
    found = {}
    for seed, name in (choice.seeds if choice else {}).items():
        if choice is None or name == choice.adapter:
            continue
        swap_adapter(model, folder_of(s.run.checkpoints, name))
        with (
            at_strength(model, dial.strength if dial else 1.0),
            Progress(_("seed {seed}", seed=seed), len(items), _("items")) as progress,
        ):
            found[seed] = outcomes(model, tokenizer, items, on_items=progress.advance)
    return found


def figures_of(rows: Sequence[dict[str, Any]], answers: Sequence[dict[str, Any]]) -> KeptFigures | None:
    """The figures that follow from the rows of `tribunal/kept.jsonl`; None without a row.

    Args:
        answers: rows of `tribunal/answers.jsonl`, for length and repetition.
    """
    if not rows:
        return None
    items = [KeptItem.model_validate(row["item"]) for row in rows]
    right = {
        name: [is_right(item, Outcome.from_json(row[name])) for item, row in zip(items, rows, strict=True)]
        for name in ("base", "tuned")
    }
    drift = [(float(row["drift"][0]), int(row["drift"][1])) for row in rows if "drift" in row]
    seeds = {
        seed: [is_right(item, Outcome.from_json(row["seeds"][seed])) for item, row in zip(items, rows, strict=True)]
        for seed in rows[0].get("seeds", {})
    }
    form: dict[str, Form] = {}
    if answers:
        form = {name: form_of([row[name]["answer"] for row in answers]) for name in ("base", "tuned")}
    return kept_figures(items_digest(items), items, right["base"], right["tuned"], drift=drift, form=form, seeds=seeds)


def show_kept(figures: KeptFigures | None) -> None:
    """Print what training broke: all items, and each language and kind."""
    if figures is None:
        say(
            _(
                "  what it broke          not measured: no items in data/tribunal/kept, kept_items: 0, "
                "or a run of before"
            )
        )
        return
    say(_("  what it broke          {in_words}", in_words=in_words(figures.all)))
    if figures.all.caution:
        say(f"    {retold(figures.all.caution)}")
    for groups, title in ((figures.by_language, ""), (figures.by_kind, ""), (figures.by_tier, _("tier") + " ")):
        for name, group in groups.items():
            caution = f" ({retold(group.caution)})" if group.caution else ""
            say(
                _(
                    "    {title:<20} kept {kept}, lost {lost}, gained {gained}{caution}",
                    title=title + retold(name),
                    kept=group.kept,
                    lost=group.lost,
                    gained=group.gained,
                    caution=caution,
                )
            )
    if figures.by_seed:
        say(_("    seeds                {words}", words=seeds_in_words(figures)))
    if figures.drift is not None:
        say(
            _(
                "    drift                {drift:.3f} nats a token (KL) on the base's own short answers",
                drift=figures.drift,
            )
        )
    if figures.form:
        base, tuned = figures.form["base"], figures.form["tuned"]
        say(
            _(
                "    answers              {words:g} → {tuned_words:g} words, "
                "repeated {repeated:.0%} → {tuned_repeated:.0%}",
                words=base.words,
                tuned_words=tuned.words,
                repeated=base.repeated,
                tuned_repeated=tuned.repeated,
            )
        )


def seeds_in_words(figures: KeptFigures) -> str:
    """`lost 5, 2 (seed 43), 4 (seed 44): 3.7 ± 1.5 of 40; gained 3, …`: the used adapter first."""

    def counted_by_seed(figure: str) -> str:
        first, others = getattr(figures.all, figure), {n: getattr(g, figure) for n, g in figures.by_seed.items()}
        of_others = (_("{count} (seed {seed})", count=count, seed=seed) for seed, count in others.items())
        values = [first, *others.values()]
        spread = {"mean": fmean(values), "sd": stdev(values)}
        return _("{each}: {mean:.1f} ± {sd:.1f}", each=joined(", ", (str(first), *of_others)), **spread)

    return _(
        "lost {lost} of {base}; gained {gained}",
        lost=counted_by_seed("lost"),
        base=figures.all.base,
        gained=counted_by_seed("gained"),
    )


def in_words(group: KeptGroup) -> str:
    """`lost 5 of the 40 that the base could do (95%: 5% to 26%), gained 3 of the other 60; McNemar p 0.73`."""
    low, high = group.lost_95
    lost = _("lost {lost} of the {base} that the base could do", lost=group.lost, base=group.base)
    if group.base:
        lost = _("{lost} (95%: {low:.0%} to {high:.0%})", lost=lost, low=low, high=high)
    return _(
        "{lost}, gained {gained} of the other {items}; McNemar p {p:.2g}",
        lost=lost,
        gained=group.gained,
        items=group.items - group.base,
        p=group.p,
    )
