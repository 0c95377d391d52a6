"""Tiny random models of each family that is converted, with a tokenizer of its build: llama.cpp computes what transformers does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.gguf.families import FAMILIES, SMALL, build
from helpers.project import ROOT
from helpers.tiny_tokenizers import STANDINS
from noesis.core.errors import ModelError
from noesis.llm.tokenizer import load_tokenizer

pytestmark = pytest.mark.slow
TEXTS = [
    line for line in (ROOT / "data" / "constitution.yaml").read_text(encoding="utf-8").splitlines() if len(line) > 90
][:6]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_converts(family: str, tmp_path: Path):
    from noesis.release.gguf.writer import write_gguf
    from noesis.release.parity.certify import Subject, certify
    from noesis.release.parity.outcome import require_passed

    standin, kind, settings = FAMILIES[family]
    model = build(tmp_path / "model", standin, kind, **settings)
    files = {k: tmp_path / f"{k}.gguf" for k in ("f32", "f16")}
    for k, file in files.items():
        write_gguf(model, file, k, name="tiny", licence="none")
    found = certify(Subject(model, files, None, TEXTS, TEXTS[:1], answer_tokens=4), load_tokenizer(model))
    require_passed(found)
    assert [found.files[kind].passed for kind in files] == [True, True]


@pytest.mark.parametrize(
    ("standin", "kind", "eos"),
    [
        ("qwen2.5", "Qwen2", "<|endoftext|>"),
        ("llama-3.1", "Llama", "<|end_of_text|>"),
        ("gemma-3", "Gemma3", "<eos>"),
        ("phi-3", "Phi3", "<|endoftext|>"),
    ],
)
def test_a_turns_end_that_is_not_the_models_eos_ends_an_answer_everywhere(
    standin: str, kind: str, eos: str, tmp_path: Path
):
    from noesis.release.gguf.modelfile import stop_tokens
    from noesis.release.gguf.writer import write_gguf
    from noesis.release.parity.audit import audit_controls
    from noesis.release.parity.llama_logits import LlamaModel
    from noesis.release.parity.measure import turn_end

    small = {"num_hidden_layers": 1, "head_dim": 16, "query_pre_attn_scalar": 16} if kind == "Gemma3" else {}
    model = build(tmp_path / "model", standin, kind, **small)
    settings = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": eos}), encoding="utf-8")
    tokenizer, turn = load_tokenizer(model), STANDINS[standin][4]
    assert tokenizer.eos_token_id != turn_end(tokenizer) == tokenizer.token_id(turn)
    assert stop_tokens(tokenizer) == [turn, eos]
    write_gguf(model, tmp_path / "x.gguf", "f32", name="x", licence="")
    with LlamaModel(tmp_path / "x.gguf") as loaded:
        assert loaded.ends_generation(tokenizer.token_id(turn)) and loaded.ends_generation(tokenizer.token_id(eos))
        assert audit_controls(loaded, tokenizer) == []


@pytest.mark.parametrize("family", ["Qwen3", "Gemma-3", "Phi-4-mini"])
def test_a_family_is_trained_merged_and_converted(family: str, tmp_path: Path, record: dict):
    """The adapter comes out of the engine; it is certified merged, and on a GGUF of its base."""
    from helpers.tiny_runs import rows_of, small
    from helpers.training_jobs import sft_job
    from noesis.core.config import Quantization
    from noesis.release.gguf.writer import write_adapter_gguf, write_gguf
    from noesis.release.merge_weights import merge
    from noesis.release.parity.certify import Subject, TrainedAdapter, certify
    from noesis.release.parity.outcome import require_passed
    from noesis.training.trainer import train

    standin, kind, settings = FAMILIES[family]
    model, plain = build(tmp_path / "base", standin, kind, **settings), Quantization(load_in_4bit=False)
    modules = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    config = small(**{"training.packing": True, "training.num_train_epochs": 1, "lora.target_modules": modules})
    train(sft_job(model, tmp_path, rows_of(model, 8, record), config))
    adapter, merged = tmp_path / "checkpoints" / "epoch_0", tmp_path / "merged"
    found = merge(model, adapter, merged, quantization=plain, dtype="bfloat16", card="")
    layers = json.loads((model / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    assert found.merged_tensors == layers * (4 if kind == "Phi3" else 7)
    files = {"f32": tmp_path / "f32.gguf"}
    write_gguf(merged, files["f32"], "f32", name="tiny", licence="none")
    write_gguf(model, tmp_path / "base.gguf", "f32", name="base", licence="none")
    write_adapter_gguf(adapter, model, tmp_path / "adapter.gguf")
    own = TrainedAdapter(adapter, model, plain, "bfloat16", tmp_path / "adapter.gguf", tmp_path / "base.gguf")
    tokenizer = load_tokenizer(merged)
    require_passed(certify(Subject(merged, files, own, TEXTS, TEXTS[:1], answer_tokens=4), tokenizer))


@pytest.mark.parametrize(
    ("family", "left_out"),
    [
        ("Gemma-3", "add_sliding_window"),
        ("Gemma-3 with scaled positions", "add_rope_scaling_factor"),
        ("Phi-4-mini", "add_rope_scaling_attn_factors"),
        ("Phi-4-mini", "add_rope_dimension_count"),
        ("Granite", "add_residual_scale"),
    ],
)
def test_the_certificate_sees_what_a_conversion_leaves_out(
    family: str, left_out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from gguf import GGUFWriter

    from noesis.release.gguf.writer import write_gguf
    from noesis.release.parity.certify import Subject, certify

    standin, kind, settings = FAMILIES[family]
    model, file = build(tmp_path / "model", standin, kind, **settings), tmp_path / "f32.gguf"
    monkeypatch.setattr(GGUFWriter, left_out, lambda *_: None)
    write_gguf(model, file, "f32", name="tiny", licence="none")
    try:
        found = certify(Subject(model, {"f32": file}, None, TEXTS[:3], [], answer_tokens=1), load_tokenizer(model))
    except ModelError as error:
        assert "llama.cpp" in str(error)  # it does not even load it
    else:
        assert not found.files["f32"].passed


BASE = SMALL | {"vocab_size": 500, "head_dim": 16}
GEMMA3 = {"architectures": ["Gemma3ForCausalLM"], "query_pre_attn_scalar": 16, "sliding_window": 16}


@pytest.mark.parametrize(
    ("config", "why"),
    [
        pytest.param(
            {"architectures": ["Gemma2ForCausalLM"], "query_pre_attn_scalar": 20},
            r"query_pre_attn_scalar 20 \(llama.cpp computes with 16\)",
            id="another scale of Gemma-2's queries",
        ),
        pytest.param(GEMMA3 | {"query_pre_attn_scalar": 20}, "query_pre_attn_scalar 20", id="the same of Gemma-3"),
        pytest.param(GEMMA3 | {"sliding_window_pattern": 2}, "each 6th", id="other layers with a window"),
        pytest.param(GEMMA3 | {"rope_local_base_freq": 5e4}, "rotary base 50000", id="another local base"),
        pytest.param(GEMMA3 | {"final_logit_softcapping": 30.0}, "final_logit_softcapping", id="capped logits"),
        pytest.param(
            {"architectures": ["SmolLM3ForCausalLM"], "no_rope_layer_interval": 2},
            "each 4th",
            id="other unrotated layers",
        ),
        pytest.param(
            {"architectures": ["Qwen3ForCausalLM"], "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "'yarn'",
            id="YaRN",
        ),
        pytest.param(
            {
                "architectures": ["LlamaForCausalLM"],
                "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5},
            },
            "0.5 of each head",
            id="half of a head rotated",
        ),
        pytest.param(
            {"architectures": ["Gemma3ForConditionalGeneration"]}, "Gemma3ForConditional", id="a vision tower"
        ),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused_by_name(config: dict, why: str, tmp_path: Path):
    from noesis.llm.gguf.families import read_config

    (tmp_path / "config.json").write_text(json.dumps(BASE | config))
    with pytest.raises(ModelError, match=f"(?s){why}.*convert_hf_to_gguf.py"):
        read_config(tmp_path)
