"""What a run trains, by its method: `sft` on rows, `dpo` on pairs, `sft+dpo` on one after the other; the plan of each, and both in turn.

The second part of `sft+dpo` begins with the adapter of the first, which stays in `checkpoints/sft/` with its states and metrics; the run's
own adapters, states and metrics are those of the second. Torch-free until something is trained.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from noesis.config import Config
from noesis.console import say
from noesis.constitution.conversation import Encoded
from noesis.constitution.document import Constitution
from noesis.constitution.tokenizer import load_tokenizer
from noesis.device import Device
from noesis.errors import TrainingError
from noesis.files import sha256_file, write_json
from noesis.train.budget import Budget
from noesis.train.checkpoint import saved, step_of
from noesis.train.fork import FILE
from noesis.train.pairs import Preferences, example_pairs, soft_pairs
from noesis.train.plan import Plan, draft
from noesis.train.rows import replay_rows, training_rows
from noesis.train.shapes import Shape, TokenRatio
from noesis.train.work import Work, count, estimate

Records = list[dict[str, Any]]
FORWARD = 0.5  # of a training step's time that its forward pass alone takes
FIRST = "sft"  # folder of the first part's adapters, states and metrics, in the run's checkpoints


@dataclass(frozen=True)
class Material:
    """The token rows of each part that the method has; of a run that need not exist, their estimated work."""

    rows: list[Encoded] | Work | None = None
    pairs: Preferences | Work | None = None
    held_out_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Of one pass over what the run's own adapters are trained on."""
        return pair_work(self.pairs).tokens if self.pairs is not None else _work(self.rows).tokens


def pair_work(pairs: Preferences | Work) -> Work:
    return pairs if isinstance(pairs, Work) else pairs.work


def _work(rows: list[Encoded] | Work | None) -> Work:
    return rows if isinstance(rows, Work) else count(rows or [])


def material_of(
    config: Config,
    folder: Path,
    train: Records,
    constitution: Constitution,
    *,
    held_out: Records | None = None,
    besides: dict[str, Records] | None = None,
) -> Material:
    """Token rows by the tokenizer in `folder`.

    Args:
        held_out: examples whose pairs are measured and never trained on.
        besides: what the run takes besides its examples (`data.preferences.besides`).

    Raises:
        TrainingError: a row that could not be trained on as meant; the message names it.
    """
    t, more = config.training, besides or {}
    tokenizer = load_tokenizer(folder)
    critique, longest = t.constitutional_ai.include_critique, t.max_length
    rows = pairs = None
    if t.method != "dpo":
        rows = training_rows(train, tokenizer, constitution, include_critique=critique, max_length=longest)
        rows += replay_rows(more.get("replay", []), tokenizer, max_length=longest)
    if t.method != "sft":
        own, kept = (
            example_pairs(part, tokenizer, constitution, include_critique=critique, max_length=longest)
            for part in (train, held_out or [])
        )
        pairs = Preferences(
            [*own, *soft_pairs(more.get("pairs", []), tokenizer, constitution, max_length=longest)], kept
        )
    return Material(rows, pairs, sum(pair.tokens for pair in pairs.held_out) if pairs else 0)


def estimated(
    config: Config,
    train: Records,
    constitution: Constitution,
    ratio: TokenRatio,
    *,
    besides: dict[str, Records] | None = None,
) -> Material:
    """The work of a run whose tokenizer is not here."""
    t, more = config.training, besides or {}
    critique = t.constitutional_ai.include_critique
    rows = pairs = None
    if t.method != "dpo":
        rows = estimate(train, constitution, ratio, include_critique=critique)
        general = [
            {"language": "en", "prompt": " ".join(m["content"] for m in r["messages"]), "response_revised": ""}
            for r in more.get("replay", [])
        ]
        rows = (
            _both(rows, estimate(general, constitution, ratio, include_critique=False), end_to_end=True)
            if general
            else rows
        )
    if t.method != "sft":
        soft = [r | {"response_revised": r["chosen"], "response_initial": r["rejected"]} for r in more.get("pairs", [])]
        parts = []
        for records, block in ((train, critique), (soft, False)):
            weak = [r | {"response_revised": r["response_initial"]} for r in records]
            parts.append(
                _both(
                    *(estimate(part, constitution, ratio, include_critique=block) for part in (records, weak)),
                    end_to_end=False,
                )
            )
        pairs = _both(*parts, end_to_end=True) if soft else parts[0]
    return Material(rows, pairs)


def _both(a: Work, b: Work, *, end_to_end: bool) -> Work:
    """Two works as one: one after the other, or row by row."""
    lengths = (
        (*a.lengths, *b.lengths) if end_to_end else tuple(x + y for x, y in zip(a.lengths, b.lengths, strict=True))
    )
    return Work(lengths, a.trained + b.trained, max(a.plus_minus, b.plus_minus))


# --- plans


def plan_of(
    config: Config, model: str, shape: Shape, material: Material, device: Device, *, rented: bool = False
) -> Plan:
    """The plan of the run's method, whether it fits or not. Of `sft+dpo` it is that of the second part, with the first one's in it."""
    if material.pairs is None:
        return draft(config, model, shape, material.rows or [], device, rented=rented)
    if material.rows is None:
        return preference_plan(config, model, shape, material, device, rented=rented)
    first = draft(config, model, shape, material.rows, replace(device, cards=min(device.cards, 1)), rented=rented)
    # both parts on one base: an adapter is trained further on what it began on
    quantization = config.lora.quantization.model_copy(update={"load_in_4bit": first.setup.precision == "nf4"})
    same = {
        "lora": config.lora.model_copy(update={"quantization": quantization}),
        "training": config.training.model_copy(update={"precision": first.setup.precision}),
    }
    second = preference_plan(config.model_copy(update=same), model, shape, material, device, rented=rented)
    training, *others = second.stages
    before = first.stages[0]
    training = training | {"seconds": training["seconds"] + before["seconds"], "usd": training["usd"] + before["usd"]}
    return replace(
        second,
        first=replace(first, alternatives=[], device=device.as_json()).as_json(),
        seconds=round(second.seconds + first.seconds, 1),
        usd=round(second.usd + before["usd"], 4),
        fits=first.fits and second.fits,
        stages=[training, *others],
        reasons=[
            *second.reasons,
            f"first SFT: {first.rows} rows, {first.steps} steps, {first.seconds:.0f} s, which time and price contain",
        ],
    )


