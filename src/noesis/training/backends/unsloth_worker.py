"""Runs in Unsloth's environment, where this project is not installed: `python unsloth_worker.py JOB.json` (see unsloth.py)."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any


def main(job: dict[str, Any]) -> None:
    """Train as the job says; an adapter an epoch, a metrics line a step."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastLanguageModel  # before transformers, which it changes

    t, checkpoints, metrics = job["training"], Path(job["checkpoints"]), Path(job["metrics"])
    model, tokenizer = FastLanguageModel.from_pretrained(
        job["folder"],
        max_seq_length=job["longest"],
        dtype=torch.bfloat16,
        load_in_4bit=job["four_bits"],
        local_files_only=True,
    )
    lora = job["lora"] | {"target_modules": list(job["lora"]["target_modules"])}
    model = FastLanguageModel.get_peft_model(
        model,
        bias="none",
        random_state=t["seed"],
        use_gradient_checkpointing="unsloth" if job["recompute"] else False,
        **lora,
    )
    per_row = [len(row["input_ids"]) for row in job["rows"]]
    started = time.monotonic()

    class Recorder(TrainerCallback):  # type: ignore[misc]
        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
        ) -> None:
            if logs is None or "loss" not in logs:
                return
            tokens = round(sum(per_row) * state.epoch)
            line = {
                "step": state.global_step,
                "epoch": round(state.epoch, 4),
                "loss": logs["loss"],
                "lr": logs["learning_rate"],
            }
            line |= {
                "grad_norm": float(logs["grad_norm"]),
                "tokens": tokens,
                "tokens_per_s": round(tokens / (time.monotonic() - started), 1),
            }
            line |= {"peak_memory_bytes": torch.cuda.max_memory_allocated(), "usd": 0.0}
            metrics.parent.mkdir(parents=True, exist_ok=True)
            with open(metrics, "a", encoding="utf-8") as f:
                f.write(json.dumps(line) + "\n")
            if not math.isfinite(logs["loss"]):
                raise SystemExit(f"the loss is {logs['loss']} at step {state.global_step}")

        def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            target = checkpoints / f"epoch_{math.ceil(state.epoch - 1e-6) - 1}"
            part = target.with_name(f".{target.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            model.save_pretrained(part)
            tokenizer.save_pretrained(part)
            (part / "README.md").unlink(missing_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(part, target)

    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([row | {"attention_mask": [1] * len(row["input_ids"])} for row in job["rows"]]),
        callbacks=[Recorder()],
        args=SFTConfig(
            output_dir=str(checkpoints / "resume"),
            per_device_train_batch_size=job["batch"],
            gradient_accumulation_steps=job["accumulation"],
            warmup_steps=job["warmup_steps"],
            optim=job["optimizer"],
            data_seed=t["seed"],
            max_length=job["longest"],
            gradient_checkpointing=job["recompute"],
            bf16=True,
            logging_steps=1,
            save_steps=100,
            save_total_limit=2,
            report_to="none",
            disable_tqdm=True,
            dataset_kwargs={"skip_prepare_dataset": True},
            **t,
        ),
    )
    saved = sorted(
        (checkpoints / "resume").glob("checkpoint-*/trainer_state.json"),
        key=lambda p: int(p.parent.name.rpartition("-")[2]),
    )
    trainer.train(resume_from_checkpoint=str(saved[-1].parent) if saved else None)
    seconds, tokens = time.monotonic() - started, sum(per_row) * t["num_train_epochs"]
    answer = {
        "steps": trainer.state.global_step,
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "tokens_per_s": round(tokens / seconds, 1),
    }
    answer["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
    Path(job["answer"]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
