"""What each precision costs in accuracy: gradients on a small model, held-out loss of SmolLM2 on the project's own
examples. One NVIDIA card.

python benchmarks/gpu/quality.py gradients
    # a random Llama of 4 layers and width 1024, every precision against float32
python benchmarks/gpu/quality.py held-out
    # SmolLM2, rank 64: start and end of the held-out loss, each in its own precision
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def report(**values: Any) -> None:
    print("RESULT", json.dumps(values), flush=True)


def gradients(place: Path, device: str) -> None:
    """Relative error of all LoRA gradients together, of the median matrix, of the worst."""
    import torch
    from peft import LoraConfig
    from transformers import LlamaConfig, LlamaForCausalLM

    from noesis.llm.token_rows import IGNORED
    from noesis.planning.setup import Setup
    from noesis.training.engine.model import build
    from noesis.training.packing import rows_of_step

    torch.manual_seed(0)
    shape = {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 128,
    }
    LlamaForCausalLM(LlamaConfig(**shape, vocab_size=8192, tie_word_embeddings=False, max_position_embeddings=2048)).to(
        torch.bfloat16
    ).save_pretrained(place)
    draw = random.Random(1)
    step = []
    for _ in range(8):
        ids = [draw.randrange(3, 8000) for _ in range(draw.randrange(100, 500))]
        step.append((ids, [IGNORED] * 40 + ids[40:]))
    rows = rows_of_step(step, list(range(8)), world_size=1, rank=0, pack_length=2048, micro_batch=1)
    trained = sum(len(row.targets) for row in rows)
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=MODULES, task_type="CAUSAL_LM")

    def run(setup: Setup) -> tuple[float, dict[str, Any]]:
        model = build(place, setup, lora, device)
        same = torch.Generator().manual_seed(1)
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for name, p in sorted(parameters.items()):
            p.data.copy_((torch.randn(p.shape, generator=same) * (0.02 if "lora_A" in name else 0.01)).to(device))
        total = 0.0
        for row in rows:
            loss = model(row, torch.tensor(float(trained), device=device))
            loss.backward()
            total += float(loss.detach())
        return total, {name: p.grad for name, p in parameters.items()}

    exact = Setup("noesis", "fp32", "float32", "none", True, 2048, 8, 1, "adamw", 1)
    low = replace(exact, compute_dtype="bfloat16")
    expected, wanted = run(exact)
    own, wanted_nf4 = run(replace(exact, precision="nf4"))
    for name, setup, loss0, reference in (
        ("bf16", replace(low, precision="bf16"), expected, wanted),
        ("fp8", replace(low, precision="fp8"), expected, wanted),
        ("nf4 against its own weights in float32", replace(low, precision="nf4"), own, wanted_nf4),
        ("nf4 against float32", replace(low, precision="nf4"), expected, wanted),
    ):
        loss, got = run(setup)
        each = sorted(float((got[n] - reference[n]).norm() / reference[n].norm()) for n in reference)
        whole = sum(float((got[n] - reference[n]).norm()) ** 2 for n in reference) / sum(
            float(reference[n].norm()) ** 2 for n in reference
        )
        report(
            mode="gradients",
            name=name,
            loss=loss,
            reference_loss=loss0,
            total=whole**0.5,
            median=each[len(each) // 2],
            worst=each[-1],
        )


def held_out(place: Path) -> None:
    """The project's examples, one in ten held out; start and end are measured in the precision that is trained in."""
    import torch
    from transformers import AutoTokenizer, PrinterCallback

    from noesis.constitution.document import load_constitution
    from noesis.core.config import SaveEvery, load_config
    from noesis.core.device import detect
    from noesis.core.project import Project
    from noesis.dataset.encode import training_rows
    from noesis.dataset.load import read_hand_written
    from noesis.llm.hub import find_model
    from noesis.llm.row_encoder import open_encoder
    from noesis.planning.draft import draft_plan
    from noesis.planning.model_shapes import read_shape
    from noesis.planning.setup import Setup
    from noesis.training.backends.run_trainer import TrainerParts
    from noesis.training.backends.sft_trainer import build_sft_trainer
    from noesis.training.job import TrainingSet, TrainJob, count_workload
    from noesis.training.packing import pack
    from noesis.training.recorder import Metrics, recorder
    from noesis.training.state.save_schedule import SaveSchedule

    folder, project, device = find_model("smollm2").path, Project(ROOT), detect()
    constitution = load_constitution(project.constitution)

    def loss(engine: Any, rows: list[Any]) -> float:
        engine.training = False
        engine.begin_step()
        total, count = 0.0, 0
        with torch.no_grad():
            for i in range(0, len(rows), 4):
                row = pack([(r.input_ids, r.labels) for r in rows[i : i + 4]], [0] * 4)
                total += float(engine.loss(row, torch.tensor(1.0, device=engine.device)))
                count += len(row.targets)
        engine.training = True
        engine.begin_step()
        return total / count

    for language, epochs, rate in (("en", 1, 1e-3), ("pt", 3, 2e-4)):
        examples = read_hand_written(project, language)
        held_out = examples[4::10][:13]
        parts = ([e for e in examples if e not in held_out], held_out)
        rows, scored = (
            training_rows(p, open_encoder(folder), constitution, include_critique=False, max_length=2048) for p in parts
        )
        for precision, compute in (
            ("fp32", "float32"),
            ("bf16", "bfloat16"),
            ("fp8", "bfloat16"),
            ("nf4", "bfloat16"),
            ("nf4", "float32"),
        ):
            shutil.rmtree(place, ignore_errors=True)
            changes = {
                "training.num_train_epochs": epochs,
                "training.learning_rate": rate,
                "training.precision": precision,
            }
            config = load_config(project, changes | {"lora.quantization.load_in_4bit": precision == "nf4"})
            plan = draft_plan(config, "smollm2", read_shape(folder), count_workload(rows), device)
            setup = Setup("noesis", precision, compute, "none", True, 4096, 8, 1, "adamw", 1)  # type: ignore[arg-type]
            plan = replace(plan, setup=setup, sharded=False)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            data, checkpoints = TrainingSet(rows), place / "checkpoints"
            job = TrainJob(folder, data, config, plan, device, checkpoints, place / "metrics.jsonl")
            lines = Metrics(job.metrics, plan, device, data.tokens)
            callback = recorder(checkpoints, lines, tokenizer)
            trainer = build_sft_trainer(job, TrainerParts(tokenizer, callback, lines))
            trainer.schedule = SaveSchedule(
                SaveEvery(steps=10**9), on_gpu=True, step_seconds=1.0, state_bytes=1e9, steps=plan.steps
            )
            trainer.remove_callback(PrinterCallback)
            callback.trainer, trainer.sync_metrics = trainer, lines.sync
            start = loss(trainer.model.engine, scored)
            trainer.train()
            end = loss(trainer.model.engine, scored)
            report(
                mode="held-out",
                language=language,
                epochs=epochs,
                learning_rate=rate,
                precision=precision,
                compute=compute,
                start=round(start, 4),
                end=round(end, 4),
                gain=round(start - end, 4),
            )


def main() -> None:
    import torch

    with tempfile.TemporaryDirectory() as place:
        if sys.argv[1:] == ["gradients"]:
            gradients(Path(place), "cuda" if torch.cuda.is_available() else "cpu")
        elif sys.argv[1:] == ["held-out"]:
            held_out(Path(place) / "run")
        else:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
