"""`noesis status RUN` and `noesis verify RUN`: is what the manifest says still so?

Status looks at sizes and times and hashes only what changed; verify hashes every file and derives again what can be derived.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from noesis.constitution.document import load_constitution
from noesis.core.errors import NoesisError
from noesis.core.files import sha256_file
from noesis.core.jsonl import read_objects
from noesis.dataset.checks.length import find_token_counter
from noesis.dataset.load import read_run_copy
from noesis.dataset.statistics import describe
from noesis.llm.hub import find_model, find_tokenizer
from noesis.llm.row_encoder import open_encoder
from noesis.pipeline.stages.choose import BASE
from noesis.pipeline.training_set import build_training_set
from noesis.run.directory import Run
from noesis.run.ledger import total
from noesis.run.manifest import digest
from noesis.run.metrics import read_metrics
from noesis.run.stages import NEEDS, STAGES
from noesis.training.methods import saved_states
from noesis.training.state.checkpoint import unusable_reason
from noesis.tribunal.court import opinion
from noesis.tribunal.heldout import compare
from noesis.tribunal.offline_screen import tally
from noesis.tribunal.verdict import from_json


@dataclass(frozen=True)
class StageState:
    """One stage as it is now."""

    name: str
    status: str  # done, stale, failed, interrupted, running, not run; `changed`: recorded as done, but its outputs are not what they were
    inputs: dict[str, bool]  # stage it read from → whether that still is what it read
    wrong: list[str]  # outputs that are missing or changed
    seconds: float
    usd: float


def status(run: Run) -> list[StageState]:
    """Every stage, in order."""
    found = []
    for name in STAGES:
        entry = run.manifest["stages"].get(name)
        if entry is None:
            found.append(StageState(name, "not run", {}, [], 0.0, 0.0))
            continue
        wrong = run.changed(name) if entry["status"] in ("done", "stale") else []
        inputs = {other: _as_read(run, other, read) for other, read in entry.get("inputs", {}).items()}
        usd, seconds = total([e for e in run.manifest.get("ledger", []) if e["stage"] == name])
        state = "changed" if wrong and entry["status"] == "done" else str(entry["status"])
        found.append(StageState(name, state, inputs, wrong, seconds or float(entry["seconds"]), usd))
    return found


def _as_read(run: Run, other: str, read: str) -> bool:
    entry = run.manifest["stages"].get(other, {})
    return entry.get("status") == "done" and digest(entry) == read and not run.changed(other)


def verify(run: Run) -> Iterator[tuple[str, str | None]]:
    """(what was checked, what is wrong with it or None), one after the other."""
    for name in STAGES:
        entry = run.manifest["stages"].get(name, {})
        if entry.get("status") not in ("done", "stale"):
            continue
        wrong = run.changed(name, thoroughly=True)
        yield f"{name}: {len(entry['outputs'])} files have their hashes", "; ".join(wrong) or None
        if entry["status"] == "done":
            lost = [
                other
                for other in NEEDS.get(name, ())
                if other in entry.get("inputs", {}) and not _as_read(run, other, entry["inputs"][other])
            ]
            yield f"{name}: what it read is what lies there", ", ".join(lost) + " changed since" if lost else None
    for what, check in CHECKS.items():
        try:
            yield what, check(run)
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            NoesisError,
        ) as error:  # a damaged file is a finding, whatever it breaks
            yield what, f"can't be read: {' '.join(str(error).split())[:200]}"


def _config(run: Run) -> str | None:
    return (
        None
        if run.config().digest() == run.manifest["identity"]["config_sha256"]
        else "config.json is of another configuration than the manifest"
    )


def _data(run: Run) -> str | None:
    constitution = load_constitution(run.data / "constitution.yaml")
    if constitution.digest() != run.manifest["identity"]["constitution_sha256"]:
        return "data/constitution.yaml is another constitution than the manifest's"
    same = read_run_copy(run.data, constitution).digest() == run.manifest["identity"]["dataset_sha256"]
    return None if same else "data/train.jsonl and eval.jsonl are other examples than the manifest's"


def _statistics(run: Run) -> str | None:
    constitution = load_constitution(run.data / "constitution.yaml")
    counter = find_token_counter(run.config(), constitution)
    dataset = read_run_copy(run.data, constitution)
    derived = describe(dataset, run.data, constitution, run.config(), counter).to_json()
    derived = json.loads(json.dumps(derived))
    stored = json.loads((run.data / "statistics.json").read_text(encoding="utf-8"))
    return None if derived == stored == run.result("export") else "data/statistics.json does not follow from the data"


def _base(run: Run) -> str | None:
    config = run.config()
    folder = find_tokenizer(config.training.model, config.training.revision)
    if folder is None:
        return None  # not on this machine: nothing to compare with
    found = find_model(config.training.model, config.training.revision)
    named = run.manifest["identity"]["revision"]
    return None if found.revision == named else f"the base model here is {found.revision}, the manifest's {named}"


def _tokens(run: Run) -> str | None:
    config, plan = run.config(), run.result("plan")
    folder = find_tokenizer(config.training.model, config.training.revision)
    if plan is None or folder is None:
        return None
    constitution = load_constitution(run.data / "constitution.yaml")
    dataset = read_run_copy(run.data, constitution)
    tokens = build_training_set(config, dataset, open_encoder(folder), constitution).workloads.last.tokens
    return (
        None
        if tokens == plan["tokens_per_epoch"]
        else f"the examples have {tokens} tokens, the plan says {plan['tokens_per_epoch']}"
    )


def _training(run: Run) -> str | None:
    result = run.result("train")
    if result is None or run.manifest["stages"]["train"]["status"] != "done":
        return None
    first = result.get("sft")
    if first is not None:
        steps = len(read_metrics(run.checkpoints / "sft" / "metrics.jsonl"))
        if steps != first["steps"]:
            return f"checkpoints/sft/metrics.jsonl has {steps} steps, the manifest {first['steps']}"
    lines = read_metrics(run.metrics)
    told = (result["steps"], result["first_loss"], result["final_loss"])
    found = (len(lines), lines[0]["loss"], lines[-1]["loss"]) if lines else (0, None, None)
    return None if told == found else f"metrics.jsonl says {found} of steps, first and last loss, the manifest {told}"


def _states(run: Run) -> str | None:
    wrong = [f"{p.name}: {why}" for p in saved_states(run.checkpoints) if (why := unusable_reason(p))]
    return "; ".join(wrong) or None


def _judgement(run: Run) -> str | None:
    result = run.result("judge")
    if result is None:
        return None
    if json.loads((run.tribunal / "summary.json").read_text(encoding="utf-8")) != result:
        return "tribunal/summary.json and the manifest differ"
    rows = read_objects(run.tribunal / "answers.jsonl")
    for who in ("base", "tuned"):
        if json.loads(json.dumps(tally([row[who]["flags"] for row in rows]))) != result["screen"][who]:
            return f"the screen's totals for the {who} model do not follow from tribunal/answers.jsonl"
    return None


def _choice(run: Run) -> str | None:
    result = run.result("choose")
    if result is None:
        return None
    for name, figures in result["epochs"].items():
        kept = {
            who: json.loads((run.tribunal / "checkpoints" / f"{who}.json").read_text(encoding="utf-8"))["scores"]
            for who in (BASE, name)
        }
        ids = [str(i) for i in range(len(kept[name]["revised"]))]
        tuned = compare(ids, kept[BASE], kept[name])["tuned"]
        if any(tuned[key] != figures[key] for key in ("preferred", "mean_margin", "held_out_loss")):
            return f"{name}'s figures do not follow from tribunal/checkpoints/"
    return None


def _trial(run: Run) -> str | None:
    result = run.result("trial")
    if result is None:
        return None
    if json.loads((run.tribunal / "trial.json").read_text(encoding="utf-8")) != result:
        return "tribunal/trial.json and the manifest differ"
    section = run.config().training.tribunal
    means: dict[str, list[float]] = {"base": [], "tuned": []}
    for row in read_objects(run.tribunal / "verdicts.jsonl"):
        said = row["opinion"]
        if row["verdicts"]:
            formed = opinion(row["answer"], [from_json(v) for v in row["verdicts"]], section).as_json()
            if any(formed[key] != said[key] for key in ("judges", "mean", "out")):
                return f"the court's opinion of {row['answer']} does not follow from its verdicts"
        if said["mean"] is not None:
            means[row["answer"].split("/")[1]].append(sum(said["mean"]) / 2)
    for who, values in means.items():
        told = result["models"][who]["all"].get("mean", {}).get("mean")
        if values and (told is None or abs(sum(values) / len(values) - told) > 2e-4):  # both are rounded to four digits
            return f"the {who} model's mean of {told} does not follow from tribunal/verdicts.jsonl ({sum(values) / len(values):.4f})"
    return None


def _parity(run: Run) -> str | None:
    result = run.result("gguf")
    same = result is None or json.loads((run.gguf / "parity.json").read_text(encoding="utf-8")) == result
    return None if same else "gguf/parity.json and the manifest differ"


def _parent(run: Run) -> str | None:
    parent = run.manifest.get("parent")
    file = run.path / "parent" / "adapter_model.safetensors"
    return (
        None
        if parent is None or sha256_file(file) == parent["adapter_sha256"]
        else "parent/ holds another adapter than the manifest's"
    )


def _ledger(run: Run) -> str | None:
    usd, seconds = total(run.manifest.get("ledger", []))
    told = (run.manifest["cost_usd"], run.manifest.get("worked_seconds", 0.0))
    return (
        None
        if told == (usd, seconds)
        else f"the ledger's entries add up to {usd} USD and {seconds} s, the manifest says {told}"
    )


CHECKS: dict[str, Callable[[Run], str | None]] = {
    "the configuration is the manifest's": _config,
    "the examples and the constitution are the manifest's": _data,
    "the export's statistics follow from the data": _statistics,
    "the base model is the manifest's": _base,
    "the plan's tokens follow from the examples": _tokens,
    "training's figures follow from metrics.jsonl": _training,
    "the saved states are whole": _states,
    "the judgement's totals follow from the answers": _judgement,
    "the choice of the checkpoint follows from the scores": _choice,
    "the trial's opinions and means follow from the verdicts": _trial,
    "the parity figures are those of the file": _parity,
    "the parent's adapter is the manifest's": _parent,
    "the ledger adds up": _ledger,
}
