"""SFT, DPO, SFT+DPO and what is meant to forget less, three seeds each: what they win, and what they break.

python benchmarks/preference.py split
    # writes each seed's split to WORK/splits, so that `run` needs torch's packages only
python benchmarks/preference.py run [--device cuda] [--model PATH] [--arms sft,distill]
    # trains and measures what WORK/results.jsonl does not hold yet; a run that was cut goes on
python benchmarks/preference.py table [FILE …]
    # the README's tables, and what the rule of decision 0046 says

On the English examples, 111 to train on and 13 held out; each seed holds out another 13, so that three seeds judge by
39. Measured of each model, by transformers' own layers on the base as it was trained against: how often it finds the
revised answer likelier a token than the initial one (preference), by how much (margin), its loss a token on the revised
answers, each also with the hand-written critique before both answers (`block`); the English small tasks of
data/tribunal/kept, kept, lost and gained; `drift`, KL(base ‖ tuned) on the base's own short answers to them; and a few
greedy answers, for a person to read.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from noesis.dataset.schema import Dataset, Example
from parts.forgetting import ARMS, DEFAULT_ARMS, training_set_of
from parts.preference_measure import Measure, summary
from parts.preference_table import read, table

ROOT = Path(__file__).resolve().parents[1]
BASE = "base"


def configured(options: argparse.Namespace, seed: int, arm: str) -> Any:
    """The settings of an arm; the base's are those of `sft`."""
    from noesis.core.config import load_config
    from noesis.core.project import Project

    common: dict[str, Any] = {
        "training.method": "sft",
        "training.seed": seed,
        "training.data.language": "en",
        "training.precision": "bf16",
        "training.num_train_epochs": options.epochs,
        "training.learning_rate": options.rate,
        "training.dpo.epochs": options.dpo_epochs,
        "lora.r": options.r,
        "lora.lora_alpha": 2 * options.r,
        "lora.quantization.load_in_4bit": False,
    }
    return load_config(Project(ROOT), common | ARMS.get(arm, {}))


def split_of(options: argparse.Namespace, seed: int) -> Dataset:
    """The examples of a seed, its own 13 of them held out."""
    from noesis.constitution.document import load_constitution
    from noesis.core.project import Project

    file = options.work / "splits" / f"{seed}.json"
    if not file.is_file():
        from noesis.dataset.load import split_sources

        project = Project(ROOT)
        constitution = load_constitution(project.constitution)
        parts = split_sources(project.sources("en"), constitution, configured(options, seed, BASE))
        both = [[e.to_json() for e in part] for part in (parts.train, parts.held_out)]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(both, ensure_ascii=False), encoding="utf-8")
    train, held_out = json.loads(file.read_text(encoding="utf-8"))
    limit = options.limit
    return Dataset(
        tuple(Example.from_json(e) for e in train[:limit]), tuple(Example.from_json(e) for e in held_out[:limit])
    )


def device_of(options: argparse.Namespace) -> Any:
    from noesis.core.device import detect

    found = detect()
    if options.device is not None and found.kind != options.device:
        raise SystemExit(f"--device {options.device}: this machine has {found.name}")
    return replace(found, gpus=min(found.gpus, 1))


def train_arm(
    options: argparse.Namespace,
    folder: Path,
    device: Any,
    place: Path,
    dataset: Dataset,
    config: Any,
    write: Callable[[list[Any], int], list[str]],
) -> tuple[Path, dict[str, Any]]:
    """Train as the product does; the last epoch's folder and training's figures."""
    from noesis.constitution.document import load_constitution
    from noesis.core.project import Project
    from noesis.llm.row_encoder import open_encoder
    from noesis.planning.by_method import plan_of
    from noesis.planning.model_shapes import read_shape
    from noesis.training.job import TrainJob
    from noesis.training.methods import train_run

    shutil.rmtree(place, ignore_errors=True)
    constitution = load_constitution(Project(ROOT).constitution)
    data, work = training_set_of(config, dataset, open_encoder(folder), constitution, write)
    plan = plan_of(config, options.model, read_shape(folder), work, device)
    result = train_run(TrainJob(folder, data, config, plan, device, place, place / "metrics.jsonl")).to_json()
    for states in (place / "resume", place / "sft" / "resume"):
        shutil.rmtree(states, ignore_errors=True)
    keep = ("steps", "tokens", "seconds", "tokens_per_s", "first_loss", "final_loss", "peak_memory_bytes", "held_out")
    figures = {key: result[key] for key in keep if key in result}
    if "sft" in result:
        figures["seconds"] = round(figures["seconds"] + result["sft"]["seconds"], 2)
    return place / f"epoch_{plan.epochs - 1}", figures


