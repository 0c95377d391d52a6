"""Families' descriptions: what they say of usual models, what they refuse, and that no config.json breaks them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from noesis.core.families.architecture import FULL, SLIDING, Architecture, UnknownArchitecture
from noesis.core.families.registry import FAMILIES, describe
from noesis.core.families.shape import Parts

SIZES = {
    "num_hidden_layers": 6, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 500,
}  # fmt: skip
ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 10**30, float("nan"), "x", "", [], ["x"], [1] * 6, {}, {"rope_type": {}}, {"x": {"type": []}},
)  # fmt: skip
KEYS = (
    *SIZES, "head_dim", "rms_norm_eps", "tie_word_embeddings", "hidden_act", "hidden_activation", "sliding_window",
    "layer_types", "sliding_window_pattern", "use_sliding_window", "max_window_layers", "no_rope_layers",
    "no_rope_layer_interval", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping",
    "attention_multiplier", "residual_multiplier", "logits_scaling", "rope_parameters", "rope_scaling",
    "attention_bias", "attention_dropout", "model_type",
)  # fmt: skip


def of(model_type: str, **config: Any) -> Architecture:
    return describe({"model_type": model_type, **SIZES, **config})


@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_a_config_says_ends_in_a_description_or_in_one_kind_of_error(family: str):
    for key in KEYS:
        for value in ODD:
            for besides in ({}, {"use_sliding_window": True, "sliding_window": 16}):
                try:
                    found = of(**{"model_type": family, **besides, key: value})
                except ValueError as error:
                    assert "\n" not in str(error) and len(str(error)) < 400
                else:
                    assert len(found.windows) == len(found.rotary) == found.shape.layers


def test_windows_are_where_the_family_has_them():
    assert of("mistral", sliding_window=8).windows == (8,) * 6
    assert of("mistral", sliding_window=None).windows == (None,) * 6
    assert of("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=4).windows == (*(None,) * 4, 8, 8)
    assert of("qwen2", sliding_window=8).windows == (None,) * 6
    assert of("gemma2").windows == (4096, None) * 3
    gemma3 = of("gemma3_text", sliding_window=8)
    assert gemma3.windows == (8, 8, 8, 8, 8, None)
    assert gemma3.rotary == (SLIDING,) * 5 + (FULL,)
    assert of("gemma3_text", sliding_window=8, layer_types=[FULL] * 6).windows == (None,) * 6


def test_what_is_said_of_gemma_2():
    found = of("gemma2", query_pre_attn_scalar=144, final_logit_softcapping=None)
    assert (found.attention_scale, found.attention_cap, found.logits_cap) == (1 / 12, 50.0, None)
    assert (found.activation, found.plus_one, found.embedding_scale) == ("gelu_tanh", True, 8.0)
    assert found.shape.parts == Parts(post_norms=True, capped=True) and found.shape.head_dim == 256 and found.shape.tied


def test_smollm3_and_granite_are_llama_but_for_what_is_named():
    llama = of("llama", tie_word_embeddings=True)
    assert of("smollm3") == replace(llama, rotary=("", "", "", "none", "", ""))
    assert of("granite", tie_word_embeddings=True, residual_multiplier=0.5, attention_multiplier=0.25) == replace(
        llama, residual_scale=0.5, attention_scale=0.25
    )


def test_an_unknown_family_is_named_with_those_that_are_known():
    with pytest.raises(UnknownArchitecture, match=r"of type 'mamba'; the engine knows llama, mistral, qwen2"):
        of("mamba")


def test_an_adapters_modules_have_the_names_of_the_model():
    seven = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert Parts(fused=True).targets(seven) == ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    assert Parts(fused=True).targets(("k_proj", "lm_head", "qkv_proj")) == ("qkv_proj", "lm_head")
    assert Parts().targets(seven) == seven
