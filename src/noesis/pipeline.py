"""The whole pipeline, a function a stage: export → plan → train → judge → merge → gguf → report.

`noesis demo`, the single commands and Modal's functions all call these. A stage finds what it needs in the run directory.
"""

from __future__ import annotations

import gc
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noesis.config import Config, Project
from noesis.console import Progress, duration, heading, say, size
from noesis.constitution.conversation import opening, render
from noesis.constitution.document import Constitution, load_constitution
from noesis.constitution.tokenizer import load_tokenizer
from noesis.data.load import evenly_spread, read_examples, read_exports, split_sources
from noesis.data.statistics import describe
from noesis.device import Device, detect
from noesis.errors import RunError
from noesis.files import sha256_json, write_json, write_jsonl
from noesis.lineage import adopt, parent_of
from noesis.lineage import resume as resume_run
from noesis.models import Model, cache_folder, find_model
from noesis.run import Run, load_run, open_run
from noesis.train.ahead import planned, rows_of
from noesis.train.budget import Budget, budget_of, quote, require_affordable, require_left
from noesis.train.checkpoint import saved, step_of
from noesis.train.plan import Plan, as_planned, compute_dtype
from noesis.train.quote import rate
from noesis.train.rows import answer_rows
from noesis.train.show import show_plan

Records = list[dict[str, Any]]


@dataclass(frozen=True)
class Session:
    """A run with what its stages share."""

    run: Run
    config: Config
    constitution: Constitution
    model: Model
    device: Device

    def __post_init__(self) -> None:
        self.run.usd_per_s = rate(self.device, self.config.training.budget.usd_per_hour)

    def budget(self) -> Budget:
        """What is left to spend, counted from the beginning of the stage that is at work."""
        spent, seconds = self.run.spent()
        section, rate_, since = self.config.training.budget, self.run.usd_per_s, self.run.metering
        return budget_of(section, usd_per_s=rate_, spent_usd=spent, spent_seconds=seconds, since=since)

    def examples(self, part: str) -> Records:
        """The run's own copy of `train` or `eval`."""
        return read_examples(self.run.data / f"{part}.jsonl", self.constitution)

    @property
    def as_trained(self) -> Config:
        """The configuration with the base's storage that the plan settled on; what merges and scores must read."""
        return as_planned(self.config, self.run.result("plan"))

    @property
    def arithmetic(self) -> str:
        """The type that training computed in, whatever this machine would choose."""
        stored = self.run.result("plan") or {}
        return str(stored["setup"]["compute_dtype"]) if "setup" in stored else compute_dtype(self.config, self.device)


# --- opening a run


def from_sources(project: Project, config: Config) -> tuple[Records, Records]:
    """Validate the hand-written examples and split them (train, held out)."""
    return split_sources(project.sources(config.training.data.language), load_constitution(project.constitution), config)


def from_exports(folder: Path, project: Project) -> tuple[Records, Records]:
    """Read files that were exported before (train, held out)."""
    return read_exports(folder, load_constitution(project.constitution))


def new_session(
    project: Project,
    config: Config,
    path: Path,
    data: tuple[Records, Records],
    *,
    fresh: bool = False,
    archive_to: Path | None = None,
    resume: bool = False,
    fork: Path | None = None,
) -> Session:
    """Open the run at `path` for these settings and data; its copy of data and constitution is written if it is new.

    Args:
        resume: refuse if another run lies there, instead of archiving it; more epochs are added to it.
        fork: begin with the adapter of this run.
    """
    train, held_out = data
    constitution = load_constitution(project.constitution)
    model = find_model(config.training.model, config.training.revision)
    train = subset(train, config)
    identity = {
        "config_sha256": config.digest(),
        "dataset_sha256": sha256_json([train, held_out]),
        "constitution_sha256": constitution.digest(),
        "base_model": config.training.model,
        "revision": model.revision,
    }
    parent = parent_of(fork, path) if fork else None
    if parent:
        identity["parent_sha256"] = parent["adapter_sha256"]
    if resume:
        resume_run(path, identity, config)
    run = open_run(path, identity, config, fresh=fresh, archive_to=archive_to)
    if parent and fork:
        adopt(run, fork, parent)
    if run.config() != config:  # what does not decide the adapter, such as the budget, holds as asked for last
        write_json(run.path / "config.json", config.model_dump(mode="json"))

    def work() -> dict[str, Any]:
        write_jsonl(run.data / "train.jsonl", train)
        write_jsonl(run.data / "eval.jsonl", held_out)
        run.data.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(project.constitution, run.data / "constitution.yaml")
        statistics = describe(run.data / "train.jsonl", run.data / "eval.jsonl", constitution, config)
        write_json(run.data / "statistics.json", statistics)
        return statistics

    statistics = run.perform("export", work, lambda: sorted(run.data.iterdir()))
    say(f"  {statistics['train']['examples']} to train on, {statistics['eval']['examples']} held out → {run.data}")
    return Session(run, config, constitution, model, detect())