def run(options: argparse.Namespace) -> None:
    from noesis.llm.hub import find_model

    folder, device = find_model(options.model).path, device_of(options)
    options.work.mkdir(parents=True, exist_ok=True)
    file = options.work / "results.jsonl"
    measure = Measure(folder, configured(options, 0, BASE), device, kept=options.kept, answers=options.answers)
    known = {(line["arm"], line["seed"], line["settings"]): line for line in read(file)}
    bases: dict[int, dict[str, Any]] = {}
    for arm in (BASE, *options.arms):  # arm by arm: what a cut call leaves can be compared
        for seed in options.seeds:
            dataset, config = split_of(options, seed), configured(options, seed, arm)
            settings = settings_of(options, config, arm, measure)
            line = known.get((arm, seed, settings))
            if line is None:
                adapter, figures = None, {}
                if arm != BASE:
                    place = options.work / "runs" / f"{arm.replace(' ', '_')}-{seed}"
                    adapter, figures = train_arm(options, folder, device, place, dataset, config, measure.own_answers)
                line = {"arm": arm, "seed": seed, "settings": settings, "device": device.name, "versions": versions()}
                line |= {"training": figures, **measure.of(adapter, list(dataset.held_out))}
                with open(file, "a", encoding="utf-8") as f:
                    f.write(json.dumps(line, ensure_ascii=False) + "\n")
                print(f"DONE {arm} seed {seed}: {summary(line, bases.get(seed, line))}", flush=True)
            if arm == BASE:
                bases[seed] = line


def settings_of(options: argparse.Namespace, config: Any, arm: str, measure: Measure) -> str:
    """What a stored result must have been made with to stand for one of this run."""
    from noesis.core.files import sha256_json
    from noesis.tribunal.kept.items import items_digest

    measured = [options.model, options.limit, items_digest(measure.items)]
    return sha256_json([*measured, None if arm == BASE else config.model_dump(mode="json")])[:16]


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in ("torch", "transformers", "peft")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("split", "run", "table"))
    parser.add_argument("files", nargs="*", type=Path, help="table: results files; default: WORK/results.jsonl")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / ".preference")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--model", default="smollm2", help="a name, or a folder with safetensors")
    parser.add_argument("--arms", type=lambda s: s.split(","), default=list(DEFAULT_ARMS), help=", ".join(ARMS))
    parser.add_argument("--seeds", type=lambda s: [int(x) for x in s.split(",")], default=[0, 1, 2])
    parser.add_argument("--r", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=1e-3, help="as in the demo: a model this small wants larger ones")
    parser.add_argument("--dpo-epochs", type=int, default=2)
    parser.add_argument("--limit", type=int, help="this many examples only, to try it out")
    parser.add_argument("--kept", type=int, default=228, help="small tasks")
    parser.add_argument("--answers", type=int, default=4, help="held-out prompts to answer")
    options = parser.parse_args()
    if unknown := [arm for arm in options.arms if arm not in ARMS]:
        parser.error(f"--arms {unknown[0]}: known are {', '.join(ARMS)}")
    if options.what == "split":
        for seed in options.seeds:
            parts = split_of(options, seed)
            print(seed, len(parts.train), len(parts.held_out))
    elif options.what == "run":
        run(options)
    else:
        table(options.files or [options.work / "results.jsonl"])


if __name__ == "__main__":
    main()
