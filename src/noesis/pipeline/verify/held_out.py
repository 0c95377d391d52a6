"""The choice of the epoch and the judgement on the held-out examples, from each example's scores and answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from noesis.core.i18n import N_, _, retold
from noesis.core.jsonl import read_json_file
from noesis.pipeline.results import CheckpointScore, Choice, EpochFigures, adapter_folder, scores_file
from noesis.pipeline.stages.choose import BASE, choose_among, epoch_figures, score_keys
from noesis.pipeline.stages.kept import KEPT, figures_of
from noesis.pipeline.verify.evidence import Evidence, UncheckedError, as_json
from noesis.tribunal.court import no_judge_ruling
from noesis.tribunal.heldout import Score, compare
from noesis.tribunal.kept.items import KeptItem, read_kept_items
from noesis.tribunal.offline_screen import ScreenedPrompt, screen, tally


def _stored(e: Evidence, name: str) -> Any:
    return read_json_file(scores_file(e.run, name), constants=False)


def _scores(e: Evidence, name: str) -> dict[str, list[Score]]:
    return {
        part: [(float(total), int(tokens)) for total, tokens in pairs]
        for part, pairs in _stored(e, name)["scores"].items()
    }


def scored_models(e: Evidence) -> str | None:
    """Whether the scores are those of this base, these adapters and these examples: their keys say so."""
    choice = e.results.choice
    assert choice is not None
    dial = e.results.dial if e.run.state("dial") == "done" else None
    adapters = list(dict.fromkeys([*choice.epochs, *([dial.adapter] if dial else [])]))
    whole = [name for name in adapters if (adapter_folder(e.run, name) / "adapter_model.safetensors").is_file()]
    keys = score_keys(e.session, whole)
    wrong = [name for name, key in keys.items() if _stored(e, name)["key"] != key]
    if wrong:
        return _("the scores of {wrong} are of another model, adapter or other examples", wrong=", ".join(wrong))
    if len(whole) < len(adapters):
        raise UncheckedError(_("an adapter is missing"))
    return None


def choice(e: Evidence) -> str | None:
    result, train = e.results.choice, e.results.train
    assert result is not None
    seeds = [str(e.config.training.seed), *(train.seeds or {})] if train is not None else [""]
    by_seed = {seed: [n for n in result.epochs if _seed_of(n, seeds[0]) == seed] for seed in seeds}
    if train is not None:
        made = {f"epoch_{epoch}" for epoch in range(train.epochs)}
        made |= {f"seed_{seed}_{name}" for seed in seeds[1:] for name in made}
        if set(result.epochs) != made:
            return _(
                "it chose among {epochs}, and training made {train_epochs}",
                epochs=", ".join(result.epochs),
                train_epochs=len(made),
            )
    else:
        by_seed = {"": list(result.epochs)}
    ids, base = [example.id for example in e.dataset.held_out], _scores(e, BASE)
    scores = {name: _scores(e, name) for name in result.epochs}
    for name, told in result.epochs.items():
        if epoch_figures(ids, base, scores[name], told.tribunal) != told:
            return _("{name}'s figures do not follow from tribunal/checkpoints/", name=name)
    tribunal = {name: told.tribunal for name, told in result.epochs.items() if told.tribunal is not None}
    heard = set(tribunal) == set(next(iter(by_seed.values())))
    if result.by_tribunal != heard:
        return _("whether the Tribunal scored the epochs does not follow from their scores")
    limit = e.config.training.tribunal.max_forgetting

    def chosen(heard: dict[str, CheckpointScore]) -> Choice:
        if result.by_significance:
            return choose_among(ids, scores | {BASE: base}, by_seed, result.epochs, heard, limit)
        return Choice(*_best_epoch(result.epochs, heard, limit), bool(heard), result.epochs)

    derived = chosen(tribunal)
    if result.by_tribunal and (derived.adapter, derived.reason) != (result.adapter, result.reason):
        # judges that were not fit are not recorded but in the reason: then the held-out examples decide
        derived = replace(chosen({}), reason=result.reason)
        if "(judge not fit" not in result.reason:
            return _("the choice does not follow from the Tribunal's scores of the epochs")
    if (derived.seeds, derived.disagreement) != (result.seeds, result.disagreement):
        return _("what it says of the seeds does not follow from their scores")
    if (derived.adapter, derived.reason) == (result.adapter, result.reason):
        return None
    return _("by its figures, {name} is chosen: {why}", name=derived.adapter, why=retold(derived.reason))


def _seed_of(name: str, first: str) -> str:
    """The seed of an adapter by its name."""
    return name.split("_")[1] if name.startswith("seed_") else first


def _best_epoch(
    figures: dict[str, EpochFigures], tribunal: dict[str, CheckpointScore], max_drop: float
) -> tuple[str, str]:
    """(epoch, the rule in words) as early versions chose: the best figure, of equal epochs the later one."""
    epochs = list(figures)
    if len(epochs) == 1:
        return epochs[0], N_("the only epoch")
    why = N_("no judge is set")
    if tribunal:
        why = next((score.unfit_reason for score in tribunal.values() if score.unfit_reason), "") or ""
        sound = [
            name
            for name, score in tribunal.items()
            if score.mean is not None
            and not score.vetoed
            and (score.accuracy_drop is None or score.accuracy_drop <= max_drop)
        ]
        if not why and sound:
            best = max(sound, key=lambda name: (tribunal[name].mean or 0.0, epochs.index(name)))
            among = N_(
                "{sound} of {epochs} epochs without a veto or forgetting beyond {max_drop:g}",
                sound=len(sound),
                epochs=len(epochs),
                max_drop=max_drop,
            )
            return best, N_("the Tribunal's mean on its dev prompts, among {among}", among=among)
        why = why or N_("the Tribunal found a veto or forgetting in every epoch")
    best = max(epochs, key=lambda name: (figures[name].preferred, figures[name].mean_margin, epochs.index(name)))
    return best, N_("held-out preference accuracy, then mean margin ({why})", why=why)


def preference(e: Evidence) -> str | None:
    result, chosen = e.results.judge, e.results.choice
    assert result is not None
    told = result.preference
    dial = e.results.dial if e.run.state("dial") == "done" else None
    used = dial.adapter if dial else chosen.adapter if chosen else ""
    adapter = told.adapter or used
    if used and adapter != used:
        return _("it is of {adapter}, and {used} is used", adapter=adapter, used=used)
    ids = [example.id for example in e.dataset.held_out]
    derived = compare(ids, _scores(e, BASE), _scores(e, adapter), adapter=told.adapter)
    same = as_json(derived.to_json()) == as_json(told.to_json())
    return None if same else _("preference and held-out loss do not follow from the scores of each example")


def answers(e: Evidence) -> str | None:
    """The screen's flags and totals from the answers, and the answers from the held-out examples."""
    result = e.results.judge
    assert result is not None
    if e.json_of("tribunal", "summary.json") != e.run.result("judge"):
        return _("tribunal/summary.json and the manifest differ")
    examples = {example.id: example for example in e.dataset.held_out}
    rows = e.rows("tribunal", "answers.jsonl")
    for row in rows:
        example = examples.get(row["id"])
        if example is None or (row["prompt"], row["written"]) != (example.prompt, example.response_revised):
            return _("tribunal/answers.jsonl: {row} is not one of the held-out examples", row=row["id"])
        screened = ScreenedPrompt(example.prompt, example.language, example.stance)
        for model in ("base", "tuned"):
            if screen(row[model]["answer"], screened, e.constitution) != row[model]["flags"]:
                return e.differs(
                    _("the {model} model's answer to {row} is flagged in another way", model=model, row=row["id"])
                )
    for model, told in (("base", result.screen.base), ("tuned", result.screen.tuned)):
        if tally([row[model]["flags"] for row in rows]) != told:
            return _("the screen's totals for the {model} model do not follow from tribunal/answers.jsonl", model=model)
    return None


