"""QLoRA by TRL's SFTTrainer or DPOTrainer: rows with labels in, one adapter an epoch out, resumable at any step that was saved.

The trainer is given token rows (`input_ids`, `labels`), so what is trained on is exactly what `noesis data inspect` shows.
"""

from __future__ import annotations

import gc
import os
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from noesis.config import Config
from noesis.console import say
from noesis.constitution.conversation import Encoded
from noesis.device import Device
from noesis.errors import CapError, TrainingError
from noesis.files import require_space
from noesis.interrupt import Overdue, deferred
from noesis.quiet import quiet_libraries
from noesis.train import launch
from noesis.train.arguments import arguments
from noesis.train.base import arithmetic, load_base, lora
from noesis.train.budget import Budget
from noesis.train.checkpoint import newest_whole, step_of
from noesis.train.loss import answer_loss
from noesis.train.pace import Pace
from noesis.train.pairs import Preferences
from noesis.train.plan import Plan, smaller
from noesis.train.recorder import (
    Metrics,
    held_out_figures,
    losses_by_epoch,
    peak_memory,
    read_metrics,
    recorder,
    save_adapter,
)
from noesis.train.reference import keep_reference, known_reference
from noesis.train.unsloth import train_with_unsloth

__all__ = ["read_metrics", "save_adapter", "train"]


def train(
    folder: Path,
    rows: list[Encoded] | Preferences,
    config: Config,
    plan: Plan,
    device: Device,
    *,
    checkpoints: Path,
    metrics: Path,
    budget: Budget | None = None,
    parent: Path | None = None,
) -> dict[str, Any]:
    """Train and leave `checkpoints/epoch_0 …`; goes on from the newest whole state in `checkpoints/resume/`.

    Args:
        rows: of SFT; or the pairs of preference training.
        budget: what may be spent; None: anything.
        parent: folder of an adapter to begin with, where the run is a fork.

    Returns:
        figures of the run: steps, tokens, seconds, tokens/s, final loss, peak memory.

    Raises:
        TrainingError: a loss that is not finite (nothing of that step was applied), or too little memory for this plan and the next smaller one.
        CapError: another step would pass the budget; the last one is saved.
        KeyboardInterrupt, Terminated: asked to stop; the last whole step is saved.
    """
    if not isinstance(rows, Preferences) and plan.setup.engine == "unsloth":
        return train_with_unsloth(folder, rows, config, plan, checkpoints=checkpoints, metrics=metrics, budget=budget)
    if (
        not isinstance(rows, Preferences)
        and plan.setup.cards > 1
        and not launch.is_worker()
        and _why_not_the_engine(folder, config, plan, device) is None
    ):
        return launch.on_all_cards(
            folder, rows, config, plan, device, checkpoints=checkpoints, metrics=metrics, budget=budget, parent=parent
        )
    work = (folder, rows, config, device, checkpoints, metrics, budget, parent)
    found: dict[str, Any] | None = _attempt(plan, *work)
    if found is not None:
        return found
    next_plan = smaller(plan)
    if next_plan is not None and plan.setup.cards <= 1:
        say(
            f"  out of memory: going on from the last saved step with {next_plan.precision}, gradient checkpointing {next_plan.setup.gradient_checkpointing}"
        )
        found = _attempt(next_plan, *work)
        if found is not None:
            return found | {"smaller_plan": next_plan.as_json()}
    raise TrainingError(
        "out of memory on the card, also with the next smaller plan: in training_config.yaml set per_device_train_batch_size: 1 and "
        f"gradient_accumulation_steps: {plan.setup.sequences_per_step}, lower max_length, or choose a smaller --model or a larger card"
    )


def _attempt(plan: Plan, *work: Any) -> dict[str, Any] | None:
    """One try with one plan; None: the card's memory was too small."""
    import torch

    try:
        return _run(plan, *work)
    except torch.cuda.OutOfMemoryError:
        pass  # out of this frame, so that the exception keeps nothing of the model alive
    gc.collect()
    torch.cuda.empty_cache()
    return None


