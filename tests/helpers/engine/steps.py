"""A training engine on a CPU, a step for it to take, and the same step by transformers and PEFT."""

from __future__ import annotations

from pathlib import Path

from noesis.llm.token_rows import IGNORED
from noesis.planning.setup import Setup
from noesis.training.packing import rows_of_step

FP32 = Setup("noesis", "fp32", "float32", "none", True, 64, 8, 1, "adamw", 0)


def toy(count: int = 6, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Sequences of 7 to 40 tokens; the first part of each is not trained on."""
    import random

    draw = random.Random(seed)
    made = []
    for _ in range(count):
        ids = [draw.randrange(3, 500) for _ in range(draw.randrange(7, 40))]
        cut = draw.randrange(1, len(ids) - 3)
        made.append((ids, [IGNORED] * cut + ids[cut:]))
    return made


def lora_of(
    r: int = 4,
    dropout: float = 0.0,
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
):
    from peft import LoraConfig

    return LoraConfig(
        r=r, lora_alpha=2 * r, lora_dropout=dropout, target_modules=list(targets), task_type="CAUSAL_LM", bias="none"
    )


def engine_of(folder: Path, setup: Setup, lora=None, device: str = "cpu"):
    """The engine's model with an adapter that is not zero, the same for every setup."""
    import torch

    from noesis.training.engine.model import build

    model = build(folder, setup, lora or lora_of(), device)
    draw = torch.Generator().manual_seed(1)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            parameter.data.copy_(torch.randn(parameter.shape, generator=draw) * 0.05)
    return model


def gradients(model, rows, divisor: float, seed: int = 0) -> tuple[float, dict]:
    """Loss and gradients of a whole step."""
    import torch

    torch.manual_seed(seed)
    model.zero_grad()
    model.engine.begin_step()
    total = 0.0
    for row in rows:
        loss = model(row, torch.tensor(float(divisor), device=model.engine.device))
        loss.backward()
        total += float(loss.detach())
    return total, {name: p.grad.cpu().clone() for name, p in model.named_parameters() if p.grad is not None}


def reference_gradients(folder: Path, like, step, divisor: float) -> tuple[float, dict]:
    """The same by transformers and PEFT in float32, a sequence at a time."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model = get_peft_model(base, like.peft_config["default"])
    adapter = {name: p for name, p in like.named_parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(adapter[name].data)
    total = 0.0
    for ids, labels in step:
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        loss = (
            torch.nn.functional.cross_entropy(logits, torch.tensor(labels[1:]), reduction="sum", ignore_index=IGNORED)
            / divisor
        )
        loss.backward()
        total += float(loss.detach())
    return total, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def rows(step, pack_length: int = 64):
    return rows_of_step(step, list(range(len(step))), world_size=1, rank=0, pack_length=pack_length, micro_batch=1)


def trained(step) -> int:
    return sum(label != IGNORED for _, labels in step for label in labels[1:])


def worst(got: dict, wanted: dict) -> float:
    assert set(got) == set(wanted)
    return max(float((got[n] - wanted[n]).norm() / wanted[n].norm()) for n in wanted)


def saved_numbers(engine, row) -> int:
    """How many numbers the first layer keeps of a row; the adapters' activations (rank 4) and the norms' not counted."""
    import torch

    layer = engine.layers[0]
    with torch.no_grad():
        h, shared = engine.embed(row)
        saved = layer.reduce(layer.forward(h, shared)[1])
    tensors = [value for value in vars(saved).values() if isinstance(value, torch.Tensor)]
    tensors += [*saved.joined, *saved.joined2] + ([saved.attended.out] if saved.attended is not None else [])
    wide = {t.data_ptr(): t.numel() for t in tensors if t.dim() > 1}
    return sum(wide.values())
