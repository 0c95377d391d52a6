"""`noesis demo`: the whole pipeline on the embedded model, in minutes on two cores.

The settings that it changes are in training_config.yaml under `demo:`.
"""

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
from noesis.dataset.encode import training_rows
from noesis.dataset.export import check_sources
from noesis.llm.hub import find_model
from noesis.llm.tokenizer import load_tokenizer
from noesis.pipeline.registry import PipelineOptions, run_all, stages_to_run
from noesis.pipeline.session import Records, RunSession
from noesis.pipeline.start_run import from_sources, start_run
from noesis.planning.draft import choose_demo_rank_and_epochs
from noesis.planning.model_shapes import read_shape
from noesis.run.lock import locked
from noesis.training.job import count_workload
from noesis.tribunal.calibration.calibrate import LivePairs, live_pairs, show_live_pairs


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
    """Run every stage on the embedded model, then show why that model may not be the judge.

    Args:
        path: the run directory.
        quick: one epoch on a few examples.
        judges: as given with --judge; None: those of training_config.yaml.
    """
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

    options = PipelineOptions(project, tuple(base.training.tribunal.judges if judges is None else judges))
    steps = 1 + len(stages_to_run(options))
    heading(1, steps, "validate and export", "every example checked, some held out")
    _check_other_languages(project, config)
    data = from_sources(project, config)
    with locked(path):
        config, choice = _demo_choice(config, data, project, path, quick=quick, fresh=fresh)
        s = start_run(project, config, path, data, fresh=fresh)
        write_json(path / "demo.json", choice)
        run_all(s, options, done=1)
        _embedded_judge(s, project)
    return s


def _embedded_judge(s: RunSession, project: Project) -> None:
    """Why there is no verdict: the embedded model as a judge, shown to be unfit."""
    from noesis.llm.embedded import EMBEDDED, embedded_gguf

    if s.config.training.model != EMBEDDED:
        return

    def work() -> dict[str, Any]:
        found = live_pairs(project, s.config.training.tribunal, embedded_gguf(), EMBEDDED)
        return {} if found is None else found.to_json()

    say("\nIs the embedded model fit to judge?")
    if found := s.run.perform("live_pairs", work, list):
        show_live_pairs(LivePairs.from_json(found))


def _check_other_languages(project: Project, config: Config) -> None:
    """Check the examples in the language that this run does not use as well."""
    for language in ("pt", "en"):
        if language != config.training.data.language and all(
            any(folder.glob("*.jsonl")) for folder in project.sources(language)
        ):
            report = check_sources(project.sources(language), load_constitution(project.constitution), config)
            say(
                f"  {language}: {report.rows} examples in {report.files} files: no errors, {len(report.warnings)} warnings"
            )


def _demo_choice(
    config: Config, data: tuple[Records, Records], project: Project, path: Path, *, quick: bool, fresh: bool
) -> tuple[Config, dict[str, Any]]:
    """Rank and epochs by the plan; once chosen they stay, so that a second `noesis demo` finds its stages done.

    Returns:
        the configuration with them, and the choice as demo.json stores it.
    """
    request = sha256_json([config.digest(), sha256_json([*data]), config.training.demo.model_dump(), quick])
    stored = path / "demo.json"
    if stored.is_file() and not fresh:
        choice = dict(json.loads(stored.read_text(encoding="utf-8")))
        if choice.get("request") == request:
            return _with_choice(config, int(choice["r"]), int(choice["epochs"])), choice
    constitution = load_constitution(project.constitution)
    model = find_model(config.training.model, config.training.revision)
    rows = training_rows(
        data[0],
        load_tokenizer(model.path),
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
