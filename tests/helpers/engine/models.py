"""Tiny random models of each family that the engine trains, from transformers' own config classes."""

from __future__ import annotations

from pathlib import Path

SMALL = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
WINDOW = 12  # tokens; the longest sequences of the tests have 39
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window": WINDOW}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0 + i / 8 for i in range(8)],
    "long_factor": [2.0 + i / 2 for i in range(8)], "original_max_position_embeddings": 24,
}  # fmt: skip

# name: (class of transformers, without "Config"; its settings besides SMALL)
MODELS: dict[str, tuple[str, dict]] = {
    "Llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "Llama with YaRN": ("Llama", {"rope_parameters": YARN}),
    "Mistral with a window": ("Mistral", {"sliding_window": WINDOW, "head_dim": 32}),
    "Qwen2": ("Qwen2", {"tie_word_embeddings": False}),
    "Qwen2, tied, upper layers with a window": (
        "Qwen2",
        {"tie_word_embeddings": True, "use_sliding_window": True, "max_window_layers": 1, "sliding_window": WINDOW},
    ),
    "Qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": False}),
    "Qwen3, tied": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True, "attention_bias": True}),
    "Gemma-2": ("Gemma2", GEMMA | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 4.0}),
    "Gemma-3": ("Gemma3Text", GEMMA | {"sliding_window_pattern": 3, "final_logit_softcapping": None}),
    "Gemma-3 with capped logits": (
        "Gemma3Text",
        GEMMA | {"final_logit_softcapping": 4.0, "tie_word_embeddings": False},
    ),
    "Phi-3": ("Phi3", {"tie_word_embeddings": False, "sliding_window": WINDOW}),
    "Phi-4-mini": (
        "Phi3",
        {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75}},
    ),
    "Phi-3 with two sets of frequencies": ("Phi3", {"rope_parameters": LONG}),
    "SmolLM3": ("SmolLM3", {"no_rope_layer_interval": 2}),
    "Granite": (
        "Granite",
        {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.1, "logits_scaling": 3.0},
    ),
}  # fmt: skip


def config_of(name: str, **settings: object):
    """transformers' config of a model."""
    import transformers

    kind, own = MODELS[name]
    return getattr(transformers, f"{kind}Config")(**SMALL | own | settings)


def build_tiny(folder: Path, name: str, **settings: object) -> Path:
    """A random model, in float32, with norms and biases that are none of 0 and 1."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(name, **settings), dtype=torch.float32)
    with torch.no_grad():
        for label, parameter in model.named_parameters():
            if "norm" in label or label.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    return folder
