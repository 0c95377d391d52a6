"""SFT, DPO, SFT+DPO and what is meant to forget less, three seeds each: SmolLM2 on the English examples, 111 to train
on and 13 held out; the first three with and without the critique.

python benchmarks/preference.py split
    # writes each seed's split to WORK/splits, so that `run` needs torch's packages only
python benchmarks/preference.py run [--device cuda]
    # trains and measures what WORK/results.jsonl does not hold yet
python benchmarks/preference.py run --methods sft,less       # only `sft` and the arms that are to forget less
python benchmarks/preference.py table                        # the table, with paired intervals

Each seed holds out another 13 examples, so that three seeds judge by 39. Measured of each model, in bfloat16, by
transformers' own layers: how often it finds the revised answer likelier a token than the initial one (preference), by
how much (margin), its loss a token on the revised answers, each also with the hand-written critique before both
answers (`block`); the same on DPO's rewards against the base; `drift`, its loss on the base model's own answers to the
Tribunal's English dev prompts minus the base's; and its own answers to those.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from noesis.dataset.schema import Dataset, Example
from parts.forgetting import LESS, training_set_of
from parts.preference_table import read, summary, table

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("sft", "dpo", "sft+dpo", "less")  # less: the arms of parts/forgetting.py
WITH_RATES = ("dpo", "sft+dpo")
Records = list[Example]


def configured(
    options: argparse.Namespace,
    seed: int,
    *,
    method: str,
    critique: bool,
    rate: float | None = None,
    more: dict[str, Any] | None = None,
) -> Any:
    from noesis.core.config import load_config
    from noesis.core.project import Project

    changes: dict[str, Any] = {
        "training.method": method,
        "training.seed": seed,
        "training.data.language": "en",
        "training.constitutional_ai.include_critique": critique,
        "training.precision": "bf16",
        "training.num_train_epochs": options.sft_epochs,
        "training.learning_rate": options.sft_rate,
        "training.dpo.epochs": options.dpo_epochs,
        "training.dpo.learning_rate": rate,
        "training.dpo.reference": options.reference,
        "training.dpo.nll_weight": options.nll_weight,
        "lora.r": options.r,
        "lora.lora_alpha": 2 * options.r,
        "lora.quantization.load_in_4bit": False,
    }
    return load_config(Project(ROOT), changes | (more or {}))


def split_of(options: argparse.Namespace, seed: int) -> tuple[Records, Records]:
    """(train, held out) of a seed."""
    from noesis.constitution.document import load_constitution
    from noesis.core.project import Project

    file = options.work / "splits" / f"{seed}.json"
    if not file.is_file():
        from noesis.dataset.load import split_sources

        project = Project(ROOT)
        parts = split_sources(
            project.sources("en"),
            load_constitution(project.constitution),
            configured(options, seed, method="sft", critique=False),
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            json.dumps([[e.to_json() for e in p] for p in (parts.train, parts.held_out)], ensure_ascii=False),
            encoding="utf-8",
        )
    train, held_out = json.loads(file.read_text(encoding="utf-8"))
    return [Example.from_json(e) for e in train[: options.limit]], [
        Example.from_json(e) for e in held_out[: options.limit]
    ]


def device_of(options: argparse.Namespace) -> Any:
    from noesis.core.device import detect

    found = detect()
    if options.device is not None and found.kind != options.device:
        raise SystemExit(f"--device {options.device}: this machine has {found.name}")
    return replace(found, gpus=min(found.gpus, 1))


class Measure:
    """The base in main memory or on the card, and what is measured of it with an adapter."""

    def __init__(self, options: argparse.Namespace, folder: Path, device: Any) -> None:
        from noesis.constitution.document import load_constitution
        from noesis.core.project import Project
        from noesis.llm.tokenizer import load_tokenizer
        from noesis.training.base_model import load_base
        from noesis.tribunal.suite import read_suite

        self.options, self.folder, self.device = options, folder, device
        self.config = configured(options, 0, method="sft", critique=False)
        self.base = load_base(folder, self.config, device, longest=2048).eval()
        self.tokenizer = load_tokenizer(folder)
        self.constitution = load_constitution(Project(ROOT).constitution)
        items = [item for item in read_suite(ROOT / "data" / "tribunal") if item.language == "en"][: options.answers]
        self.asked = [{"id": item.id, "language": "en", "prompt": item.messages[0]} for item in items]
        self.own: list[str] = []  # the base's answers

    def of(self, adapter: Path | None, held_out: Records) -> dict[str, Any]:
        """Everything of one model; None: the base."""
        from peft import PeftModel

        started = time.monotonic()
        model = copy.deepcopy(self.base)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter, use_safetensors=True).eval()
        found: dict[str, Any] = {"examples": self._pairs(model, held_out)}
        if self.asked:
            if adapter is not None:
                found["drift"] = self._losses(
                    model, [r | {"answer": a} for r, a in zip(self.asked, self.own, strict=True) if a.strip()]
                )
                model = model.merge_and_unload()
            found["answers"] = dict(zip((r["id"] for r in self.asked), self.answers(model), strict=True))
        return found | {"measure_seconds": round(time.monotonic() - started, 1)}

    def _pairs(self, model: Any, held_out: Records) -> list[dict[str, Any]]:
        from noesis.dataset.encode import example_pairs
        from noesis.llm.row_encoder import RowEncoder

        found: list[dict[str, Any]] = [{"id": example.id} for example in held_out]
        for name, critique in (("plain", False), ("block", True)):
            pairs = example_pairs(
                held_out, RowEncoder(self.tokenizer), self.constitution, include_critique=critique, max_length=4096
            )
            scores = self._scores(model, [row for pair in pairs for row in (pair.chosen, pair.rejected)])
            for line, chosen, rejected in zip(found, scores[::2], scores[1::2], strict=True):
                line[name] = [*chosen, *rejected]  # sums of log-probabilities and tokens
        return found

    def _losses(self, model: Any, records: list[dict[str, Any]]) -> dict[str, list[float]]:
        from noesis.constitution.dialogue import opening_messages
        from noesis.llm.chat_template import encode

        rows = [
            encode(self.tokenizer, opening_messages(self.constitution, "en", r["prompt"]), r["answer"], name=r["id"])
            for r in records
        ]
        return {r["id"]: list(score) for r, score in zip(records, self._scores(model, rows), strict=True)}

    def own_answers(self) -> dict[str, list[float]]:
        """The base's own answers, and how likely it finds them."""
        self.own = self.answers(self.base)
        return self._losses(
            self.base, [r | {"answer": a} for r, a in zip(self.asked, self.own, strict=True) if a.strip()]
        )

    def _scores(self, model: Any, rows: list[Any]) -> list[tuple[float, int]]:
        from noesis.training.likelihood import log_likelihoods

        return log_likelihoods(model, rows, self.config, self.device, adapter=True, what="score")

    def answers(self, model: Any) -> list[str]:
        """Greedy, all prompts in one batch."""
        import torch

        from noesis.constitution.dialogue import opening_messages
        from noesis.llm.chat_template import end_of_turn, render

        stop = end_of_turn(self.tokenizer)
        prompts = [
            self.tokenizer(
                render(
                    self.tokenizer, opening_messages(self.constitution, "en", r["prompt"]), add_generation_prompt=True
                ),
                add_special_tokens=False,
            )["input_ids"]
            for r in self.asked
        ]
        longest = max(map(len, prompts))
        ids = torch.tensor([[stop] * (longest - len(p)) + p for p in prompts], device=model.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=self.options.answer_tokens,
                do_sample=False,
                eos_token_id=stop,
                pad_token_id=stop,
            )
        texts = []
        for row in out[:, longest:].tolist():
            texts.append(self.tokenizer.decode(row[: row.index(stop)] if stop in row else row).strip())
        return texts