def subset(train: Records, config: Config) -> Records:
    """The examples that `max_examples` leaves: the same ones for the same seed."""
    if config.max_examples is None:
        return train
    return sorted(train, key=lambda r: hashlib.sha256(f"{config.training.seed}:{r['id']}".encode()).hexdigest())[: config.max_examples]


def session_of(path: Path) -> Session:
    """The session of an existing run, from what lies in it."""
    run = load_run(path)
    config = run.config()
    constitution = load_constitution(run.data / "constitution.yaml")
    return Session(run, config, constitution, find_model(config.training.model, config.training.revision), detect())


# --- the stages


def plan(s: Session, *, again: bool = False) -> dict[str, Any]:
    """What will be trained, in how many tokens, and what it is expected to take."""
    stored = s.run.result("plan")
    config = s.config
    if stored is not None and not s.run.is_done("train"):
        same = "setup" in stored and (stored["device"]["name"], stored["device"]["cards"]) == (s.device.name, s.device.cards)
        again = again or not same  # a run that goes on elsewhere is planned anew, but on the base that it began on
        if saved(s.run.checkpoints / "resume"):
            config = as_planned(config, stored)

    def work() -> dict[str, Any]:
        return planned(config, s.model.path, s.examples("train"), s.constitution, s.device).as_json()

    result = s.run.perform("plan", work, list, again=again)
    show_plan(result)
    return result


def train(s: Session) -> dict[str, Any]:
    """QLoRA; one adapter an epoch."""
    from noesis.train.trainer import train as train_adapter

    def work() -> dict[str, Any]:
        p = Plan.from_json(s.run.manifest["stages"]["plan"]["result"])
        rows = rows_of(s.config, s.model.path, s.examples("train"), s.constitution)
        states, budget = saved(s.run.checkpoints / "resume"), s.budget()
        if not states:
            s.run.metrics.unlink(missing_ok=True)
        for line in quote(p.as_json(), budget):
            say(line)
        require_affordable(p.as_json(), budget, done=min(step_of(states[-1]) / p.steps, 1) if states else 0.0)
        parent = s.run.path / "parent" if "parent" in s.run.manifest else None
        places = {"checkpoints": s.run.checkpoints, "metrics": s.run.metrics}
        done = train_adapter(s.model.path, rows, s.as_trained, p, s.device, **places, budget=budget, parent=parent)
        if (smaller := done.pop("smaller_plan", None)) is not None:
            s.run.manifest["stages"]["plan"]["result"] = smaller  # later stages read from it what was trained
        return done | {"out_of_memory_once": smaller is not None}

    result = s.run.perform("train", work, lambda: [*s.run.checkpoints.glob("epoch_*/*"), s.run.metrics])
    gc.collect()
    say(
        f"  {result['steps']} steps in {duration(result['seconds'])} ({result['tokens_per_s']:,.0f} tokens/s); "
        f"loss {result['first_loss']:.3f} → {result['final_loss']:.3f}; → {s.run.adapter()}"
    )
    if "choice" in result:
        chosen = result["choice"]
        losses = ", ".join(f"{name} {loss:.3f}" for name, loss in chosen["mean_training_loss"].items() if loss is not None)
        say(f"  {result['saves']} states saved in {result['save_share']:.1%} of the time")
        say(f"  {chosen['adapter']} is used: {chosen['by']}; mean training loss {losses}")
    return result


