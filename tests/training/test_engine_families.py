"""Each family on the engine against transformers and PEFT in float32, tiny random models: losses, gradients, adapters."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.engine.models import MODELS, WINDOW, build_tiny, config_of
from helpers.engine.steps import FP32, engine_of, gradients, lora_of, reference_gradients, rows, toy, trained, worst
from noesis.core.families.registry import describe

pytestmark = pytest.mark.slow
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def lora_for(folder: Path, *, dropout: float = 0.0):
    """An adapter on all modules, by the names that the model has for them."""
    from noesis.planning.model_shapes import read_shape

    return lora_of(dropout=dropout, targets=read_shape(folder).parts.targets(ALL))


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_are_those_of_transformers_and_peft(name: str, tmp_path: Path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder, step = build_tiny(tmp_path / "model", name), toy()
    model = engine_of(folder, FP32, lora_for(folder))
    loss, got = gradients(model, rows(step), trained(step))
    expected, wanted = reference_gradients(folder, model, step, trained(step))
    assert loss == pytest.approx(expected, rel=1e-5)
    assert worst(got, wanted) < 1e-4
    unpacked, each = gradients(model, rows(step, pack_length=0), trained(step))
    assert unpacked == pytest.approx(expected, rel=1e-5)
    assert worst(each, wanted) < 1e-4
    model.save_pretrained(tmp_path / "adapter")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    theirs = {name: p for name, p in plain.named_parameters() if "lora_" in name}
    assert set(theirs) == set(wanted)
    assert all(p.equal(dict(model.named_parameters())[name]) for name, p in theirs.items())


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
@pytest.mark.parametrize("name", ["Qwen3", "Gemma-2", "Phi-3", "Granite"])
def test_recomputing_changes_nothing(name: str, checkpointing: str, tmp_path: Path):
    folder, step = build_tiny(tmp_path / "model", name), toy()
    lora = lora_for(folder, dropout=0.3)
    loss, wanted = gradients(engine_of(folder, FP32, lora), rows(step), trained(step))
    again, got = gradients(
        engine_of(folder, replace(FP32, gradient_checkpointing=checkpointing), lora), rows(step), trained(step)
    )
    assert again == loss
    assert worst(got, wanted) < 1e-6


@pytest.mark.parametrize("precision", ["bf16", "fp8", "nf4"])
@pytest.mark.parametrize("name", ["Qwen2", "Gemma-3", "Phi-3"])
def test_other_precisions_stay_near_float32(name: str, precision: str, tmp_path: Path):
    folder, step = build_tiny(tmp_path / "model", name), toy(12)
    setup = replace(FP32, precision=precision, compute_dtype="bfloat16")
    loss, got = gradients(engine_of(folder, setup, lora_for(folder)), rows(step), trained(step))
    expected, wanted = gradients(engine_of(folder, FP32, lora_for(folder)), rows(step), trained(step))
    assert loss == pytest.approx(expected, rel=0.15 if precision == "nf4" else 3e-2)
    if precision == "bf16":
        assert worst(got, wanted) < 0.15
    assert set(got) == set(wanted)


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("name", ["Qwen3", "Gemma-2", "Gemma-3", "Phi-3"])
def test_the_planner_counts_what_a_layer_saves(name: str, checkpointing: str, tmp_path: Path):
    from helpers.engine.steps import saved_numbers
    from noesis.planning.memory import saved_activations
    from noesis.planning.model_shapes import read_shape

    folder = build_tiny(tmp_path / "model", name)
    setup = replace(FP32, gradient_checkpointing=checkpointing)
    engine = engine_of(folder, setup, lora_for(folder, dropout=0.3)).engine
    (row,) = rows(toy(2))
    assert saved_numbers(engine, row) == len(row.input_ids) * saved_activations(read_shape(folder), setup)


@pytest.mark.parametrize("name", MODELS)
def test_config_json_and_what_transformers_makes_of_it_describe_the_same(name: str, tmp_path: Path):
    """The planner reads the file alone; the engine what transformers completed."""
    config = config_of(name)
    config.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert describe(raw) == describe(config.to_dict())


KEYS = (
    "model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
)  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_what_a_file_leaves_out_is_as_transformers_completes_it(name: str):
    kind = type(config_of(name))
    full = config_of(name).to_dict()
    few = {key: full[key] for key in KEYS if full.get(key) is not None}
    assert describe(few) == describe(kind(**few).to_dict())


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_counted_as_transformers_counts_them(name: str):
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(name))
    shape = describe(model.config.to_dict()).shape
    assert shape.parameters == model.num_parameters()
    adapted = get_peft_model(model, lora_of(r=4, targets=shape.parts.targets(ALL)))
    assert shape.adapter_weights(4, ALL) == adapted.get_nb_trainable_parameters()[0]


def test_a_window_shorter_than_the_sequence_is_one_and_a_longer_one_is_none(tmp_path: Path):
    step = toy()
    longest = max(len(ids) for ids, _ in step)  # its last token predicts nothing
    losses = []
    for window in (WINDOW, longest - 2, longest, None):
        folder = build_tiny(tmp_path / str(window), "Mistral with a window", sliding_window=window)
        losses.append(gradients(engine_of(folder, FP32), rows(step), trained(step))[0])
    assert losses[0] != losses[3] and losses[1] != losses[3] and losses[2] == losses[3]


def test_the_names_of_separate_projections_stand_for_the_fused_ones(tmp_path: Path):
    """The settings' default names q_proj and gate_proj, which Phi-3 does not have: it is not to train half of the layer."""
    from helpers.tiny_runs import small
    from noesis.training.base_model import lora_config
    from noesis.training.engine.model import unsupported_reason

    folder = build_tiny(tmp_path / "phi", "Phi-3")
    config = lora_config(small(**{"lora.target_modules": ALL}), folder)
    assert config.target_modules == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    assert unsupported_reason(folder, ALL, kernels=False) is None
    assert "lm_head" in str(unsupported_reason(folder, (*ALL, "lm_head"), kernels=False))