def train_cell(
    options: argparse.Namespace,
    folder: Path,
    device: Any,
    place: Path,
    train: Records,
    held_out: Records,
    config: Any,
    start: Path | None,
    base: Any = None,
) -> Any:
    """Train by SFT, or by DPO from `start`; the adapter's folder and training's figures."""
    from noesis.constitution.document import load_constitution
    from noesis.core.project import Project
    from noesis.dataset.encode import example_pairs, training_rows
    from noesis.llm.row_encoder import open_encoder
    from noesis.planning.by_method import plan_of, preference_plan
    from noesis.planning.draft import make_plan
    from noesis.planning.model_shapes import read_shape
    from noesis.training.job import PreferencePairs, TrainingSet, TrainJob
    from noesis.training.trainer import train as train_adapter

    shutil.rmtree(place, ignore_errors=True)
    constitution, encoder = load_constitution(Project(ROOT).constitution), open_encoder(folder)
    how = {"include_critique": config.training.constitutional_ai.include_critique, "max_length": 4096}
    shape = read_shape(folder)
    if base is not None:
        parts = Dataset(tuple(train), tuple(held_out))
        data, work = training_set_of(config, parts, encoder, constitution, base)
        plan = plan_of(config, options.model, shape, work, device)
    elif config.training.method == "sft":
        data = TrainingSet(rows=training_rows(train, encoder, constitution, **how))
        plan = make_plan(config, options.model, shape, data.workloads.last, device)
    else:
        parts = (example_pairs(part, encoder, constitution, **how) for part in (train, held_out))
        data = TrainingSet(pairs=PreferencePairs(*parts))
        plan = preference_plan(config, options.model, shape, data.pairs.work, device)
    job = TrainJob(folder, data, config, plan, device, place, place / "metrics.jsonl", parent=start)
    result = train_adapter(job).to_json()
    shutil.rmtree(place / "resume", ignore_errors=True)
    keep = ("steps", "tokens", "seconds", "tokens_per_s", "first_loss", "final_loss", "peak_memory_bytes", "held_out")
    return place / f"epoch_{plan.epochs - 1}", {key: result[key] for key in keep if key in result}