def preference_plan(
    config: Config, model: str, shape: Shape, material: Material, device: Device, *, rented: bool = False
) -> Plan:
    """The plan of preference training: a pair is planned as one sequence, and the reference's passes come on top. One card trains."""
    assert material.pairs is not None
    work = pair_work(material.pairs)
    one = replace(device, cards=min(device.cards, 1))
    epochs = config.training.model_copy(update={"num_train_epochs": config.training.dpo.epochs})
    plan = draft(config.model_copy(update={"training": epochs}), model, shape, work, one, rented=rented)
    seconds = FORWARD * (work.tokens + material.held_out_tokens * (1 + plan.epochs)) / plan.tokens_per_s
    training, *others = plan.stages
    usd = training["usd"] * seconds / training["seconds"]
    reasons = [f"reference: computed once, before the first step; with measuring the held-out pairs {seconds:.0f} s"]
    if device.cards > 1:
        reasons.append(f"cards: 1 of {device.cards}; preference training runs on one")
    return replace(
        plan,
        device=device.as_json(),
        start_seconds=round(plan.start_seconds + seconds, 1),
        seconds=round(plan.seconds + seconds, 1),
        usd=round(plan.usd + usd, 4),
        stages=[training | {"seconds": training["seconds"] + seconds, "usd": training["usd"] + usd}, *others],
        reasons=[*plan.reasons, *reasons],
    )


# --- training


def states(checkpoints: Path) -> list[Path]:
    """Saved states of every part."""
    return [*saved(checkpoints / FIRST / "resume"), *saved(checkpoints / "resume")]


def left(plan: Plan, checkpoints: Path) -> tuple[dict[str, Any], float]:
    """(what the budget must still pay for, as a plan; share of its steps that is done)."""
    own, told = saved(checkpoints / "resume"), plan.as_json()
    done = min(step_of(own[-1]) / plan.steps, 1) if own else 0.0
    if plan.first is None:
        return told, done
    first, before = Plan.from_json(plan.first), saved(checkpoints / FIRST / "resume")
    share = 1.0 if _finished(checkpoints / FIRST) else min(step_of(before[-1]) / first.steps, 1) if before else 0.0
    # what is left of the first part counts as the second one's start
    own_seconds = plan.seconds - first.seconds
    start = plan.start_seconds + first.seconds * (1 - share)
    return told | {"start_seconds": start, "seconds": own_seconds + start - plan.start_seconds}, done


def train_run(
    folder: Path,
    material: Material,
    config: Config,
    plan: Plan,
    device: Device,
    *,
    checkpoints: Path,
    metrics: Path,
    budget: Budget | None = None,
    parent: Path | None = None,
) -> dict[str, Any]:
    """Train what the method asks for; the arguments, the result and the errors are those of `trainer.train`, of the last part.

    Of `sft+dpo` the first part's result is in it, as `sft`.
    """
    from noesis.train.trainer import train

    last = material.rows if material.pairs is None else material.pairs
    assert last is not None and not isinstance(last, Work)
    if plan.first is None:
        return train(
            folder, last, config, plan, device, checkpoints=checkpoints, metrics=metrics, budget=budget, parent=parent
        )
    place, first = checkpoints / FIRST, Plan.from_json(plan.first)
    before = _finished(place)
    if before is None:
        assert isinstance(material.rows, list)
        say("  first part: SFT")
        before = train(
            folder,
            material.rows,
            config,
            first,
            device,
            checkpoints=place,
            metrics=place / "metrics.jsonl",
            budget=budget,
            parent=parent,
        )
        smaller = before.get("smaller_plan")
        if smaller is not None and smaller["setup"]["precision"] != plan.setup.precision:
            raise TrainingError(
                f"the first part fitted only with the base in {smaller['setup']['precision']}: set precision: {smaller['setup']['precision']} "
                "in training_config.yaml, so that both parts train on the same base, and run the same command again"
            )
        adapter = place / f"epoch_{first.epochs - 1}"
        write_json(
            place / "result.json", {"adapter": adapter.name, "sha256": sha256_file(adapter / FILE), "result": before}
        )
    say("  second part: preferences")
    start = place / f"epoch_{first.epochs - 1}"
    return train(
        folder, last, config, plan, device, checkpoints=checkpoints, metrics=metrics, budget=budget, parent=start
    ) | {"sft": before}


def outputs(checkpoints: Path) -> Sequence[Path]:
    """What training leaves beside the run's metrics."""
    first = checkpoints / FIRST
    own = [*checkpoints.glob("epoch_*/*"), *first.glob("epoch_*/*")]
    return own + [
        file
        for file in (checkpoints / "reference.json", first / "metrics.jsonl", first / "result.json")
        if file.is_file()
    ]


def _finished(place: Path) -> dict[str, Any] | None:
    """The result of a first part that ran to its end and whose adapter is still what it was."""
    try:
        stored = json.loads((place / "result.json").read_text(encoding="utf-8"))
        whole = sha256_file(place / str(stored["adapter"]) / FILE) == stored["sha256"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return dict(stored["result"]) if whole else None