def kept(e: Evidence) -> str | None:
    """What training broke, from what both models did with each item, and from their answers."""
    result = e.results.judge
    assert result is not None
    if result.kept is None:
        return None if not e.run.path.joinpath(*KEPT).is_file() or not e.rows(*KEPT) else _("its figures are missing")
    derived = figures_of(e.rows(*KEPT), e.rows("tribunal", "answers.jsonl"))
    if derived is None or as_json(derived.to_json()) != as_json(result.kept.to_json()):
        return e.differs(_("gained, kept and lost do not follow from tribunal/kept.jsonl"))
    known = {item.id: item for item in read_kept_items(e.project.tribunal)} if e.project is not None else {}
    items = [KeptItem.model_validate(row["item"]) for row in e.rows(*KEPT)]
    if any(known.get(item.id) != item for item in items):
        raise UncheckedError(_("the figures follow, but the items are not those of a project at hand"))
    return None


def ruling_without_judges(e: Evidence) -> str | None:
    """On the held-out examples no judge is asked: there is no other ruling than UNDECIDED."""
    result = e.results.judge
    assert result is not None
    told, derived = result.court, no_judge_ruling(e.config.training.tribunal)
    if told.verdict != derived.verdict:
        return _(
            "it says {verdict}, and without a judge there is no verdict but {derived_verdict}",
            verdict=told.verdict,
            derived_verdict=derived.verdict,
        )
    same = (told.approval_threshold, told.judge_floor, told.judges) == (
        derived.approval_threshold,
        derived.judge_floor,
        derived.judges,
    )
    return None if same else _("its thresholds and weights are not those of config.json")