def judge(s: Session, *, again: bool = False) -> dict[str, Any]:
    """Base against tuned on the held-out examples: probabilities, answers, the offline screen; and the court's empty bench."""
    from noesis.tribunal.court import empty_bench
    from noesis.tribunal.preference import compare
    from noesis.tribunal.screen import NAME, screen, tally

    def work() -> dict[str, Any]:
        require_left(s.budget(), "judging")
        held_out = s.examples("eval")
        preference = compare([r["id"] for r in held_out], *_probabilities(s, held_out))
        asked = evenly_spread(held_out, s.config.training.tribunal.answers)
        answers = _answers(s, asked)
        rows = []
        for record, base, tuned in zip(asked, answers["base"], answers["tuned"], strict=True):
            rows.append(
                {
                    "id": record["id"],
                    "language": record.get("language", "pt"),
                    "category": record["category"],
                    "prompt": record["prompt"],
                    "turns": record.get("turns") or [],
                    "base": {"answer": base, "flags": screen(base, record, s.constitution)},
                    "tuned": {"answer": tuned, "flags": screen(tuned, record, s.constitution)},
                    "written": record["response_revised"],
                }
            )
        write_jsonl(s.run.tribunal / "answers.jsonl", rows)
        summary = {
            "preference": preference,
            "screen": {"name": NAME, **{who: tally([row[who]["flags"] for row in rows]) for who in ("base", "tuned")}},
            "court": empty_bench(s.config.training.tribunal),
        }
        write_json(s.run.tribunal / "summary.json", summary)
        return summary

    result = s.run.perform("judge", work, lambda: sorted(s.run.tribunal.glob("*.json*")), again=again)
    show_judgement(result)
    return result


def show_judgement(result: dict[str, Any]) -> None:
    """Print what the judge stage found."""
    preference = result["preference"]
    b, t, n = preference["base"], preference["tuned"], preference["examples"]
    say(f"  held-out loss          {b['held_out_loss']:.4f} → {t['held_out_loss']:.4f}")
    say(f"  preference accuracy    {b['preferred']}/{n} → {t['preferred']}/{n} (95% interval now {t['interval_95'][0]:.2f} to {t['interval_95'][1]:.2f})")
    found = result["screen"]
    say(f"  {found['name']}: {found['base']['flagged']} → {found['tuned']['flagged']} of {found['tuned']['answers']} answers flagged")
    say(f"  Tribunal (Veritas, Sophia, Dikē): {result['court']['verdict']}: {result['court']['reason']}")


def merge(s: Session, *, again: bool = False) -> dict[str, Any]:
    """Adapter + base → a standalone model."""
    from noesis.release.card import model_card
    from noesis.release.merge import merge as merge_weights

    def work() -> dict[str, Any]:
        require_left(s.budget(), "merging")
        card = model_card(s.run.merged.name, s.config.training.model, s.model.licence, s.run.manifest)
        return merge_weights(s.model.path, s.run.adapter(), s.run.merged, quantization=s.as_trained.lora.quantization, dtype=s.arithmetic, card=card)

    result = s.run.perform("merge", work, lambda: [p for p in s.run.merged.iterdir() if p.is_file()], again=again)
    say(f"  {result['merged_tensors']} of {result['tensors']} tensors merged into {result['into']}; {size(result['bytes'])} → {s.run.merged}")
    return result


def gguf(s: Session, *, kinds: tuple[str, ...] | None = None, again: bool = False) -> dict[str, Any]:
    """GGUF files of the merged model, and the proof that they behave like it."""
    from noesis.release.gguf import write_gguf
    from noesis.release.parity import check_parity, require

    if not s.run.is_done("merge"):
        raise RunError(f"{s.run.path} holds no merged model: run  noesis merge {s.run.path}  first")
    wanted = kinds or s.config.training.gguf.quantizations
    files = {kind: s.run.gguf / f"{s.run.merged.name}-{kind}.gguf" for kind in wanted}

    def work() -> dict[str, Any]:
        require_left(s.budget(), "writing GGUF")
        for kind, file in files.items():
            write_gguf(s.run.merged, file, kind, name=s.run.merged.name, licence=s.model.licence)
            say(f"  {file.name}: {size(file.stat().st_size)}")
        tokenizer = load_tokenizer(s.run.merged)
        parity = check_parity(s.run.merged, files, _parity_texts(s, tokenizer), tokenizer)
        write_json(s.run.gguf / "parity.json", parity)
        require(parity)
        return parity

    changed = set(wanted) != set((s.run.result("gguf") or {}).get("files", {}))
    result = s.run.perform("gguf", work, lambda: [*files.values(), s.run.gguf / "parity.json"], again=again or changed)
    for kind, figure in result["files"].items():
        say(
            f"  {kind}: mean KL {figure['kl_mean']:.1e}, same first choice {figure['top1']:.3f} at {result['positions']:,} positions, "
            f"token ids equal on {figure['strings']} strings"
        )
    return result


