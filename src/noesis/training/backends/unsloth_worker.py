"""Runs in Unsloth's environment, without this project: `python unsloth_worker.py JOB.json` (see unsloth.py).

The file holds `job` (`TrainJob.to_json`), `trl` (`trl_arguments.shared_arguments`) and `result`, the file to write the
figures to.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any


def main(message: dict[str, Any]) -> None:
    """Train the job: an adapter an epoch, a metrics line a step."""
    from unsloth import FastLanguageModel  # isort: skip  # before the libraries that it changes

    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    job, trl = message["job"], message["trl"]
    plan, setup, lora, rows = job["plan"], job["plan"]["setup"], job["config"]["lora"], job["data"]["rows"]
    checkpoints, metrics = Path(job["checkpoints"]), Path(job["metrics"])
    recompute = setup["gradient_checkpointing"] != "none"
    model, tokenizer = FastLanguageModel.from_pretrained(
        job["model_folder"],
        max_seq_length=plan["longest_row"],
        dtype=torch.bfloat16,
        load_in_4bit=setup["precision"] == "nf4",
        local_files_only=True,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        bias="none",
        random_state=trl["seed"],
        use_gradient_checkpointing="unsloth" if recompute else False,
        **{name: lora[name] for name in ("r", "lora_alpha", "lora_dropout", "target_modules")},
    )
    tokens_per_epoch = sum(len(row["input_ids"]) for row in rows)
    started = time.monotonic()

    class Recorder(TrainerCallback):  # type: ignore[misc]
        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
        ) -> None:
            if logs is None or "loss" not in logs:
                return
            tokens = round(tokens_per_epoch * state.epoch)
            line = {
                "step": state.global_step,
                "epoch": round(state.epoch, 4),
                "loss": logs["loss"],
                "lr": logs["learning_rate"],
                "grad_norm": float(logs["grad_norm"]),
                "tokens": tokens,
                "tokens_per_s": round(tokens / (time.monotonic() - started), 1),
                "peak_memory_bytes": torch.cuda.max_memory_allocated(),
                "usd": 0.0,
            }
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
        train_dataset=Dataset.from_list(
            [
                {"input_ids": row["input_ids"], "labels": row["labels"], "attention_mask": [1] * len(row["input_ids"])}
                for row in rows
            ]
        ),
        callbacks=[Recorder()],
        args=SFTConfig(
            output_dir=str(checkpoints / "resume"),
            per_device_train_batch_size=setup["micro_batch"],
            gradient_accumulation_steps=max(1, setup["sequences_per_step"] // setup["micro_batch"]),
            max_length=plan["longest_row"],
            gradient_checkpointing=recompute,
            bf16=True,
            logging_steps=1,
            save_steps=100,
            save_total_limit=2,
            report_to="none",
            disable_tqdm=True,
            dataset_kwargs={"skip_prepare_dataset": True},
            **trl,
        ),
    )
    saved = sorted(
        (checkpoints / "resume").glob("checkpoint-*/trainer_state.json"),
        key=lambda p: int(p.parent.name.rpartition("-")[2]),
    )
    trainer.train(resume_from_checkpoint=str(saved[-1].parent) if saved else None)
    seconds, tokens = time.monotonic() - started, tokens_per_epoch * trl["num_train_epochs"]
    figures = {
        "steps": trainer.state.global_step,
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "tokens_per_s": round(tokens / seconds, 1),
        "peak_memory_bytes": torch.cuda.max_memory_allocated(),
    }
    Path(message["result"]).write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