def _run(
    plan: Plan,
    folder: Path,
    rows: list[Encoded] | Preferences,
    config: Config,
    device: Device,
    checkpoints: Path,
    metrics: Path,
    budget: Budget | None,
    parent: Path | None,
) -> dict[str, Any]:
    quiet_libraries()  # before anything imports bitsandbytes
    import torch
    from transformers import AutoTokenizer, PrinterCallback

    from noesis.train.fork import begin_with
    from noesis.train.resumable import Stopped

    # adapters of each epoch in 4 bytes a weight, and saved states with Adam's moments: two that stay and the one being written
    state_bytes = plan.adapter_parameters * 4 * 3 + 1e6
    require_space(
        checkpoints, plan.adapter_parameters * 4 * plan.epochs + 3 * state_bytes + 20e6, "training's checkpoints"
    )
    last = newest_whole(checkpoints / "resume", set_aside=os.environ.get("RANK", "0") == "0")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokens = rows.tokens if isinstance(rows, Preferences) else sum(len(row.input_ids) for row in rows)
    lines = Metrics(metrics, plan, device, tokens, step=step_of(last) if last else 0, budget=budget)
    callback = recorder(checkpoints, lines, tokenizer)
    why_not = _why_not_the_engine(folder, config, plan, device)
    if why_not and device.kind == "cuda":
        say(f"  trained by the plain path, not the fast one: {why_not}")
    parts = (config, plan, device, tokenizer, callback, lines, checkpoints / "resume")
    if isinstance(rows, Preferences):
        trainer = _preference_trainer(folder, rows, *parts, engine=not why_not, start=parent, budget=budget)
    else:
        trainer = (_plain_trainer if why_not else _engine_trainer)(folder, rows, *parts)
    trainer.remove_callback(PrinterCallback)
    callback.trainer, trainer.flush = trainer, lines.sync
    if parent is not None and last is None and not isinstance(rows, Preferences):
        begin_with(trainer.model, parent)
    if last is not None:
        say(f"  going on from step {step_of(last)}")
    started = time.monotonic()
    with lines.progress, deferred() as interrupt:
        step_seconds = plan.tokens_per_epoch / plan.rows * plan.setup.sequences_per_step / plan.tokens_per_s
        trainer.pace = pace = Pace(
            config.training.saving,
            card=device.kind == "cuda",
            step_seconds=step_seconds,
            state_bytes=state_bytes,
            steps=plan.steps,
            cards=trainer.accelerator.num_processes,
            budget=budget,
            interrupt=interrupt,
        )
        try:
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        except (Stopped, Overdue):
            interrupt.rest()
            trainer.save_last_step()
            say(f"  stopped after step {trainer.state.global_step} of {trainer.state.max_steps}, which is saved")
            if pace.interrupted:
                interrupt.leave()
            assert budget is not None
            raise CapError(
                f"stopped at what was agreed: {budget.words()}; the same command with a higher --max-usd or --max-minutes goes on from there"
            ) from None
    seconds = time.monotonic() - started
    read = read_metrics(metrics)
    losses = [line["loss"] for line in read]
    return {
        "steps": trainer.state.global_step,
        "epochs": plan.epochs,
        "tokens": lines.tokens_here,
        "seconds": round(seconds, 2),
        "tokens_per_s": round(lines.tokens_here / seconds, 1),
        "first_loss": losses[0] if losses else None,
        "final_loss": losses[-1] if losses else None,
        "peak_memory_bytes": peak_memory(device),
        "saves": pace.saves,
        "save_seconds": round(pace.in_saves, 3),
        "save_share": round(pace.share(), 4),
        "threads": torch.get_num_threads(),
        "mean_training_loss": losses_by_epoch(read, plan.epochs),
    } | (
        {"held_out": held_out_figures(read, len(rows.held_out))}
        if isinstance(rows, Preferences) and rows.held_out
        else {}
    )


def _why_not_the_engine(folder: Path, config: Config, plan: Plan, device: Device) -> str | None:
    """Why this run takes the plain path (transformers' own layers), or None."""
    if plan.setup.precision == "nf4" and config.lora.quantization.bnb_4bit_quant_type != "nf4":
        return f"bnb_4bit_quant_type in lora_config.yaml is {config.lora.quantization.bnb_4bit_quant_type}"
    if device.kind == "cuda" and plan.setup.compute_dtype != "bfloat16":
        return f"it computes in bfloat16, this plan in {plan.setup.compute_dtype}"
    if device.kind == "cuda" and find_spec("triton") is None:
        return "the package triton is not installed"
    from noesis.train.engine.model import supported

    return supported(folder, config.lora.target_modules, kernels=device.kind == "cuda")


