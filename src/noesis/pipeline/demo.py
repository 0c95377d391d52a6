"""`noesis demo`: the whole pipeline, on the embedded model in minutes on two CPU cores, or on another.

What it changes in the project's settings is in training_config.yaml, `demo:`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from noesis.constitution.document import load_constitution
from noesis.core.config import Config, TrainingFile, load_config
from noesis.core.console import heading, say
from noesis.core.device import detect
from noesis.core.errors import MissingExtra
from noesis.core.files import sha256_json, write_json
from noesis.core.i18n import _, spoken
from noesis.core.jsonl import MAX_RUN_FILE, iter_lines, jsonl_files, read_json_file, read_objects
from noesis.core.language import ALL
from noesis.core.machine.folders import cache_folder
from noesis.core.overrides import Overrides
from noesis.core.project import Project
from noesis.dataset.checks.length import find_token_counter
from noesis.dataset.encode import training_rows
from noesis.dataset.export import check_sources
from noesis.dataset.schema import Dataset
from noesis.llm.clients.reply_cache import open_cache
from noesis.llm.embedded import EMBEDDED, EMBEDDED_LANGUAGE
from noesis.llm.hub import find_base
from noesis.llm.row_encoder import encoder_for
from noesis.pipeline.court_at_work import CourtAtWork, hold_court, show_court
from noesis.pipeline.registry import PipelineOptions, run_all, stages_to_run
from noesis.pipeline.results import read_result
from noesis.pipeline.session import RunSession
from noesis.pipeline.start_run import from_sources, start_run
from noesis.planning.draft import choose_demo_rank_and_epochs
from noesis.planning.model_shapes import read_shape
from noesis.run.lock import locked
from noesis.run.manifest import Json
from noesis.training.job import count_workload
from noesis.tribunal.panel import make_panel

CHOICE = "demo.json"  # in the run directory


@dataclass(frozen=True)
class DemoChoice:
    """Rank and epochs that fit the demo's time on this machine; `request` is a hash of what they were chosen for."""

    request: str
    r: int
    epochs: int

    def to_json(self) -> dict[str, str | int]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Json) -> DemoChoice:
        return cls(stored["request"], int(stored["r"]), int(stored["epochs"]))


def demo(
    project: Project,
    path: Path,
    *,
    model: str | None = None,
    language: str | None = None,
    quick: bool = False,
    fresh: bool = False,
    judges: Sequence[str] | None = None,
    strength: float | None = None,
    max_usd: float | None = None,
    max_minutes: float | None = None,
) -> RunSession:
    """Run every stage into the run directory at `path`.

    Args:
        model: another base than the demo's own; it learns at the project's learning rate.
        language: of the examples; None: the demo's own.

    Raises:
        MissingExtra: what trains or what converts is not installed; said before minutes are spent.
    """
    for package in ("torch", "xllamacpp"):
        if find_spec(package) is None:
            raise MissingExtra(package, "train,gguf")
    config = demo_config(
        project,
        model=model,
        language=language,
        quick=quick,
        strength=strength,
        max_usd=max_usd,
        max_minutes=max_minutes,
    )
    options = PipelineOptions(project, tuple(config.training.tribunal.judges if judges is None else judges))
    heading(1, 1 + len(stages_to_run(options)), _("validate and export"), _("every example checked, some held out"))
    _tell_language(project, config, chosen=language is not None)
    _check_other_languages(project, config)
    dataset = from_sources(project, config)
    with locked(path):
        choice = _choose(config, dataset, project, path, quick=quick, fresh=fresh)
        config = _with_choice(config, choice)
        s = start_run(project, config, path, dataset, fresh=fresh)
        write_json(path / CHOICE, choice.to_json())
        run_all(s, options, done=1)
        _show_the_court(s, project)
    return s


def demo_run_name(model: str | None) -> str:
    """Name of the demo's run directory: of its own for each model, so that one does not take another's place."""
    if model is None:
        return "demo"
    name = re.sub(r"[^a-z0-9.]+", "-", Path(model).name.lower().removesuffix(".gguf")).strip("-.")
    return f"demo-{name}" if name else "demo"


def demo_config(
    project: Project,
    *,
    model: str | None = None,
    language: str | None = None,
    quick: bool = False,
    strength: float | None = None,
    max_usd: float | None = None,
    max_minutes: float | None = None,
) -> Config:
    """The project's configuration with the demo's settings; `quick`: one epoch on a few examples, used as trained."""
    training = load_config(project).training
    settings = training.demo
    # the demo's rate is one for SFT of its own small model
    own_rate = model in (None, settings.model) and training.method != "dpo"
    overrides = Overrides(
        model=model or settings.model,
        language=language or _language(project, training),
        learning_rate=settings.learning_rate if own_rate else None,
        epochs=1 if quick else None,
        max_examples=settings.quick_examples if quick else None,
        strength=1.0 if quick and strength is None else strength,
        max_usd=max_usd,
        max_minutes=max_minutes,
        kept_items=settings.kept_items,
    )
    return overrides.configure(project)


