"""Reward models of one's own: trained on the project's pairs, measured on the judge benchmark.

python benchmarks/judges/judge_training.py --model smollm2 --out WORK [--methods probe lora] [--locked]
    # each method in a copy of the project under WORK, so that nothing of this checkout changes; WORK/MODEL.json
python benchmarks/judges/judge_training.py --model smollm2 --out WORK --ship smollm2-probe
    # a head on the frozen base, put into data/tribunal/judges/, and its calibrations of both halves

python benchmarks/judges/judge_training.py --out WORK --words 80 200
    # what a bag of words, trained on the same pairs, has right of the dev half, with that many planted pairs; no model

Run it for two models in turn: WORK keeps them apart. `--locked` uses the locked half: once, when nothing is tuned any
more. Of a probe it also says how many dev pairs of each attack it gets right when no planted fault of that kind was
trained on (`without_kind`): what it knows of a fault that it has never seen.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from noesis.core.config import Config, load_config
from noesis.core.project import Project
from noesis.tribunal.calibration_store import Calibration

ROOT = Path(__file__).resolve().parents[2]
CLAIMS = ("certainty_inflated", "negated_claim", "reversed_conclusion", "opposite_word", "number_changed")
PLANTED_AS = {  # attack of the benchmark → the planted kinds that resemble it; the others have none
    "sycophantic": ("user_flattered",),
    "judge_flattery": ("judge_flattered",),
    "prompt_injection": ("judge_instructed",),
    "over_hedged": ("hedge_flood",),
    "verbose_empty": ("empty_words",),
    "confident_false": CLAIMS,
    "reversed_conclusion": CLAIMS,
    "arithmetic_slip": ("arithmetic_slip", "number_changed"),
    "false_balance": ("false_balance",),
    "fabricated_citation": ("invented_citation",),
    "needless_refusal": ("refused",),
    "off_topic": ("off_topic",),
    "wrong_language": ("language_switched",),
    "keyword_stuffed": ("keyword_stuffed",),
}


def configured(project: Project, options: argparse.Namespace, method: str) -> Config:
    from noesis.core.overrides import JudgeOverrides

    changes = JudgeOverrides(model=options.model, method=method, max_planted=options.max_planted, epochs=options.epochs)
    return changes.configure(project)


def measure(project: Project, judge: str, part: str) -> Calibration:
    from noesis.tribunal.calibration.calibrate import calibrate

    section = load_config(project).training.tribunal
    (found,) = calibrate(project, section, [judge], "locked" if part == "locked" else "dev")
    return found


def figures(found: Calibration) -> dict[str, Any]:
    """What the tables show of a calibration."""
    names = ("accuracy", "interval_95", "pairs", "fit", "baselines")
    details = ("by_attack", "by_language", "by_date", "length", "invariance", "auroc", "brier", "scale")
    whole = found.to_json()
    return {name: whole[name] for name in (*names, *details) if name in whole}


def without_kind(project: Project, config: Config, work: Path) -> dict[str, Any]:
    """Dev pairs right by attack, by heads that were trained without the planted kinds that resemble it."""
    import numpy as np
    from safetensors.numpy import load_file

    from noesis.core.jsonl import read_objects
    from noesis.llm.hub import find_base
    from noesis.pipeline.train_judge.train import layers_of, read_pairs
    from noesis.training.reward.probe import fit_probe
    from noesis.training.reward.states import frozen_model
    from noesis.tribunal.suite import read_benchmark

    section, base = config.training.judge_training, find_base(config.training.model)
    pairs, (dev, _) = read_pairs(project, config, base), read_benchmark(project.tribunal, "dev")
    assert len(pairs.texts) == sum(1 for _ in read_objects(work / "pairs.jsonl"))
    states = np.concatenate([load_file(file)["states"] for file in sorted((work / "states").iterdir())])
    trained = (states[0::2] - states[1::2]).astype(np.float64)
    model = frozen_model(base.path, pool=section.pool, layers=layers_of(base, section.depth))
    asked = [([{"role": "user", "content": p.prompt}], answer) for p in dev for answer in (p.good, p.bad)]
    of_dev = model.pooled(asked).numpy().astype(np.float64)
    differences = of_dev[0::2] - of_dev[1::2]
    kinds, count = np.array([pair.kind for pair in pairs.texts]), len(pairs.train)
    held_out = np.arange(len(kinds)) >= count
    found: dict[str, Any] = {}
    for attack in sorted({pair.attack for pair in dev}):
        kept = ~np.isin(kinds, PLANTED_AS.get(attack, ()))
        train, apart = trained[kept & ~held_out], trained[kept & held_out]
        probe = fit_probe(train, apart, np.ones(len(train)), np.ones(len(apart)))
        rows = np.array([pair.attack == attack for pair in dev])
        found[attack] = [int((differences[rows] @ probe.weight > 0).sum()), int(rows.sum())]
    right, of = (sum(counts[i] for counts in found.values()) for i in (0, 1))
    return {"right": right, "of": of, "by_attack": found}


def words(options: argparse.Namespace) -> None:
    """The baseline of a trained judge, for each number of planted pairs in `options.words`."""
    import numpy as np

    from noesis.llm.hub import find_base
    from noesis.pipeline.train_judge.train import fit_words, read_pairs
    from noesis.tribunal.reward.words import word_presence
    from noesis.tribunal.suite import read_benchmark

    project, base = Project(ROOT), find_base("smollm2")
    dev, _ = read_benchmark(project.tribunal, "dev")
    for count in options.words:
        options.max_planted = count
        pairs = read_pairs(project, configured(project, options, "probe"), base)
        probe = fit_words(pairs)
        better, worse = (
            word_presence([getattr(pair, side) for pair in dev]) @ probe.weight for side in ("good", "bad")
        )
        right, first = better > worse, np.array([not pair.since for pair in dev])
        print(
            f"{len(pairs.train)} pairs ({options.max_planted} planted): {right.sum()} of {len(dev)} dev pairs right, "
            f"{right[first].sum()} of the first {first.sum()}; held-out prompts {probe.accuracy:.2f} of "
            f"{len(pairs.held_out)} pairs",
            flush=True,
        )


def train(project: Project, options: argparse.Namespace, method: str, name: str | None = None) -> dict[str, Any]:
    """A trained judge, measured; its folder is `options.out`/MODEL-METHOD/judge."""
    from noesis.pipeline.train_judge.train import train_judge

    config = configured(project, options, method)
    work = options.out / f"{Path(options.model).stem.lower()}-{method}"
    started = time.monotonic()
    record = train_judge(project, config, work, name=name)
    found = {"record": record, "seconds": round(time.monotonic() - started, 1)}
    if method == "probe":
        found["without_kind"] = without_kind(project, config, work)
        print("without the kind:", json.dumps(found["without_kind"]))
    return found


def spec(folder: Path, model: str) -> str:
    return f"reward:{folder}" + (f"@{model}" if Path(model).exists() else "")


def compare(options: argparse.Namespace) -> None:
    project = Project(options.out / "project")
    if not project.data.exists():
        shutil.copytree(ROOT / "data", project.data)
    name = Path(options.model).stem.lower()
    results: dict[str, Any] = {}
    for method in options.methods:
        found = results[method] = train(project, options, method)
        judge = spec(options.out / f"{name}-{method}" / "judge", options.model)
        for part in ("dev", *(["locked"] if options.locked else [])):
            started = time.monotonic()
            found[part] = figures(measure(project, judge, part))
            found[part]["seconds"] = round(time.monotonic() - started, 1)
            low, high = found[part]["interval_95"]
            print(f"{name} {method} {part}: {found[part]['accuracy']} [{low}, {high}] of {found[part]['pairs']}")
        (options.out / f"{name}.json").write_text(json.dumps(results, indent=1, ensure_ascii=False), encoding="utf-8")


def ship(options: argparse.Namespace) -> None:
    """Into this checkout, and the same files flat in `options.out`/ship, to be carried home from another machine."""
    project = Project(ROOT)
    train(project, options, "probe", options.ship)
    target, carried = project.tribunal / "judges" / options.ship, options.out / "ship"
    shutil.copytree(options.out / f"{Path(options.model).stem.lower()}-probe" / "judge", target)
    shutil.copytree(target, carried)
    before = set(project.calibrations.iterdir())
    for part in ("dev", "locked"):
        measure(project, f"reward:{target}", part)
    for file in sorted(set(project.calibrations.iterdir()) - before):
        shutil.copy(file, carried)
    print(f"commit {target.relative_to(ROOT)} and what is new in {project.calibrations.relative_to(ROOT)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=["probe"], choices=["probe", "lora"])
    parser.add_argument("--max-planted", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--locked", action="store_true")
    parser.add_argument("--ship", metavar="NAME")
    parser.add_argument("--words", type=int, nargs="+", metavar="N")
    options = parser.parse_args()
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    (words if options.words else ship if options.ship else compare)(options)


if __name__ == "__main__":
    main()