def run(options: argparse.Namespace) -> None:
    from noesis.llm.hub import find_model

    folder, device = find_model(options.model).path, device_of(options)
    options.work.mkdir(parents=True, exist_ok=True)
    file = options.work / "results.jsonl"
    done = {(line["arm"], line["seed"], line["settings"]) for line in read(file)}
    measure = Measure(options, folder, device)
    own = measure.own_answers() if measure.asked else {}
    for seed in options.seeds:
        train, held_out = split_of(options, seed)
        tasks: list[tuple[str, str, bool, float | None]] = [("base", "base", False, None)]
        for critique in (False, True):
            mark = " critique" if critique else ""
            tasks += [(f"sft{mark}", "sft", critique, None)]
            tasks += [
                (f"{method}{mark} {rate:g}", method, critique, rate)
                for rate in options.dpo_rates
                for method in WITH_RATES
            ]
        tasks += [(arm, "less", False, None) for arm in LESS]
        for arm, method, critique, rate in tasks:
            settings = settings_of(options, arm, method)
            if (arm, seed, settings) in done or (method != "base" and method not in options.methods):
                continue
            adapter, figures = None, {}
            if method != "base":
                start = (
                    sft_adapter(options, folder, device, seed, critique, train, held_out)
                    if method == "sft+dpo"
                    else None
                )
                place = options.work / "runs" / f"{arm.replace(' ', '_')}-{seed}"
                own = {"sft+dpo": "dpo", "less": "sft"}.get(method, method)
                more, base = (LESS[arm], measure.base) if method == "less" else (None, None)
                config = configured(options, seed, method=own, critique=critique, rate=rate, more=more)
                adapter, figures = train_cell(options, folder, device, place, train, held_out, config, start, base)
            line = {
                "arm": arm,
                "method": method,
                "critique": critique,
                "rate": rate,
                "seed": seed,
                "settings": settings,
                "device": device.name,
            }
            line |= {"training": figures, **measure.of(adapter, held_out)}
            if method == "base":
                line["drift"] = own
            with open(file, "a", encoding="utf-8") as f:
                f.write(json.dumps(line, ensure_ascii=False) + "\n")
            print(f"DONE {arm} seed {seed}: {summary(line)}", flush=True)


def sft_adapter(
    options: argparse.Namespace, folder: Path, device: Any, seed: int, critique: bool, train: Records, held_out: Records
) -> Path:
    """Of the same seed; trained again where a partial run did not leave it on this machine."""
    place = options.work / "runs" / f"sft{'_critique' if critique else ''}-{seed}"
    adapter = place / f"epoch_{options.sft_epochs - 1}"
    if (adapter / "adapter_model.safetensors").is_file():
        return adapter
    config = configured(options, seed, method="sft", critique=critique)
    return Path(train_cell(options, folder, device, place, train, held_out, config, None)[0])


def settings_of(options: argparse.Namespace, arm: str, method: str) -> str:
    """What a stored result must have been made with to stand for one of this run."""
    common = [options.model, options.limit, options.answers, options.answer_tokens]
    sft = [options.r, options.sft_epochs, options.sft_rate]
    dpo = [options.dpo_epochs, options.nll_weight, options.reference]
    of_method = {"base": common, "sft": common + sft, "dpo": [*common, options.r, *dpo], "sft+dpo": common + sft + dpo}
    return json.dumps(of_method[method] if method != "less" else common + sft + [LESS[arm]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("split", "run", "table"))
    parser.add_argument("files", nargs="*", type=Path, help="table: results files; default: WORK/results.jsonl")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / ".preference")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--methods", type=lambda s: s.split(","), default=list(METHODS))
    parser.add_argument("--seeds", type=lambda s: [int(x) for x in s.split(",")], default=[0, 1, 2])
    parser.add_argument("--r", type=int, default=64)
    parser.add_argument("--sft-epochs", type=int, default=3)
    parser.add_argument(
        "--sft-rate", type=float, default=1e-3, help="as in the demo: a model this small wants larger ones"
    )
    parser.add_argument("--dpo-epochs", type=int, default=2)
    parser.add_argument("--dpo-rates", type=lambda s: [float(x) for x in s.split(",")], default=[5e-5])
    parser.add_argument("--nll-weight", type=float, default=0.1)
    parser.add_argument("--reference", choices=("start", "base"), default="start")
    parser.add_argument("--limit", type=int, help="this many examples only, to try it out")
    parser.add_argument(
        "--answers", type=int, default=30, help="prompts of the Tribunal to answer; 0: none, and no drift"
    )
    parser.add_argument("--answer-tokens", type=int, default=256)
    options = parser.parse_args()
    if options.what == "split":
        for seed in options.seeds:
            print(seed, *(len(part) for part in split_of(options, seed)))
    elif options.what == "run":
        run(options)
    else:
        table(options)


if __name__ == "__main__":
    main()