def _language(project: Project, training: TrainingFile) -> str:
    """The demo's language where there are as many examples in it as in the project's own, which wins otherwise."""
    own, demo = training.data.language, training.demo.language or training.data.language
    if demo != own and _examples(project, demo) < _examples(project, own):
        say(
            _(
                "  in {own}, which has more examples (demo: language in training_config.yaml is {demo})",
                own=own,
                demo=demo,
            )
        )
        return own
    return demo


def _tell_language(project: Project, config: Config, *, chosen: bool) -> None:
    """How to get the language that is spoken, and what to expect of the embedded model in another than its own."""
    used, own = config.training.data.language, spoken()
    if not chosen and used not in (own, ALL) and _examples(project, own):
        say(
            _(
                "  language {used}; to train on the examples in {own} instead, add  --language {own}",
                used=used,
                own=own,
            )
        )
    if used not in (EMBEDDED_LANGUAGE, ALL) and config.training.model == EMBEDDED:
        say(
            _(
                "  {model} was trained on English: in {used} expect poor answers, and take the run as a rehearsal; "
                "for good ones add  --model  with a base that knows the language",
                model=config.training.model,
                used=used,
            )
        )


def _examples(project: Project, language: str) -> int:
    return sum(1 for folder in project.sources(language) for file in jsonl_files(folder) for _ in iter_lines(file))


def _show_the_court(s: RunSession, project: Project) -> None:
    """The embedded model judges answers that this run gave; it shows the court at work, and why it rules nothing."""
    from noesis.llm.clients.gguf_client import GgufClient
    from noesis.llm.embedded import embedded_gguf

    if s.config.training.model != EMBEDDED or not (project.tribunal / "judges").is_dir():
        return
    seconds, section = s.config.training.demo.court_seconds, s.config.training.tribunal
    if (project.tribunal / "judges" / "reading.yaml").is_file():  # many times as fast as having it write
        section = section.model_copy(update={"ask": "score"})

    def work() -> Json:
        rows = read_objects(s.run.tribunal / "answers.jsonl", most=MAX_RUN_FILE)
        with open_cache(cache_folder() / "tribunal" / "replies.sqlite") as cache:
            panel = make_panel(project, [GgufClient(embedded_gguf(), name=EMBEDDED)], cache, section=section)
            return hold_court(rows, panel, section, seconds=seconds).to_json()

    say()
    say(_("The court at work: the embedded model judges what base and tuned answered to held-out prompts"))
    show_court(read_result(s.run, "court", s.run.perform("court", work, list), CourtAtWork.from_json))


def _check_other_languages(project: Project, config: Config) -> None:
    """Check the examples that this run does not use, too."""
    for language in load_constitution(project.constitution).languages:
        if language != config.training.data.language and all(
            jsonl_files(folder) for folder in project.sources(language)
        ):
            constitution = load_constitution(project.constitution)
            counter = find_token_counter(config, constitution)
            report = check_sources(project.sources(language), constitution, config, counter=counter)
            say(_("  {describe} ({language}: not used by this run)", describe=report.describe(), language=language))


def _choose(config: Config, dataset: Dataset, project: Project, path: Path, *, quick: bool, fresh: bool) -> DemoChoice:
    """Rank and epochs by the plan; they are stored, so that a second `noesis demo` finds its stages done."""
    request = sha256_json([config.digest(), dataset.digest(), config.training.demo.model_dump(), quick])
    stored = path / CHOICE
    if stored.is_file() and not fresh:
        found = DemoChoice.from_json(read_json_file(stored, constants=False))
        if found.request == request:
            return found
    constitution = load_constitution(project.constitution)
    model = find_base(config.training.model, config.training.revision)
    rows = training_rows(
        dataset.train,
        encoder_for(model.path, dataset.encoder),
        constitution,
        include_critique=config.training.constitutional_ai.include_critique,
        max_length=config.training.max_length,
    )
    r, epochs = choose_demo_rank_and_epochs(config, read_shape(model.path), count_workload(rows), detect())
    return DemoChoice(request, r, 1 if quick else epochs)


def _with_choice(config: Config, choice: DemoChoice) -> Config:
    """`config` with another rank and number of epochs; alpha keeps its ratio to the rank."""
    alpha = max(1, round(config.lora.lora_alpha * choice.r / config.lora.r))
    return config.model_copy(
        update={
            "lora": config.lora.model_copy(update={"r": choice.r, "lora_alpha": alpha}),
            "training": config.training.model_copy(update={"num_train_epochs": choice.epochs}),
        }
    )