def report(s: Session) -> Path:
    """One self-contained page."""
    from noesis.report.page import write_report

    s.run.perform("report", lambda: write_report(s.run, s.config, s.constitution), lambda: [s.run.report], again=True)
    say(f"  → {s.run.report}")
    return s.run.report


def run_stages(s: Session, *, first: int, total: int) -> None:
    """Every stage after the export, in order, each announced."""
    court = "base against tuned on the held-out examples"
    stages: list[tuple[str, str, Callable[[Session], Any]]] = [
        ("plan", "what will be trained, and what it should take", plan),
        ("train", "QLoRA, loss on the answers only", train),
        ("judge", court, judge),
        ("merge", "adapter and base into one model", merge),
        ("gguf", "for llama.cpp, and does it behave alike?", gguf),
        ("report", "one page", report),
    ]
    for offset, (name, what, work) in enumerate(stages):
        heading(first + offset, total, name, what)
        work(s)


# --- what the stages need of each other


def _probabilities(s: Session, held_out: Records) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores of both answers to each held-out prompt, by the base (adapter off) and by the tuned model."""
    from noesis.train.base import load_base, with_adapter
    from noesis.train.score import log_likelihoods

    tokenizer = load_tokenizer(s.model.path)
    rows = {part: answer_rows(held_out, f"response_{part}", tokenizer, s.constitution) for part in ("revised", "initial")}
    longest = max(len(row.input_ids) for part in rows.values() for row in part)
    model = with_adapter(load_base(s.model.path, s.as_trained, s.device, longest=longest), s.run.adapter())
    scores: dict[bool, dict[str, Any]] = {}
    for on in (False, True):
        who = "tuned" if on else "base"
        scores[on] = {part: log_likelihoods(model, rows[part], s.as_trained, s.device, adapter=on, what=f"score {part} by the {who} model") for part in rows}
    del model
    gc.collect()
    return scores[False], scores[True]


def _answers(s: Session, asked: Records) -> dict[str, list[str]]:
    """Greedy answers in llama.cpp, from one process: the base that was trained on, with the adapter off and on."""
    if not asked:
        return {"base": [], "tuned": []}
    from noesis.release.gguf import write_adapter_gguf
    from noesis.serve.engine import Engine

    adapter = s.run.gguf / f"{s.run.merged.name}-adapter.gguf"
    write_adapter_gguf(s.run.adapter(), s.model.path, adapter)
    conversations = [opening(s.constitution, record) for record in asked]
    engine = Engine(base_gguf(s), adapter=adapter, parallel=min(4, len(asked)), context=2048)
    answers = {}
    for who, on in (("base", False), ("tuned", True)):
        with Progress(f"answer ({who})", len(asked), "prompts") as progress:
            answers[who] = engine.answer_all(conversations, max_tokens=s.config.training.tribunal.max_new_tokens, adapter=on, progress=progress)
    return answers


def base_gguf(s: Session) -> Path:
    """The base as it was trained on (stored in 4 bits, if it was), as a GGUF file; written once and cached."""
    from noesis.release.gguf import write_gguf

    quantization, dtype = s.as_trained.lora.quantization, s.arithmetic
    key = sha256_json([s.model.revision, quantization.model_dump(), dtype, 1])[:12]
    base = cache_folder() / "models" / f"base-{key}-f16.gguf"
    if not base.is_file():
        say("  writing the base as it was trained on to GGUF, once …")
        write_gguf(s.model.path, base, "f16", name="base", licence=s.model.licence, quantization=quantization, dtype=dtype)
    return base


def _parity_texts(s: Session, tokenizer: Any) -> list[str]:
    """Rendered conversations for the comparison: the held-out examples, and the constitution's principles in both languages."""
    texts = [
        render(tokenizer, [*opening(s.constitution, r), {"role": "assistant", "content": r["response_revised"]}], add_generation_prompt=False)
        for r in s.examples("eval")
    ]
    for principle in s.constitution.principles[:6]:
        for text in (principle.pt, principle.en):
            texts.append(render(tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True))
    return texts
