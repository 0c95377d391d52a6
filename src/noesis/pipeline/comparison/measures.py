"""What a run left that another run's can be paired with: figures of each held-out example and of each trial prompt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from noesis.constitution.document import load_constitution
from noesis.core.errors import NoesisError, RunError
from noesis.core.files import sha256_json
from noesis.core.i18n import _
from noesis.core.jsonl import MAX_RUN_FILE, read_json_file, read_objects
from noesis.core.project import Project
from noesis.dataset.load import read_run_copy
from noesis.pipeline.results import RunResults, scores_file
from noesis.run.directory import Run, load_run
from noesis.tribunal.code_checks import right
from noesis.tribunal.court import Ruling
from noesis.tribunal.heldout import margins
from noesis.tribunal.suite import EvalSample, read_suite
from noesis.tribunal.trial.code_figures import majority


@dataclass(frozen=True)
class RunMeasures:
    """One run's tuned model, item by item.

    Held-out examples are named by a hash of their text, so that two runs share only what is the same in both.

    losses: example → (negative log-likelihood of the revised answer in nats, its tokens)
    preferred: example → whether it prefers the revision
    clusters: example → its id, the same in both languages
    judges: who scored the trial, by which rubrics; empty without a trial
    tribunal: prompt → weighted mean of its answers, 0..1
    keyed: prompt → whether code finds its answers right
    missing: measure → why there is none
    """

    name: str
    losses: dict[str, tuple[float, int]]
    preferred: dict[str, bool]
    clusters: dict[str, str]
    judges: tuple[str, ...]
    tribunal: dict[str, float]
    keyed: dict[str, bool]
    ruling: Ruling
    missing: dict[str, str]


def read_measures(path: Path, project: Project | None) -> RunMeasures:
    """The measures of a run; nothing in it is written, and no model is loaded.

    Args:
        project: whose suite knows the keys; None: there are no keyed figures.

    Raises:
        UsageError: there is no run. RunError: a file in it is damaged.
    """
    run = load_run(path)
    try:
        return _read(run, project)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, IndexError) as error:
        if isinstance(error, NoesisError):
            raise
        raise RunError(
            _(
                "{path} can't be compared: a file in it is not as its stage wrote it "
                "({name}: {error}); restore it, or have the run judged again",
                path=path,
                name=type(error).__name__,
                error=str(error)[:200],
            )
        ) from None


def _read(run: Run, project: Project | None) -> RunMeasures:
    results, missing = RunResults(run), {}
    losses: dict[str, tuple[float, int]] = {}
    preferred: dict[str, bool] = {}
    clusters: dict[str, str] = {}
    judge, trial = results.judge, results.trial
    if judge is None:
        missing["held-out"] = _("it was not judged")
    else:
        adapter = judge.preference.adapter or run.adapter().name
        stored = read_json_file(scores_file(run, adapter), constants=False)["scores"]
        scores = {part: [(float(x), int(n)) for x, n in stored[part]] for part in ("revised", "initial")}
        held_out = read_run_copy(run.data, load_constitution(run.data / "constitution.yaml")).held_out
        for example, (total, tokens), margin in zip(held_out, scores["revised"], margins(scores), strict=True):
            key = sha256_json([example.prompt, example.response_initial, example.response_revised, example.earlier])
            losses[key], preferred[key], clusters[key] = (-total, tokens), margin > 0, example.id
    tribunal: dict[str, float] = {}
    keyed: dict[str, bool] = {}
    if trial is None:
        missing["trial"] = _("it was not before the Tribunal")
    else:
        tribunal = _tribunal(run)
        keyed, why = _keyed(run, trial.part, project)
        missing |= {"keyed": why} if why else {}
    judges = () if trial is None else (*sorted(j.identity for j in trial.judges), trial.rubrics_sha256)
    return RunMeasures(str(run.path), losses, preferred, clusters, judges, tribunal, keyed, results.ruling, missing)


def _tribunal(run: Run) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for row in read_objects(run.tribunal / "verdicts.jsonl", most=MAX_RUN_FILE):
        prompt, who, _ = row["answer"].rsplit("/", 2)
        if who == "tuned" and row["opinion"]["mean"] is not None:
            low, high = row["opinion"]["mean"]
            found.setdefault(prompt, []).append((float(low) + float(high)) / 2)
    return {prompt: sum(values) / len(values) for prompt, values in found.items()}


def _keyed(run: Run, part: str, project: Project | None) -> tuple[dict[str, bool], str]:
    """Right or wrong on each prompt that code decides, and why there is none."""
    if project is None:
        return {}, _("there is no project here whose suite knows the keys: use --project")
    try:
        items = {item.id: item for item in read_suite(project.tribunal, "dev" if part == "dev" else "all")}
    except NoesisError as error:
        return {}, _("the project's suite can't be read: {error}", error=error)
    texts: dict[EvalSample, list[str]] = {}
    for row in read_objects(run.tribunal / "trial_answers.jsonl", most=MAX_RUN_FILE):
        item = items.get(row["id"])
        asked = tuple(turn["content"] for turn in row["said"] if turn["role"] == "user")
        if item is not None and row["who"] == "tuned" and asked == item.messages:
            texts.setdefault(item, []).append(row["answer"])
    decided = {item.id: majority([right(item, text) for text in answers]) for item, answers in texts.items()}
    return {name: value for name, value in decided.items() if value is not None}, ""
