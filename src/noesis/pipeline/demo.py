"""`noesis demo`: the whole pipeline on the embedded model, in minutes on two cores. What it changes is in training_config.yaml, `demo:`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from noesis.constitution.document import load_constitution
from noesis.core.config import Config, load_config
from noesis.core.console import heading, say
from noesis.core.device import detect
from noesis.core.files import sha256_json, write_json
from noesis.core.project import Project
from noesis.dataset.checks.length import find_token_counter
from noesis.dataset.encode import training_rows
from noesis.dataset.export import check_sources
from noesis.dataset.schema import Dataset
from noesis.llm.hub import find_model
from noesis.llm.row_encoder import encoder_for
from noesis.pipeline.registry import run_stages
from noesis.pipeline.session import RunSession
from noesis.pipeline.stages.report import run_report
from noesis.pipeline.stages.trial import TrialRequest, checkpoint_scorer
from noesis.pipeline.stages.trial import run_trial as trial
from noesis.pipeline.start_run import from_sources, start_run
from noesis.planning.plan import choose_demo_rank_and_epochs, read_shape
from noesis.run.directory import Run
from noesis.training.job import count_workload
from noesis.tribunal.calibration.calibrate import live_pairs, show_live


def demo(
    project: Project,
    path: Path,
    *,
    quick: bool = False,
    fresh: bool = False,
    judges: Sequence[str] | None = None,
    max_usd: float | None = None,
    max_minutes: float | None = None,
) -> RunSession:
    """The whole pipeline on the embedded model, in minutes on two cores."""
    base = load_config(project)
    d = base.training.demo
    config = load_config(
        project,
        {
            "training.model": d.model,
            "training.data.language": d.language,
            "training.learning_rate": d.learning_rate,
            "training.num_train_epochs": 1 if quick else None,
            "max_examples": d.quick_examples if quick else None,
            "training.budget.max_usd": max_usd,
            "training.budget.max_minutes": max_minutes,
        },
    )

    heading(1, 8, "validate and export", "every example checked, some held out")
    _check_other_languages(project, config)
    dataset = from_sources(project, config)
    with Run(path, {}).locked():
        config, choice = _demo_choice(config, dataset, project, path, quick=quick, fresh=fresh)
        s = start_run(project, config, path, dataset, fresh=fresh)
        write_json(path / "demo.json", choice)
        hear = checkpoint_scorer(s, project, judges)
        run_stages(s, first=2, total=8, hear=hear)
        if hear:
            trial(s, project, TrialRequest(tuple(judges or s.config.training.tribunal.judges)))
            run_report(s)
        _embedded_judge(s, project)
    return s


def _embedded_judge(s: RunSession, project: Project) -> None:
    """Why no verdict: the embedded model in the judge's chair, shown to be unfit."""
    from noesis.llm.embedded import EMBEDDED, embedded_gguf

    if s.config.training.model != EMBEDDED:
        return

    def work() -> dict[str, Any]:
        found = live_pairs(project, s.config.training.tribunal, embedded_gguf(), EMBEDDED)
        return {} if found is None else found

    say("\nIs the embedded model fit to judge?")
    if found := s.run.perform("live_pairs", work, list):
        show_live(found)


def _check_other_languages(project: Project, config: Config) -> None:
    """The examples that this run does not use are checked all the same."""
    for language in ("pt", "en"):
        if language != config.training.data.language and all(
            any(folder.glob("*.jsonl")) for folder in project.sources(language)
        ):
            constitution = load_constitution(project.constitution)
            counter = find_token_counter(config, constitution)
            report = check_sources(project.sources(language), constitution, config, counter=counter)
            say(f"  {language}: {report.describe()}")


def _demo_choice(
    config: Config, dataset: Dataset, project: Project, path: Path, *, quick: bool, fresh: bool
) -> tuple[Config, dict[str, Any]]:
    """Rank and epochs by the plan; once chosen they stay, so that a second `noesis demo` finds its stages done."""
    request = sha256_json([config.digest(), dataset.digest(), config.training.demo.model_dump(), quick])
    stored = path / "demo.json"
    if stored.is_file() and not fresh:
        choice = dict(json.loads(stored.read_text(encoding="utf-8")))
        if choice.get("request") == request:
            return _with_choice(config, int(choice["r"]), int(choice["epochs"])), choice
    constitution = load_constitution(project.constitution)
    model = find_model(config.training.model, config.training.revision)
    rows = training_rows(
        dataset.train,
        encoder_for(model.path, dataset.encoder),
        constitution,
        include_critique=config.training.constitutional_ai.include_critique,
        max_length=config.training.max_length,
    )
    r, epochs = choose_demo_rank_and_epochs(config, read_shape(model.path), count_workload(rows), detect())
    choice = {"request": request, "r": r, "epochs": 1 if quick else epochs}
    return _with_choice(config, r, int(choice["epochs"])), choice


def _with_choice(config: Config, r: int, epochs: int) -> Config:
    """`config` with another rank and number of epochs; alpha keeps its ratio to the rank."""
    alpha = max(1, round(config.lora.lora_alpha * r / config.lora.r))
    return config.model_copy(
        update={
            "lora": config.lora.model_copy(update={"r": r, "lora_alpha": alpha}),
            "training": config.training.model_copy(update={"num_train_epochs": epochs}),
        }
    )