def _engine_trainer(
    folder: Path,
    rows: list[Encoded],
    config: Config,
    plan: Plan,
    device: Device,
    tokenizer: Any,
    callback: Any,
    lines: Metrics,
    state: Path,
) -> Any:
    import torch
    from datasets import Dataset
    from trl import SFTConfig

    from noesis.train.engine.model import build
    from noesis.train.steps import EngineTrainer

    card = int(os.environ.get("LOCAL_RANK", "0"))
    if device.kind == "cuda":
        torch.cuda.set_device(card)
    torch.manual_seed(config.training.seed)
    made = arguments(
        SFTConfig, config, plan, device, state, engine=True, whole_steps=True
    )  # first: with several cards it joins their group
    smallest = plan.setup.precision == "nf4" and plan.setup.gradient_checkpointing == "full"
    where = f"cuda:{card}" if device.kind == "cuda" else "cpu"
    model = build(
        folder,
        plan.setup,
        lora(config),
        where,
        offload=smallest,
        sharded=plan.sharded,
        nested=config.lora.quantization.bnb_4bit_use_double_quant,
    )
    return EngineTrainer(
        model=model,
        args=made,
        train_dataset=Dataset.from_list(
            [{"input_ids": rows[0].input_ids, "labels": rows[0].labels}]
        ),  # the engine feeds itself
        processing_class=tokenizer,
        callbacks=[callback],
        rows=rows,
        setup=plan.setup,
        metrics=lines,
        sharded=plan.sharded,
    )


def _preference_trainer(
    folder: Path,
    data: Preferences,
    config: Config,
    plan: Plan,
    device: Device,
    tokenizer: Any,
    callback: Any,
    lines: Metrics,
    state: Path,
    *,
    engine: bool,
    start: Path | None,
    budget: Budget | None,
) -> Any:
    """A trainer with its reference, which a run that goes on finds beside its states; its adapter begins as `start`."""
    from noesis.train import preference
    from noesis.train.fork import begin_with

    trainer = preference.trainer_of(
        folder, data, config, plan, device, tokenizer, callback, lines, state, engine=engine
    )
    scorer = preference.scorer_of(trainer, config, device, engine=engine)
    base = config.training.dpo.reference == "base"  # a new adapter adds nothing yet: as if it were switched off
    if start is not None and not base:
        begin_with(trainer.model, start)
    file = state.with_name("reference.json")
    against = None if base else start
    found = known_reference(file, data, against, plan)
    if found is None:
        found = preference.reference_losses(scorer, data, plan.setup, budget)
        keep_reference(file, data, against, plan, found)
    if start is not None and base:
        begin_with(trainer.model, start)
    trainer.attach(scorer, config, data.held_out, found)
    return trainer


def _plain_trainer(
    folder: Path,
    rows: list[Encoded],
    config: Config,
    plan: Plan,
    device: Device,
    tokenizer: Any,
    callback: Any,
    lines: Metrics,
    state: Path,
) -> Any:
    from datasets import Dataset
    from trl import SFTConfig

    from noesis.train.dropout import use_byte_dropout

    trainer = _trainer_class(config, device)(
        model=load_base(folder, config, device, longest=plan.longest_row),
        args=arguments(SFTConfig, config, plan, device, state, engine=False, whole_steps=False),
        train_dataset=Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in rows]),
        processing_class=tokenizer,
        peft_config=lora(config),
        callbacks=[callback],
    )
    # TRL casts the adapter on a quantised base to bfloat16, in which steps of 2e-4 round away; the update is kept in float32.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if device.kind == "cpu":
        use_byte_dropout(trainer.model)
    return trainer


def _trainer_class(config: Config, device: Device) -> Any:
    """SFTTrainer with the loss of the trained tokens only, which stops before a loss that is not finite is applied."""
    import torch
    from trl import SFTTrainer

    from noesis.train.resumable import Resumable

    class Trainer(Resumable, SFTTrainer):  # type: ignore[misc]
        writes_itself = False
        micro_batches_done = 0  # of the step under way
        tokens_seen = 0  # of the rows trained on in this process, padding not counted

        def begin_epoch(self, epoch: int) -> None:
            """The sampler of transformers knows by itself."""

        def settle(self) -> None:
            """Every step's figures are read at once."""

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            self.tokens_seen += int(inputs["attention_mask"].sum())
            adapted = self.accelerator.unwrap_model(model)
            with arithmetic(adapted, config, device):
                return answer_loss(adapted.get_base_model(), inputs, num_items_in_batch)

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self.check(between_steps=self.micro_batches_done == 0)
            with self.giving_up():
                loss = super().training_step(model, inputs, *args, **kwargs)
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss is {float(loss)} at step {self.state.global_step + 1}; nothing of this step was applied. "
                    "Lower learning_rate in training_config.yaml, or look for odd examples with  noesis data validate"
                )
            self.check()
            self.micro_batches_done += 1
            return loss

        def step_ended(self) -> None:
            self.micro_batches_done = 0
            super().step_ended()

    return Trainer
