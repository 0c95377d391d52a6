"""The training engine against transformers and PEFT on a tiny Llama: gradients, packing, precisions, dropout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from helpers.engine.steps import (
    FP32,
    engine_of,
    gradients,
    lora_of,
    reference_gradients,
    rows,
    saved_numbers,
    toy,
    trained,
    worst,
)
from noesis.llm.token_rows import IGNORED
from noesis.training.packing import divide, first_fit_decreasing, pack, rows_of_step


def test_gpus_share_a_step_evenly_and_lose_nothing():
    shares = divide([900, 100, 500, 400, 30, 70], 2)
    assert sorted(i for part in shares for i in part) == [0, 1, 2, 3, 4, 5]
    assert [sum([900, 100, 500, 400, 30, 70][i] for i in part) for part in shares] == [1000, 1000]


def test_rows_are_filled_first_fit_decreasing():
    assert first_fit_decreasing([5, 9, 3, 7, 12], 10) == [[4], [1], [3, 2], [0]]


def test_a_packed_row_trains_what_its_sequences_train():
    row = pack([([1, 2, 3], [IGNORED, 2, 3]), ([4, 5], [IGNORED, 5])], [7, 9], multiple=8)
    assert row.input_ids == [1, 2, 3, 4, 5, 0, 0, 0]
    assert row.position_ids == [0, 1, 2, 0, 1, 0, 1, 2]
    assert (row.lengths, row.positions, row.targets, row.members, row.tokens) == (
        [3, 2, 3],
        [0, 1, 3],
        [2, 3, 5],
        [7, 9],
        5,
    )


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("pack_length", [0, 64])
def test_a_step_holds_the_same_sequences_on_any_number_of_gpus(world_size: int, pack_length: int):
    step = toy(6)
    rows = [
        r
        for rank in range(world_size)
        for r in rows_of_step(
            step, list(range(6)), world_size=world_size, rank=rank, pack_length=pack_length, micro_batch=2
        )
    ]
    assert sorted(m for row in rows for m in row.members) == list(range(6))
    assert sorted(t for row in rows for t in row.targets) == sorted(
        t for _, labels in step for t in labels[1:] if t != IGNORED
    )
    assert all(len(row.input_ids) % 64 == 0 and sum(row.lengths) == len(row.input_ids) for row in rows)


@pytest.mark.slow
def test_packed_losses_and_gradients_are_those_of_transformers_and_peft(tiny_model: Path):
    step = toy()
    model = engine_of(tiny_model, FP32)
    loss, got = gradients(model, rows(step), trained(step))
    expected, wanted = reference_gradients(tiny_model, model, step, trained(step))
    assert loss == pytest.approx(expected, rel=1e-5)
    assert worst(got, wanted) < 1e-4
    unpacked, each = gradients(model, rows(step, pack_length=0), trained(step))
    assert unpacked == pytest.approx(expected, rel=1e-5)
    assert worst(each, wanted) < 1e-4


@pytest.mark.slow
def test_sequences_of_a_row_do_not_see_each_other(tiny_model: Path):
    first, second, other = toy(3, seed=3)
    model = engine_of(tiny_model, FP32)
    together = [
        float(model(pack([first, x], [0, 1]), _one()).detach()) - float(model(pack([x], [1]), _one()).detach())
        for x in (second, other)
    ]
    alone = float(model(pack([first], [0]), _one()).detach())
    assert together == pytest.approx([alone, alone], rel=1e-4)


def _one():
    import torch

    return torch.tensor(1.0)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_recomputing_changes_nothing(tiny_model: Path, checkpointing: str, dropout: float):
    step, lora = toy(), lora_of(dropout=dropout)
    loss, wanted = gradients(engine_of(tiny_model, FP32, lora), rows(step), trained(step))
    again, got = gradients(
        engine_of(tiny_model, replace(FP32, gradient_checkpointing=checkpointing), lora), rows(step), trained(step)
    )
    assert again == loss
    assert worst(got, wanted) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_the_planner_counts_what_a_layer_saves(tiny_model: Path, checkpointing: str):
    """`saved_activations` counts the wide tensors; the adapters' activations (rank 4) and the norms' come on top."""
    from noesis.planning.memory import saved_activations
    from noesis.planning.model_shapes import read_shape

    setup = replace(FP32, gradient_checkpointing=checkpointing)
    engine = engine_of(tiny_model, setup, lora_of(dropout=0.3)).engine
    (row,) = rows(toy(2))
    assert saved_numbers(engine, row) == len(row.input_ids) * saved_activations(read_shape(tiny_model), setup)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_the_planner_and_the_engine_agree_on_the_logits_at_a_time(tiny_model: Path, checkpointing: str):
    setup = replace(FP32, gradient_checkpointing=checkpointing)
    output = engine_of(tiny_model, setup).engine.output
    assert output.chunk * 2 * len(output.weight) <= setup.logits_bytes < (output.chunk + 128) * 2 * len(output.weight)


@pytest.mark.slow
def test_gradients_with_dropout_are_those_of_finite_differences(tiny_model: Path):
    import torch

    step, lora = toy(2), lora_of(dropout=0.3)
    model = engine_of(tiny_model, FP32, lora)
    _, got = gradients(model, rows(step), trained(step))
    for name in ("self_attn.v_proj.lora_A", "mlp.down_proj.lora_A", "self_attn.o_proj.lora_A", "mlp.up_proj.lora_A"):
        full = next(n for n in got if name in n)
        parameter = dict(model.named_parameters())[full]
        direction = got[full] / got[full].norm()
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * 1e-2 * direction
            ends.append(gradients(model, rows(step), trained(step))[0])
            with torch.no_grad():
                parameter -= sign * 1e-2 * direction
        assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(float(got[full].norm()), rel=2e-2)


@pytest.mark.slow
def test_only_the_chosen_modules_get_an_adapter(tiny_model: Path):
    step = toy()
    model = engine_of(tiny_model, FP32, lora_of(targets=("q_proj", "v_proj")))
    loss, got = gradients(model, rows(step), trained(step))
    expected, wanted = reference_gradients(tiny_model, model, step, trained(step))
    assert loss == pytest.approx(expected, rel=1e-5)
    assert worst(got, wanted) < 1e-4


@pytest.mark.slow
def test_bfloat16_gradients_stay_near_float32(tiny_model: Path):
    """Looser than on a real model: rounding averages out less at width 64, and a CPU rounds sums once more."""
    step = toy(12)
    loss, got = gradients(
        engine_of(tiny_model, replace(FP32, precision="bf16", compute_dtype="bfloat16")), rows(step), trained(step)
    )
    expected, wanted = gradients(engine_of(tiny_model, FP32), rows(step), trained(step))
    assert loss == pytest.approx(expected, rel=1e-2)
    assert worst(got, wanted) < 6e-2


@pytest.mark.slow
def test_fp8_rounds_each_product_by_its_three_bits_and_no_more(tiny_model: Path):
    import torch

    from noesis.training.engine.frozen import Fp8
    from noesis.training.engine.ops import Dropout, prepare

    torch.manual_seed(0)
    x, w, dy = torch.randn(50, 256), torch.randn(128, 256) * torch.rand(128, 1), torch.randn(50, 128) * 1e-6
    store = Fp8([w[:32], w[32:]])
    for got, exact in (
        (store.forward(prepare(x, Dropout(0), fp8=True)), x @ w.T),
        (store.backward(prepare(dy, Dropout(0), fp8=True)), dy @ w),
    ):
        assert 0.02 < float((got - exact).norm() / exact.norm()) < 0.05
    step = toy(12)
    loss, _ = gradients(
        engine_of(tiny_model, replace(FP32, precision="fp8", compute_dtype="bfloat16")), rows(step), trained(step)
    )
    assert loss == pytest.approx(gradients(engine_of(tiny_model, FP32), rows(step), trained(step))[0], rel=2e-2)


@pytest.mark.slow
def test_nf4_is_exact_on_its_own_dequantised_weights(tiny_model: Path, tmp_path: Path):
    import shutil

    from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    from safetensors.torch import load_file, save_file

    weights = load_file(tiny_model / "model.safetensors")
    for name, weight in weights.items():
        if "_proj" in name:
            packed, state = quantize_4bit(weight.float(), quant_type="nf4", compress_statistics=True)
            weights[name] = dequantize_4bit(packed, state)
    shutil.copytree(tiny_model, tmp_path / "dequantised")
    save_file(weights, tmp_path / "dequantised" / "model.safetensors", metadata={"format": "pt"})
    step = toy()
    loss, got = gradients(engine_of(tiny_model, replace(FP32, precision="nf4")), rows(step), trained(step))
    expected, wanted = gradients(engine_of(tmp_path / "dequantised", FP32), rows(step), trained(step))
    assert loss == pytest.approx(expected, rel=1e-5)
    assert worst(got, wanted) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, None),
        ({"model_type": "gemma3"}, "of type 'gemma3'"),
        ({"model_type": None}, "of type None"),
        ({"attention_bias": True, "mlp_bias": True}, None),
        ({"sliding_window": 4096}, "sliding window"),
        ({"head_dim": 80}, "80 wide"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"hidden_act": "relu"}, "activation is 'relu'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic scaling"),
        ({"model_type": "gemma2", "layer_types": ["full_attention"]}, "layer_types"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "come after them"),
        ({"quantization_config": {}}, "quantised already"),
    ],
)
def test_what_the_engine_can_not_train_is_known_before_it_starts(tmp_path: Path, change: dict, why: str | None):
    import json

    from noesis.training.engine.model import unsupported_reason

    config = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 512, "intermediate_size": 1024}
    config |= {"num_attention_heads": 8, "vocab_size": 1000}
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    found = unsupported_reason(tmp_path, ("q_proj",), kernels=True)
    assert found is None if why is None else why in str(found)


@pytest.mark.slow
def test_an_adapter_on_other_modules_takes_the_plain_path(tiny_model: Path):
    from noesis.training.engine.model import unsupported_reason

    assert unsupported_reason(tiny_model, ("q_proj",), kernels=False) is None
    assert "lm_head" in str(unsupported_reason(tiny_model, ("q_proj", "lm_head"), kernels=False))
