"""A finished run with every stage, made by the product's own code from scores, answers and verdicts that are given: no
model is loaded and no judge is asked. `rehashed` makes a forgery consistent, as a forger would."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from helpers.manifest import edited_manifest
from helpers.tiny_runs import toy_tribunal
from noesis.core.config import load_config
from noesis.core.files import sha256_file, write_json, write_jsonl
from noesis.core.project import Project
from noesis.pipeline.gguf_files import provenance
from noesis.pipeline.results import scores_file
from noesis.pipeline.session import RunSession
from noesis.pipeline.stages.choose import run_choose, score_checkpoints, score_keys
from noesis.pipeline.stages.dial import run_dial
from noesis.pipeline.stages.judge import run_judge
from noesis.pipeline.stages.merge import card_content
from noesis.pipeline.stages.plan import run_plan
from noesis.pipeline.stages.report import run_report
from noesis.pipeline.stages.strength.figures import Figures, figures_file, figures_key, pair_places
from noesis.pipeline.stages.strength.rule import Measured
from noesis.pipeline.stages.trial import TrialRequest, run_trial
from noesis.pipeline.start_run import from_sources, start_run
from noesis.pipeline.verify.check_run import verify
from noesis.pipeline.verify.evidence import Finding
from noesis.release.merge_weights import MergeResult
from noesis.release.model_card import model_card
from noesis.release.parity.certificate import AnswerAgreement, Certificate, Divergence, GgufFile
from noesis.release.parity.tolerances import TOLERANCES, assess
from noesis.run.directory import load_run
from noesis.run.manifest import StageRecord
from noesis.run.stages import STAGES
from noesis.training.job import TrainResult
from noesis.tribunal.calibration_store import Calibration, save_calibration
from noesis.tribunal.judge import JudgeCase, score_items
from noesis.tribunal.kept.items import items_digest, read_kept_items
from noesis.tribunal.panel import read_rubrics
from noesis.tribunal.rubric import JUDGES, RubricSet
from noesis.tribunal.scoring import MODELS, Answer
from noesis.tribunal.suite import EvalSample
from noesis.tribunal.trial.looks import HeldTrial, hold_looks
from noesis.tribunal.verdict import Unscored, Verdict

JUDGE = "openai:https://judge.example/v1:scripted"
EPOCHS = 2
LOOKS = {"training.tribunal.looks": (22,)}  # of 24 prompts: the trial ends before the last
NAME = "noesis-philosopher-v1"
ADAPTER = "checkpoints/epoch_1/adapter_model.safetensors"  # the one that is chosen


def finish_run(root: Path, model: Path, path: Path) -> RunSession:
    """The run at `path` of the project in `root`: two epochs, and a trial that rejects the tuned model."""
    toy_tribunal(root)
    project = Project(root)
    (model / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")  # no weights: nothing reads them
    given = {"training.model": str(model), "max_examples": 8, "lora.r": 4, "training.num_train_epochs": EPOCHS}
    config = load_config(project, given | {"training.data.language": "en", "training.tribunal.samples": 1} | LOOKS)
    s = start_run(project, config, path, from_sources(project, config))
    run_plan(s)
    _train(s)
    _score(s)
    run_choose(s)
    _dial(s)
    said = {m: [f"A thought about courage and prudence, the {i}th by {m}." for i in range(6)] for m in MODELS}
    with (
        patch("noesis.pipeline.stages.judge.base_and_tuned_answers", lambda *_: said),
        patch("noesis.pipeline.stages.judge.measure_items", lambda *_: _small_tasks(project)),
    ):
        run_judge(s)
    _merge(s)
    _certify(s)
    _calibrate(project)
    with patch("noesis.pipeline.stages.trial._answer_and_judge", _held):
        run_trial(s, project, TrialRequest((JUDGE,)))
    run_report(s)
    return s


def _small_tasks(project: Project) -> list[dict[str, Any]]:
    """Outcomes of twelve items: the tuned model prefers a distractor where the base had the answer, on every third."""
    rows = []
    for i, item in enumerate([item for item in read_kept_items(project.tribunal) if item.choices][:12]):
        high, low = [-1.0] + [-2.0] * len(item.distractors), [-3.0] + [-2.0] * len(item.distractors)
        scores = {"base": high, "tuned": high if i % 3 else low}
        told = {model: {"scores": found} for model, found in scores.items()}
        rows.append({"item": item.model_dump(mode="json", exclude_defaults=True), **told, "drift": [1.5, 3]})
    return rows


def _train(s: RunSession) -> None:
    def work() -> dict[str, Any]:
        for epoch in range(EPOCHS):
            folder = s.run.checkpoints / f"epoch_{epoch}"
            folder.mkdir(parents=True)
            (folder / "adapter_model.safetensors").write_text(f"the adapter of epoch {epoch}")
            write_json(folder / "adapter_config.json", {"r": 4})
        lines = [
            {"step": i + 1, "epoch": i + 1.0, "loss": 3.0 - i, "tokens": 10, "tokens_per_s": 5.0} for i in range(2)
        ]
        write_jsonl(s.run.metrics, lines)
        losses = {"epoch_0": 3.0, "epoch_1": 2.0}
        return TrainResult(2, EPOCHS, 20, 4.0, 5.0, 3.0, 2.0, 10**6, mean_training_loss=losses).to_json()

    s.run.perform("train", work, lambda: [*s.run.checkpoints.rglob("adapter*"), s.run.metrics])


def _score(s: RunSession) -> None:
    """Scores by which the base prefers 2 revisions, epoch_0 3, and epoch_1, which is better beyond chance, all but one."""
    epochs = [f"epoch_{epoch}" for epoch in range(EPOCHS)]
    count = len(s.dataset.held_out)
    for (name, key), preferred in zip(score_keys(s, epochs).items(), (2, 3, count - 1), strict=True):
        scores = {
            "revised": [[-10.0 - i, 10] for i in range(count)],
            "initial": [[-15.0 - i if i < preferred else -9.0 - i, 10] for i in range(count)],
        }
        write_json(scores_file(s.run, name), {"key": key, "scores": scores})


def _dial(s: RunSession) -> None:
    """Figures by which the adapter is used as it was trained; without keyed items, which would need the model."""
    places, epoch, items = pair_places(s), f"epoch_{EPOCHS - 1}", items_digest([])
    scores = {
        name: {part: [pairs[i] for i in places] for part, pairs in found.items()}
        for name, found in score_checkpoints(s, [epoch]).items()
    }
    strengths = (0.0, *s.config.training.strength.grid)
    measured = {x: Measured(scores[epoch if x else "base"], (), drift=x / 10) for x in strengths}
    ids = [s.dataset.held_out[i].id for i in places]
    figures = Figures(figures_key(s, epoch, items), ids, items, measured, {x: [] for x in strengths})
    write_json(figures_file(s.run), figures.to_json())
    run_dial(s)


def _merge(s: RunSession) -> None:
    def work() -> dict[str, Any]:
        s.run.merged.mkdir(parents=True)
        (s.run.merged / "model.safetensors").write_text("merged weights")
        write_json(s.run.merged / "config.json", {"model_type": "llama"})
        (s.run.merged / "README.md").write_text(model_card(card_content(s)), encoding="utf-8")
        provenance(s).save(s.run.merged)
        return MergeResult(2, 1, 14, 2, "the original weights", None).to_json()

    s.run.perform("merge", work, lambda: sorted(s.run.merged.iterdir()))


def _certify(s: RunSession) -> None:
    file = s.run.gguf / f"{s.run.merged.name}-f16.gguf"

    def work() -> dict[str, Any]:
        file.parent.mkdir(parents=True)
        file.write_bytes(b"GGUF of the merged model")
        agreement, near = AnswerAgreement(1, 1, 1, 1.0), Divergence(1e-6, 1e-5, 1.0, 1e-3)
        found = assess(near, agreement, TOLERANCES["f16"], stage="conversion", symptom="far")
        found = type(found)(**{**vars(found), "file": GgufFile(file.name, file.stat().st_size, sha256_file(file))})
        result = Certificate(1, 1, "the merged model", 1, 1, 1, None, {"f16": found}).to_json()
        write_json(s.run.gguf / "parity.json", result)
        (s.run.gguf / "Modelfile").write_text("FROM it\n")
        return result

    s.run.perform("gguf", work, lambda: sorted(s.run.gguf.iterdir()))


def _calibrate(project: Project) -> None:
    """The judge was measured on the locked half, and is fit."""
    rubrics = read_rubrics(project)
    found = Calibration(
        "scripted",
        JUDGE,
        rubrics.digest(),
        "b",
        "locked",
        50,
        0.9,
        (0.8, 0.95),
        {},
        0,
        {},
        True,
        (45, 50),
        (45, 50),
        {},
        date="2026-01-01",
    )
    save_calibration(project.calibrations, found, rubrics)


class _Panel:
    """Every judge gives each item 1 of 2 points for the base, and none for the tuned model."""

    def __init__(self, rubrics: RubricSet) -> None:
        self.rubrics = rubrics

    async def judge(self, cases: Sequence[JudgeCase]) -> list[list[Verdict | Unscored]]:
        return [[self._verdict(case, name) for name in JUDGES] for case in cases]

    def _verdict(self, case: JudgeCase, name: str) -> Verdict:
        items = self.rubrics.rubrics[name].applicable_items(dict(case.record))
        points = "1" if "/base/" in case.id else "0"
        fields = {item.id: points for item in items} | {f"{item.id}_span": case.answer[:20] for item in items}
        scores = score_items(items, fields, case.answer)
        return Verdict(case.id, name, "scripted", self.rubrics.digest(name), scores, None, "because")


def _held(s: RunSession, section: Any, items: Any, panel: Any, *_: object) -> HeldTrial:
    async def answer(some: Sequence[EvalSample]) -> list[Answer]:
        return [
            Answer(
                item, model, k, (("user", item.prompt),), f"The {model} model's answer to {item.id}, at some length."
            )
            for model in MODELS
            for item in some
            for k in range(section.samples)
        ]

    judges = _Panel(panel.rubrics)
    return asyncio.run(hold_looks(items, answer, judges, section, s.constitution, unfit_reason=panel.unfit_reason))


@contextmanager
def rehashed(run: Path) -> Iterator[dict[str, Any]]:
    """The manifest to edit; at the end it has the true hash of every listed file and of everything that a stage read."""
    with edited_manifest(run) as manifest:
        yield manifest
        for record in manifest["stages"].values():
            for name, entry in record.get("outputs", {}).items():
                file = run / name
                found = file.stat()
                entry.update(bytes=found.st_size, sha256=sha256_file(file), mtime_ns=found.st_mtime_ns)
        if "settings_sha256" in manifest:
            manifest["settings_sha256"] = sha256_file(run / "config.json")
        stages = manifest["stages"]
        for name in STAGES:
            for other in stages.get(name, {}).get("inputs", {}):
                stages[name]["inputs"][other] = StageRecord.from_json(stages[other]).digest()


def edit_json(file: Path, change: Any) -> None:
    """Change a JSON file in place."""
    value = json.loads(file.read_text(encoding="utf-8"))
    change(value)
    write_json(file, value)


def findings(run: Path, folder: Path) -> list[Finding]:
    """What `noesis verify` says of the run against the project in `folder`, apart from what matches."""
    return [found for found in verify(load_run(run), Project(folder / "project")) if found.wrong or found.unchecked]


def wrong(run: Path, folder: Path) -> str:
    """What does not match, one line each."""
    return "\n".join(f"{found.what}: {found.wrong}" for found in findings(run, folder) if found.wrong)