def test_only_capped_scores_keep_a_gpu_from_flash_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Gemma's norms are kept in float32, which says nothing of its activations."""
    import torch

    from noesis.training.engine import attention
    from noesis.training.engine.blockwise import Scores

    chosen, choose = [], attention.choose_attention

    def as_on_a_gpu(device, dtype, scores, kind):
        chosen.append(choose("cuda", dtype, scores, kind))
        return choose(device, dtype, scores, kind)

    monkeypatch.setattr(attention, "choose_attention", as_on_a_gpu)
    for name in ("Qwen3", "Gemma-3", "Gemma-2"):
        folder = build_tiny(tmp_path / name, name)
        engine_of(folder, replace(FP32, precision="bf16", compute_dtype="bfloat16"), lora_for(folder))
    assert chosen == ["flash"] * 6 + ["blockwise"] * 3
    assert choose("cpu", torch.bfloat16, Scores(1.0, 5), "flash2") == "torch"
    assert choose("cuda", torch.bfloat16, Scores(1.0, 5), "flash4") == "flash4"
    assert choose("cuda", torch.bfloat16, Scores(1.0, 5, 50.0), "flash4") == "blockwise"


@pytest.mark.parametrize("window", [None, 1, 100, 300, 5000])
def test_capped_attention_in_blocks_is_that_of_one_matrix(window: int | None):
    import torch

    from noesis.training.engine import attention
    from noesis.training.engine.blockwise import BLOCK, Scores

    torch.manual_seed(0)
    lengths, scores = [2 * BLOCK["cpu"] + 70, 5], Scores(0.3, window, 2.0)
    n, d = sum(lengths), 16
    q, k, v, dout = (torch.randn(n, heads, d) for heads in (6, 2, 2, 6))
    exact = [x.clone().requires_grad_() for x in (q, k, v)]
    all_q, all_k, all_v = (x.transpose(0, 1) for x in (exact[0], *(x.repeat_interleave(3, 1) for x in exact[1:])))
    raw = 2.0 * torch.tanh(all_q @ all_k.transpose(1, 2) * 0.3 / 2.0)
    at, sequence = torch.arange(n), torch.arange(2).repeat_interleave(torch.tensor(lengths))
    distance = at[:, None] - at
    seen = (distance >= 0) & (distance < (window or n)) & (sequence[:, None] == sequence)
    wanted = (raw.masked_fill(~seen, float("-inf")).softmax(-1) @ all_v).transpose(0, 1)
    (wanted * dout).sum().backward()
    segments = attention.Segments.of(lengths, "cpu")
    backend = attention.choose_attention("cpu", torch.float32, scores, "flash2")
    assert backend == "blockwise"
    got = attention.forward(q, k, v, segments, scores, backend)
    torch.testing.assert_close(got.out, wanted.detach())
    found = attention.backward(dout, q, k, v, got, segments, scores, backend)
    for mine, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(mine, theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["Qwen3", "Gemma-3", "Phi-4-mini"])
def test_a_run_leaves_an_adapter_that_plain_peft_merges(name: str, tmp_path: Path, record: dict):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from helpers.project import make_tokenizer_files
    from helpers.tiny_runs import rows_of, small
    from helpers.training_jobs import sft_job
    from noesis.training.trainer import train

    folder = build_tiny(tmp_path / "model", name, max_position_embeddings=2048)
    make_tokenizer_files(folder)
    config = small(**{"training.packing": True, "training.num_train_epochs": 1, "lora.target_modules": ALL})
    result = train(sft_job(folder, tmp_path, rows_of(folder, 16, record), config))
    assert result.steps == 2 and result.final_loss < result.first_loss
    base = AutoModelForCausalLM.from_pretrained(folder)
    before = {label: p.clone() for label, p in base.named_parameters()}
    merged = PeftModel.from_pretrained(base, tmp_path / "checkpoints" / "epoch_0").merge_and_unload()
    changed = {label for label, p in merged.named_parameters() if not p.equal(before[label])}
    assert changed == {label for label in before if label.endswith("_proj.weight")}
