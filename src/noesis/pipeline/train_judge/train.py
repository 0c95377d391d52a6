"""Train a reward model on the project's own pairs, and leave its folder: `noesis tribunal train-judge`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noesis.core.config import Config
from noesis.core.console import command, say
from noesis.core.device import Device, detect
from noesis.core.errors import CapError, DataError
from noesis.core.files import copy_file, new_folder, sha256_file, sha256_json, utc_now, write_json, write_jsonl
from noesis.core.i18n import _
from noesis.core.jsonl import read_json_file
from noesis.core.project import Project
from noesis.llm.embedded import Model
from noesis.llm.hub import find_base, is_hub_name
from noesis.llm.reward.folder import ADAPTER_FILES, HEAD_FILE, JUDGE_FILE, WORDS_FILE, read_judge_folder
from noesis.llm.row_encoder import open_encoder
from noesis.pipeline.train_judge.folder import PAIRS, JudgeWork, open_work
from noesis.pipeline.train_judge.pairs import (
    AnswerPair,
    FittedPair,
    collect_pairs,
    fit_pairs,
    giveaways,
    split_by_prompt,
    thin_out,
)
from noesis.planning.budget import quote, require_affordable
from noesis.planning.by_method import reward_plan
from noesis.planning.display import show_plan
from noesis.planning.draft import require_fit
from noesis.planning.model_shapes import read_shape
from noesis.planning.plan import Plan, with_planned_storage
from noesis.planning.pricing import usd_per_second
from noesis.training.job import PreferencePairs, RewardHead, TrainingSet, TrainJob
from noesis.training.methods import remaining_cost
from noesis.tribunal.statistics import wilson

if TYPE_CHECKING:
    from noesis.training.reward.probe import Probe

FORMAT = 1
DATA_LICENCE = "CC BY 4.0"  # of data/, which the pairs are made of


@dataclass(frozen=True)
class Pairs:
    """The pairs as text and as tokens, those of some prompts held out."""

    train: list[FittedPair]
    held_out: list[FittedPair]

    @property
    def texts(self) -> list[AnswerPair]:
        return [pair for pair, _ in (*self.train, *self.held_out)]

    @property
    def tokens(self) -> PreferencePairs:
        return PreferencePairs([pair for _, pair in self.train], [pair for _, pair in self.held_out])


def train_judge(project: Project, config: Config, path: Path, *, name: str | None = None) -> dict[str, Any]:
    """Train the reward model that `judge_training` describes, continuing what lies in folder `path`.

    Args:
        name: of the judge, in its record; None: that of base and method.

    Returns:
        The record of the reward model, which is in `path`/judge.

    Raises:
        CapError: a cap is reached; the same command with a higher one goes on.
        DataError: a prompt is a question of the Tribunal or of its benchmark.
        TrainingError: it does not fit, or a loss is not finite.
    """
    section, device = config.training.judge_training, detect()
    model = find_base(config.training.model, config.training.revision)
    pairs = read_pairs(project, config, model)
    base = config.training.model if is_hub_name(config.training.model) else Path(config.training.model).name
    name = name or f"{Path(base).stem.lower()}-{section.method}"
    layers = layers_of(model, section.depth) if section.method == "probe" else None
    request: dict[str, Any] = {
        "settings": section.model_dump(mode="json"),
        "seed": config.training.seed,
        "base": [base, model.revision],
        "pairs": sha256_json([vars(pair) for pair in pairs.texts]),
        "name": name,
    }
    price = usd_per_second(device, config.training.budget.usd_per_hour)
    with open_work(path, request, config.training.budget, price) as work:
        if (work.judge / JUDGE_FILE).is_file():
            say(_("  {judge} is made already", judge=work.judge))
            return read_judge_folder(work.judge).record.model_dump()
        write_jsonl(work.path / PAIRS, [vars(pair) for pair in pairs.texts])
        found = giveaways([pair for pair, _ in pairs.train])
        _show_pairs(pairs, found)
        how = _train_adapter if section.method == "lora" else _fit_head
        made, files = how(config, device, model, pairs, work)
        files[WORDS_FILE] = _write_words(pairs, work)
        record = {
            "format": FORMAT,
            "name": name,
            "base": base,
            "base_revision": model.revision,
            "licence": f"base: {model.licence}; trained on data under {DATA_LICENCE}",
            "method": section.method,
            "layers": layers,
            "pool": section.pool,
            "trained_on": _trained_on(pairs),
            "giveaways": found,
            **made,
            "settings": request["settings"] | {"seed": config.training.seed},
            "device": device.name,
            "date": utc_now(),
            "made_by": "noesis tribunal train-judge",
        }
        _write_judge(work.judge, record, files)
        record = _with_held_out(work.judge, config.training.model, pairs.held_out)
    spec = f"reward:{work.judge}" + ("" if base == config.training.model else f"@{config.training.model}")
    _show_judge(record, spec)
    return record


def read_pairs(project: Project, config: Config, model: Model) -> Pairs:
    """The pairs as the model reads them, split by prompt. Raises as `collect_pairs` and `fit_pairs`."""
    section = config.training.judge_training
    fitting = fit_pairs(collect_pairs(project, config), open_encoder(model.path), section.max_tokens)
    fitting = thin_out(fitting, section.max_planted, config.training.seed)
    apart = split_by_prompt([pair.prompt_id for pair, _ in fitting], section.held_out, config.training.seed)
    train, held_out = ([p for p in fitting if (p[0].prompt_id in apart) is out] for out in (False, True))
    if not train:
        raise DataError(_("no pair is left to train on: raise judge_training.max_tokens or max_planted"))
    return Pairs(train, held_out)


def _train_adapter(
    config: Config, device: Device, model: Model, pairs: Pairs, work: JudgeWork
) -> tuple[dict[str, Any], dict[str, Path]]:
    """(figures for the record, the files of the chosen epoch)."""
    from noesis.training.trainer import train

    section = config.training.judge_training
    config, plan = plan_adapter(config, device, model, pairs)
    show_plan(plan)
    for line in quote(plan, work.budget):
        say(line)
    checkpoints = work.path / "checkpoints"
    remaining, done = remaining_cost(plan, checkpoints)
    require_affordable(remaining, work.budget, done=done)
    head = RewardHead(section.pool, section.centring)
    data, metrics = TrainingSet(pairs=pairs.tokens), work.path / "metrics.jsonl"
    job = TrainJob(model.path, data, config, plan, device, checkpoints, metrics, work.budget, reward=head)
    result = train(job)
    by_epoch = result.held_out.by_epoch if result.held_out is not None else ()
    best = min(range(len(by_epoch)), key=lambda epoch: by_epoch[epoch].loss, default=plan.epochs - 1)
    folder = checkpoints / f"epoch_{best}"
    figures = {
        "epoch": best,
        "held_out_by_epoch": [{"accuracy": e.reward_accuracy, "loss": e.loss} for e in by_epoch],
        "precision": plan.setup.precision,
        "seconds": result.seconds,
        "tokens_per_s": result.tokens_per_s,
    }
    return figures, {name: folder / name for name in (HEAD_FILE, *ADAPTER_FILES)}


def plan_adapter(config: Config, device: Device, model: Model, pairs: Pairs) -> tuple[Config, Plan]:
    """The settings of a reward model's training, and its plan. The base is never in 4 bits: it judges as it is.

    Raises:
        TrainingError: it does not fit.
    """
    section = config.training.judge_training
    dpo = config.training.dpo.model_copy(update={"epochs": section.epochs, "learning_rate": section.learning_rate})
    config = config.with_settings(
        lora={"r": section.r, "lora_alpha": section.lora_alpha},
        quantization={"load_in_4bit": False},
        training={
            "method": "dpo",
            "engine": "noesis",
            "dpo": dpo,
            "num_train_epochs": section.epochs,
            "precision": "bf16" if device.kind == "cuda" and device.bf16 else "fp32",
        },
    )
    shape, work = read_shape(model.path), pairs.tokens.work
    plan = reward_plan(config, config.training.model, shape, work, device)
    require_fit(plan, config, shape, work, device)
    return with_planned_storage(config, plan), plan


def _fit_head(
    config: Config, device: Device, model: Model, pairs: Pairs, work: JudgeWork
) -> tuple[dict[str, Any], dict[str, Path]]:
    """(figures for the record, the file of the head)."""
    import numpy as np
    from safetensors.numpy import save_file

    from noesis.training.reward.probe import fit_probe
    from noesis.training.reward.states import frozen_model, pooled_states

    section = config.training.judge_training

    def require_time() -> None:
        if work.budget.left_seconds() <= 0:
            raise CapError(
                _(
                    "stopped at the agreed cap: {describe}; what was computed is kept, and the same command "
                    "with a higher --max-usd or --max-minutes goes on",
                    describe=work.budget.describe(),
                )
            )

    frozen = frozen_model(model.path, pool=section.pool, layers=layers_of(model, section.depth))
    conversations = [(pair.dialogue, answer) for pair in pairs.texts for answer in (pair.better, pair.worse)]
    states = pooled_states(frozen, conversations, work.path / "states", between=require_time).astype(np.float64)
    differences, count = states[0::2] - states[1::2], len(pairs.train)
    p = np.array([pair.p for pair in pairs.texts])
    probe = fit_probe(differences[:count], differences[count:], p[:count], p[count:])
    file = work.path / HEAD_FILE
    save_file({"weight": probe.weight[None].astype(np.float32)}, file)
    return {"penalty": probe.penalty}, {HEAD_FILE: file}


def fit_words(pairs: Pairs) -> Probe:
    """The bag of words that learns from the same pairs, which the judge has to beat."""
    import numpy as np

    from noesis.training.reward.probe import fit_probe
    from noesis.tribunal.reward.words import word_presence

    better, worse = (word_presence([getattr(pair, side) for pair in pairs.texts]) for side in ("better", "worse"))
    p, count = np.array([pair.p for pair in pairs.texts]), len(pairs.train)
    return fit_probe((better - worse)[:count], (better - worse)[count:], p[:count], p[count:])


def _write_words(pairs: Pairs, work: JudgeWork) -> Path:
    from safetensors.numpy import save_file

    file = work.path / WORDS_FILE
    save_file({"weight": fit_words(pairs).weight.astype("float32")}, file)
    return file


def layers_of(model: Model, depth: float) -> int:
    """How many of the layers a probe of this depth computes; at least one."""
    return max(1, round(depth * read_shape(model.path).layers))


def _write_judge(target: Path, record: dict[str, Any], files: dict[str, Path]) -> None:
    """The folder of the reward model, whole or not at all."""
    with new_folder(target) as part:
        for name, file in files.items():
            copy_file(file, part / name)
        write_json(part / JUDGE_FILE, record | {"files": {name: sha256_file(part / name) for name in files}})


def _with_held_out(folder: Path, base: str, held_out: Sequence[FittedPair]) -> dict[str, Any]:
    """The record with what the reward model, as it will be loaded, makes of the held-out pairs; written."""
    from noesis.llm.reward.model import load_judge

    record = read_json_file(folder / JUDGE_FILE)
    model = load_judge(read_judge_folder(folder), base)
    texts = [pair for pair, _ in held_out]
    found = model.rewards([(pair.dialogue, answer) for pair in texts for answer in (pair.better, pair.worse)])
    right = [better > worse for better, worse in zip(found[0::2], found[1::2], strict=True)]
    record["held_out"] = {
        "prompts": len({pair.prompt_id for pair in texts}),
        **_share(right),
        "by_kind": _by([pair.kind for pair in texts], right),
        "by_language": _by([pair.language for pair in texts], right),
    }
    write_json(folder / JUDGE_FILE, record)
    return dict(record)


def _by(names: Sequence[str], right: Sequence[bool]) -> dict[str, Any]:
    return {name: _share([r for n, r in zip(names, right, strict=True) if n == name]) for name in sorted(set(names))}


def _share(right: Sequence[bool]) -> dict[str, Any]:
    low, high = wilson(sum(right), len(right))
    return {"right": sum(right), "pairs": len(right), "interval_95": [round(low, 4), round(high, 4)]}


def _trained_on(pairs: Pairs) -> dict[str, Any]:
    train = [pair for pair, _ in pairs.train]
    sources = sorted({pair.source for pair in train})
    return {
        "pairs": len(train),
        "prompts": len({pair.prompt_id for pair in train}),
        "by_source": {source: sum(pair.source == source for pair in train) for source in sources},
        "pairs_sha256": sha256_json([vars(pair) for pair in train]),
    }


def _show_pairs(pairs: Pairs, found: dict[str, Any]) -> None:
    on = _trained_on(pairs)
    sources = ", ".join(f"{count} {source}" for source, count in on["by_source"].items())
    length, keywords = found["length"], found["keywords"]
    say(
        _(
            "  pairs     {pairs} of {prompts} prompts ({sources}); {held_out} held out by prompt",
            pairs=on["pairs"],
            prompts=on["prompts"],
            sources=sources,
            held_out=len(pairs.held_out),
        )
    )
    say(
        _(
            "  giveaways length alone tells {length:.2f} of them ({direction} is better), keywords {keywords:.2f}",
            length=length["accuracy"],
            direction=length["direction"],
            keywords=keywords["accuracy"],
        )
    )


def _show_judge(record: dict[str, Any], spec: str) -> None:
    held = record["held_out"]
    low, high = held["interval_95"]
    say(
        _(
            "  held out  {right} of {pairs} pairs right [{low:.2f}, {high:.2f}], {prompts} prompts",
            right=held["right"],
            pairs=held["pairs"],
            low=low,
            high=high,
            prompts=held["prompts"],
        )
    )
    say(_("Next:    {command}", command=command("tribunal", "calibrate", "--judge", spec)))
