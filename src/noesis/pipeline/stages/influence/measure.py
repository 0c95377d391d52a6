"""`noesis influence RUN`: the training examples by how their gradients lie to what was gained and lost.

At the adapter of each epoch up to the one that is used, and their mean: training passed there. Each epoch's figures are
kept as they are made, so that a stopped command goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from noesis.core.console import Progress, command, say
from noesis.core.errors import RunError, UsageError
from noesis.core.files import make_folder, sha256_file, sha256_json, write_json
from noesis.core.i18n import _, ngettext
from noesis.core.jsonl import MAX_RUN_FILE, read_json_file, read_objects
from noesis.dataset.encode import answer_rows, training_rows
from noesis.llm.chat_template import encode
from noesis.llm.token_rows import TokenRow
from noesis.pipeline.results import RunResults
from noesis.pipeline.session import RunSession
from noesis.pipeline.stages.influence.figures import FOLDER, QUOTED, SUMMARY, ExampleInfluence, Influence
from noesis.pipeline.stages.kept import KEPT
from noesis.planning.budget import require_remaining
from noesis.run.adapter_names import name_of
from noesis.run.manifest import Json
from noesis.training.job import TrainingSet, TrainJob
from noesis.training.state.adapter import ADAPTER_FILE
from noesis.tribunal.kept.items import KeptItem
from noesis.tribunal.kept.measure import Outcome, conversation, is_right

FEW_PAIRS = 8  # below this many held-out pairs, one of them decides the margin's gradient


def run_influence(s: RunSession, *, again: bool = False) -> Influence:
    """Measure each training example's influence.

    Raises:
        UsageError: the run was trained by another method than `sft`. RunError: it is not trained and chosen yet.
        CapError: the budget is spent.
    """
    method = s.config.training.method
    if method != "sft":
        raise UsageError(
            _(
                "{path} was trained by method: {method}, and influence is measured of training on the examples' own "
                "answers: train with method: sft",
                path=s.run.path,
                method=method,
            )
        )
    if RunResults(s.run).choice is None or s.run.state("choose") != "done":
        raise RunError(
            _(
                "{path} has no epoch chosen yet: run  {command}  first",
                path=s.run.path,
                command=command("train", "--run", s.run.path),
            )
        )
    file = s.run.path / FOLDER / SUMMARY

    def work() -> Json:
        require_remaining(s.budget(), "measuring influence")
        write_json(file, _measured(s).to_json())
        return {"sha256": sha256_file(file)}

    result = s.run.perform("influence", work, list, again=again or not _is_current(s, file))
    if not file.is_file() or sha256_file(file) != result["sha256"]:
        raise RunError(
            _(
                "{file} was changed: measure again with  {command} --again",
                file=file,
                command=command("influence", s.run.path),
            )
        )
    return Influence.from_json(read_json_file(file, constants=False))


def _is_current(s: RunSession, file: Path) -> bool:
    """Whether what was measured is of the adapters that are used now."""
    result = s.run.result("influence")
    if result is None or not file.is_file() or sha256_file(file) != result.get("sha256"):
        return False
    return list(read_json_file(file, constants=False)["adapters"]) == [name_of(folder) for folder in _epochs(s)]


def _epochs(s: RunSession) -> list[Path]:
    """The adapters of the epochs of the seed that is used, up to the one that is."""
    chosen = s.run.trained_adapter()
    epochs = next(found for found in s.run.adapters().values() if chosen in found)
    return epochs[: epochs.index(chosen) + 1]


def _measured(s: RunSession) -> Influence:
    from noesis.training.influence.gradients import Weighted

    t, examples, pairs = s.config.training, s.dataset.train, s.dataset.held_out
    critique = t.constitutional_ai.include_critique
    rows = training_rows(examples, s.encoder, s.constitution, include_critique=critique, max_length=t.max_length)
    revised, initial = (answer_rows(pairs, which, s.encoder, s.constitution) for which in ("revised", "initial"))
    weighted = [(row, 1.0) for row in revised] + [(row, -1.0) for row in initial]
    lost = _lost(s)
    figures = [[Weighted(row, sign / (len(pairs) * row.predicted)) for row, sign in weighted]]
    if lost:
        figures.append([Weighted(row, sign / len(lost)) for both in lost for row, sign in both])
    _say_what(len(rows), len(pairs), len(lost))
    by_epoch = _by_epoch(s, rows, figures)
    return Influence(
        tuple(name_of(folder) for folder in _epochs(s)),
        len(pairs),
        len(lost),
        tuple(
            ExampleInfluence(
                example.id,
                example.language,
                " ".join(example.prompt.split())[:QUOTED],
                _mean([found[0][i] for found in by_epoch]),
                _mean([found[1][i] for found in by_epoch]) if lost else None,
            )
            for i, example in enumerate(examples)
        ),
    )


def _say_what(rows: int, pairs: int, lost: int) -> None:
    say(
        _(
            "  {examples}, by {pairs} and {tasks}",
            examples=ngettext("{count:,} example", "{count:,} examples", rows),
            pairs=ngettext("{count:,} held-out pair", "{count:,} held-out pairs", pairs),
            tasks=ngettext("{count:,} lost task", "{count:,} lost tasks", lost),
        )
    )
    if pairs < FEW_PAIRS:
        say(
            _(
                "  fewer than {few} held-out pairs: the margin's gradient is that of a few answers, read with care",
                few=FEW_PAIRS,
            )
        )
    if not lost:
        say(
            _(
                "  nothing was lost that is compared by likelihood (or the run is not judged): "
                "only the margin is looked at"
            )
        )


def _by_epoch(s: RunSession, rows: Sequence[TokenRow], figures: Sequence[Sequence[Any]]) -> list[list[list[float]]]:
    """(figures, rows) similarities at each epoch's adapter; those that an earlier command left are read."""
    from noesis.training.influence.gradients import GradientModel

    plan, place = s.plan, s.run.path / FOLDER
    if plan is None:
        raise RunError(
            _("{path} was planned by an early version: train it again to measure influence", path=s.run.path)
        )
    measured = [[(w.row.input_ids, w.weight) for w in figure] for figure in figures]
    key = sha256_json([s.model.revision, s.arithmetic, [(row.input_ids, row.trained) for row in rows], measured])
    keys = {folder: f"{key}-{sha256_file(folder / ADAPTER_FILE)}" for folder in _epochs(s)}
    known = {folder: _stored(place / f"{name_of(folder)}.json", key) for folder, key in keys.items()}
    missing = [folder for folder, found in known.items() if found is None]
    if missing:
        job = TrainJob(s.model.path, TrainingSet(rows=list(rows)), s.as_trained, plan, s.device, place, place / "none")
        model = GradientModel(job)
        make_folder(place)
        read = [*rows, *(w.row for figure in figures for w in figure)]
        with Progress("influence", len(missing) * sum(len(row.input_ids) for row in read), "tok") as progress:
            for folder in missing:
                found = model.similarities(folder, rows, figures, lambda row: progress.advance(len(row.input_ids)))
                write_json(place / f"{name_of(folder)}.json", {"key": keys[folder], "similarities": found})
                known[folder] = found
    return [found for found in known.values() if found is not None]


