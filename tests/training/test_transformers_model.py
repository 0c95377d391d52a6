"""transformers' layers on packed rows: losses and gradients as transformers has them, sequence by sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_runs import small
from noesis.core.device import Device
from noesis.planning.setup import Setup
from noesis.training.packing import pack

pytestmark = pytest.mark.slow

CPU = Device("cpu", "test", 8 << 30, 2, bf16=False)
OWN: dict[str, dict[str, Any]] = {
    "cohere": {},  # scales its logits, adds attention and feed-forward part at once
    "gemma2": {"sliding_window": 5, "query_pre_attn_scalar": 16, "final_logit_softcapping": 3.0},  # two soft caps
    "gemma3_text": {"sliding_window": 5, "query_pre_attn_scalar": 16},
    "granite": {"logits_scaling": 4.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5},
    "mistral": {"sliding_window": 5},
    "olmo2": {},
    "phi3": {},
    "qwen2": {},
    "qwen3": {},
    "starcoder2": {"use_bias": True},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8},  # recurrent layers
}
SETUP = Setup("noesis", "fp32", "float32", "none", True, 64, 4, 1, "adamw", 0)


def saved(kind: str, folder: Path) -> Path:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        kind, vocab_size=64, num_key_value_heads=2, head_dim=8, pad_token_id=0, **sizes, **OWN[kind]
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def sequences() -> list[tuple[list[int], list[int]]]:
    rows = [[(13 * i + 5 * j) % 60 + 3 for j in range(6 + 3 * i)] for i in range(3)]
    return [(row, [-100] * 3 + row[3:]) for row in rows]


@pytest.mark.parametrize("checkpointing", ["none", "full"])
@pytest.mark.parametrize("kind", OWN)
def test_a_packed_row_trains_what_its_sequences_train_alone(kind: str, checkpointing: str, tmp_path: Path):
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from noesis.training.base_model import lora_config
    from noesis.training.transformers_model import build

    folder = saved(kind, tmp_path)
    targets = "all-linear" if kind == "starcoder2" else ("q_proj", "v_proj", "o_proj", "qkv_proj", "down_proj")
    config = small(
        **{
            "lora.quantization": {"load_in_4bit": False, "bnb_4bit_compute_dtype": "float32"},
            "lora.lora_dropout": 0.0,
            "training.precision": "fp32",
        }
    )
    lora = lora_config(config, folder)
    lora.target_modules = targets if isinstance(targets, str) else set(targets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("noesis.training.transformers_model.lora_config", lambda *_: lora)
        setup = Setup(**{**SETUP.__dict__, "gradient_checkpointing": checkpointing})
        ours = build(folder, setup, config, CPU, longest=64)
    lora.target_modules = targets if isinstance(targets, str) else set(targets)
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), lora)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        wanted = dict(theirs.named_parameters())
        for name, parameter in ours.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
                wanted[name].copy_(parameter)
    row = pack(sequences(), [0, 1, 2], multiple=1)
    ours(row, torch.tensor(float(len(row.targets)))).backward()
    expected = torch.zeros(())
    for ids, labels in sequences():
        out = theirs(input_ids=torch.tensor([ids]), labels=torch.tensor([labels]), use_cache=False)
        expected = expected + out.loss * sum(label != -100 for label in labels[1:])
    (expected / len(row.targets)).backward()
    losses = ours.engine.token_losses(row)
    torch.testing.assert_close(losses.sum(), expected, rtol=1e-5, atol=1e-5)
    trained = [(name, p) for name, p in ours.named_parameters() if p.requires_grad]
    assert trained
    for name, parameter in trained:
        torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: n + m)
    assert ours.engine.packs == (kind != "falcon_h1")


def test_a_row_without_targets_trains_nothing(tmp_path: Path):
    import torch

    from noesis.training.transformers_model import build

    quantization = {"load_in_4bit": False, "bnb_4bit_compute_dtype": "float32"}
    config = small(**{"lora.quantization": quantization, "training.precision": "fp32"})
    model = build(saved("qwen3", tmp_path), SETUP, config, CPU, longest=64)
    row = pack([([5, 6, 7], [-100] * 3)], [])
    model(row, torch.tensor(1.0)).backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None and not g.any() for g in gradients)
