"""`noesis status RUN` and `noesis verify RUN`: does the run directory still hold what its manifest says?

Status compares sizes and times and hashes only what changed. Verify hashes every file and derives again what it can.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from noesis.constitution.document import load_constitution
from noesis.core.errors import NoesisError
from noesis.core.files import sha256_file
from noesis.core.jsonl import read_objects
from noesis.core.text import counted
from noesis.dataset.checks.length import find_token_counter
from noesis.dataset.load import read_run_copy
from noesis.dataset.statistics import describe
from noesis.llm.hub import find_local_model, find_tokenizer
from noesis.llm.row_encoder import open_encoder
from noesis.pipeline.results import RunResults
from noesis.pipeline.stages.choose import BASE
from noesis.pipeline.training_set import build_training_set
from noesis.run.directory import Run
from noesis.run.ledger import total
from noesis.run.metrics import read_metrics
from noesis.run.stages import STAGES, needs_of
from noesis.training.methods import saved_states
from noesis.training.state.checkpoint import unusable_reason
from noesis.tribunal.court import opinion
from noesis.tribunal.heldout import compare
from noesis.tribunal.offline_screen import tally
from noesis.tribunal.verdict import verdict_from_json


@dataclass(frozen=True)
class StageState:
    """One stage as it is now.

    Attributes:
        status: done, stale, failed, interrupted, running or not run; `changed`: done, but its outputs are not intact.
        inputs: stage that it read from → whether that is still what it read.
        wrong: outputs that are missing or changed.
    """

    name: str
    status: str
    inputs: dict[str, bool]
    wrong: list[str]
    seconds: float
    usd: float


def status(run: Run) -> list[StageState]:
    """Every stage in order, then other work whose cost was booked (epochs judged during training, answers, …)."""
    recorded = [*run.manifest.stages, *(entry.stage for entry in run.manifest.ledger)]
    return [_state(run, name) for name in dict.fromkeys([*STAGES, *recorded])]


def _state(run: Run, name: str) -> StageState:
    record = run.manifest.stages.get(name)
    ledger = [entry for entry in run.manifest.ledger if entry.stage == name]
    usd, seconds = total(ledger)
    if record is None:  # done on another machine, from a copy of the run: its cost is all that is here
        return StageState(name, (ledger[-1].ended or "done") if ledger else "not run", {}, [], seconds, usd)
    state = run.state(name)
    wrong = run.changed(name) if state in ("done", "stale") else []
    inputs = {other: _is_as_read(run, other, read) for other, read in record.inputs.items()}
    state = "changed" if wrong and state == "done" else state
    return StageState(name, state, inputs, wrong, seconds or record.seconds, usd)


def _is_as_read(run: Run, stage: str, digest: str) -> bool:
    return run.manifest.is_as_read(stage, digest) and not run.changed(stage)


def verify(run: Run) -> Iterator[tuple[str, str | None]]:
    """(what was checked, what is wrong with it or None), one after the other."""
    for name in STAGES:
        if run.result(name) is None:
            continue
        record = run.manifest.stages[name]
        wrong = run.changed(name, thoroughly=True)
        yield f"{name}: hashes of {counted(len(record.outputs), 'file')}", "; ".join(wrong) or None
        if record.status == "done":
            read = {other: record.inputs[other] for other in needs_of(name) if other in record.inputs}
            # a stage that has to be done again is known to differ, and so is everything that reads it
            known = [other for other in read if run.state(other) != "done"]
            lost = [o for o, digest in read.items() if o not in known and not _is_as_read(run, o, digest)]
            yield f"{name}: what it read", ", ".join(lost) + " changed since" if lost else None
    for what, check in CHECKS.items():
        try:
            yield what, check(run)
        except (OSError, ValueError, KeyError, TypeError, NoesisError) as error:  # a damaged file is a finding
            yield what, f"can't be read: {' '.join(str(error).split())[:200]}"


def _config(run: Run) -> str | None:
    same = run.config().digest() == run.identity.config_sha256
    return None if same else "config.json is of another configuration than the manifest"


def _data(run: Run) -> str | None:
    constitution = load_constitution(run.data / "constitution.yaml")
    if constitution.digest() != run.identity.constitution_sha256:
        return "data/constitution.yaml is another constitution than the manifest's"
    same = read_run_copy(run.data, constitution).digest() == run.identity.dataset_sha256
    return None if same else "data/train.jsonl and eval.jsonl are other examples than the manifest's"


def _statistics(run: Run) -> str | None:
    constitution = load_constitution(run.data / "constitution.yaml")
    counter = find_token_counter(run.config(), constitution)
    dataset = read_run_copy(run.data, constitution)
    derived = _as_json(describe(dataset, run.data, constitution, run.config(), counter).to_json())
    stored = json.loads((run.data / "statistics.json").read_text(encoding="utf-8"))
    if counter is None:  # the tokenizer is not on this machine: no tokens to compare
        for part in ("train", "eval"):
            derived[part]["tokens"] = stored[part]["tokens"]
    return None if derived == stored == run.result("export") else "data/statistics.json does not follow from the data"


def _base(run: Run) -> str | None:
    name, revision = run.config().training.model, run.config().training.revision
    if find_tokenizer(name, revision) is None or (model := find_local_model(name, revision)) is None:
        return None  # not on this machine: nothing to compare with
    found, named = model.revision, run.identity.revision
    return None if found == named else f"the base model here is {found}, the manifest's {named}"


def _tokens(run: Run) -> str | None:
    config, plan = run.config(), RunResults(run).plan
    folder = find_tokenizer(config.training.model, config.training.revision)
    if plan is None or folder is None:
        return None
    constitution = load_constitution(run.data / "constitution.yaml")
    dataset = read_run_copy(run.data, constitution)
    tokens = build_training_set(config, dataset, open_encoder(folder), constitution).workloads.last.tokens
    planned = plan.tokens_per_epoch
    return None if tokens == planned else f"the examples have {tokens} tokens, the plan says {planned}"


def _executed_plan(run: Run) -> str | None:
    planned, executed = RunResults(run).plan, RunResults(run).executed_plan
    if planned is None or executed is None or run.state("train") != "done":
        return None
    wrong = [
        key for key in ("model", "r", "epochs", "tokens_per_epoch") if getattr(planned, key) != getattr(executed, key)
    ]
    return f"training's own plan has another {', '.join(wrong)} than the plan" if wrong else None


def _training(run: Run) -> str | None:
    result = RunResults(run).train
    if result is None or run.manifest.stages["train"].status != "done":
        return None
    first = result.sft
    if first is not None:
        steps = len(read_metrics(run.checkpoints / "sft" / "metrics.jsonl"))
        if steps != first.steps:
            return f"checkpoints/sft/metrics.jsonl has {steps} steps, the manifest {first.steps}"
    lines = read_metrics(run.metrics)
    told = (result.steps, result.first_loss, result.final_loss)
    found = (len(lines), lines[0]["loss"], lines[-1]["loss"]) if lines else (0, None, None)
    return None if told == found else f"metrics.jsonl says {found} of steps, first and last loss, the manifest {told}"


def _states(run: Run) -> str | None:
    wrong = [f"{p.name}: {why}" for p in saved_states(run.checkpoints) if (why := unusable_reason(p))]
    return "; ".join(wrong) or None


def _judgement(run: Run) -> str | None:
    result = RunResults(run).judge
    if result is None:
        return None
    if json.loads((run.tribunal / "summary.json").read_text(encoding="utf-8")) != run.result("judge"):
        return "tribunal/summary.json and the manifest differ"
    rows = read_objects(run.tribunal / "answers.jsonl")
    for model, told in (("base", result.screen.base), ("tuned", result.screen.tuned)):
        if tally([row[model]["flags"] for row in rows]) != told:
            return f"the screen's totals for the {model} model do not follow from tribunal/answers.jsonl"
    return None


def _choice(run: Run) -> str | None:
    result = RunResults(run).choice
    if result is None:
        return None
    for name, figures in result.epochs.items():
        scores = {
            model: json.loads((run.tribunal / "checkpoints" / f"{model}.json").read_text(encoding="utf-8"))["scores"]
            for model in (BASE, name)
        }
        ids = [str(i) for i in range(len(scores[name]["revised"]))]
        tuned = compare(ids, scores[BASE], scores[name]).tuned
        derived = (tuned.preferred, tuned.mean_margin, tuned.held_out_loss)
        if derived != (figures.preferred, figures.mean_margin, figures.held_out_loss):
            return f"{name}'s figures do not follow from tribunal/checkpoints/"
    return None


def _trial(run: Run) -> str | None:
    result = RunResults(run).trial
    if result is None:
        return None
    if json.loads((run.tribunal / "trial.json").read_text(encoding="utf-8")) != run.result("trial"):
        return "tribunal/trial.json and the manifest differ"
    section = run.config().training.tribunal
    means: dict[str, list[float]] = {"base": [], "tuned": []}
    for row in read_objects(run.tribunal / "verdicts.jsonl"):
        stored = row["opinion"]
        if row["verdicts"]:
            formed = opinion(row["answer"], [verdict_from_json(v) for v in row["verdicts"]], section).to_json()
            if any(formed[key] != stored[key] for key in ("judges", "mean", "out")):
                return f"the Tribunal's opinion of {row['answer']} does not follow from its verdicts"
        if stored["mean"] is not None:
            means[row["answer"].split("/")[1]].append(sum(stored["mean"]) / 2)
    for model, values in means.items():
        score = result.summary.mean_score(model, "mean")
        told = None if score is None else score.mean
        mean = sum(values) / len(values) if values else None
        if mean is not None and (told is None or abs(mean - told) > 2e-4):  # both are rounded to four digits
            return f"the {model} model's mean of {told} does not follow from tribunal/verdicts.jsonl ({mean:.4f})"
    return None


def _parity(run: Run) -> str | None:
    result = run.result("gguf")
    same = result is None or json.loads((run.gguf / "parity.json").read_text(encoding="utf-8")) == result
    return None if same else "gguf/parity.json and the manifest differ"


def _parent(run: Run) -> str | None:
    recorded = run.manifest.parent
    if recorded is None or sha256_file(run.path / "parent" / "adapter_model.safetensors") == recorded.adapter_sha256:
        return None
    return "parent/ holds another adapter than the manifest's"


def _ledger(run: Run) -> str | None:
    usd, seconds = total(run.manifest.ledger)
    told = (run.manifest.cost_usd, run.manifest.worked_seconds)
    if told == (usd, seconds):
        return None
    return f"the ledger's entries add up to {usd} USD and {seconds} s, the manifest says {told}"


def _as_json(value: object) -> object:
    return json.loads(json.dumps(value))


CHECKS: dict[str, Callable[[Run], str | None]] = {
    "the configuration is the manifest's": _config,
    "the examples and the constitution are the manifest's": _data,
    "the export's statistics follow from the data": _statistics,
    "the base model is the manifest's": _base,
    "the plan's tokens follow from the examples": _tokens,
    "what was executed follows the plan": _executed_plan,
    "training's figures follow from metrics.jsonl": _training,
    "the saved states are whole": _states,
    "the judgement's totals follow from the answers": _judgement,
    "the choice of the checkpoint follows from the scores": _choice,
    "the trial's opinions and means follow from the verdicts": _trial,
    "the parity figures are those of gguf/parity.json": _parity,
    "the parent's adapter is the manifest's": _parent,
    "the ledger adds up": _ledger,
}