def _mean(values: Sequence[float]) -> float:
    return round(fmean(values), 5)


def _stored(file: Path, key: str) -> list[list[float]] | None:
    """The similarities at an adapter from an earlier command, if they are of the same figures."""
    try:
        stored = read_json_file(file, constants=False)
        return [[float(x) for x in row] for row in stored["similarities"]] if stored["key"] == key else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, OverflowError):
        return None


def _lost(s: RunSession) -> list[list[tuple[Any, float]]]:
    """For each small task that was lost and is compared: its answer, and the distractor that is likelier now."""
    file = s.run.path.joinpath(*KEPT)
    if not file.is_file() or s.run.state("judge") != "done":
        return []
    found = []
    for row in read_objects(file, most=MAX_RUN_FILE):
        item = KeptItem.model_validate(row["item"])
        base, tuned = Outcome.from_json(row["base"]), Outcome.from_json(row["tuned"])
        if not item.choices or not is_right(item, base) or is_right(item, tuned):
            continue
        _, *others = tuned.scores
        worst = item.distractors[max(range(len(others)), key=others.__getitem__)]
        found.append(
            [
                (encode(s.encoder.tokenizer, conversation(item), text, name=item.id), weight)
                for text, weight in ((item.answer or "", 1.0), (worst, -1.0))
            ]
        )
    return found


def show_influence(found: Influence) -> None:
    """Print the examples at both ends."""
    tables = [
        (_("help most"), found.helpful()),
        (_("help least"), found.harmful()),
        (_("break most"), found.breaking()),
    ]
    for title, examples in tables:
        if examples:
            say(f"  {title}")
        for e in examples:
            kept = "" if e.kept is None else _("  kept {kept:+.3f}", kept=e.kept)
            say(
                _(
                    "    margin {margin:+.3f}{kept}  {id} ({language})  {prompt}",
                    margin=e.margin,
                    kept=kept,
                    id=e.id,
                    language=e.language,
                    prompt=e.prompt,
                )
            )
