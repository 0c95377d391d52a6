"""Tiny random models of each family that is converted to GGUF, with a tokenizer of its build."""

from __future__ import annotations

import json
from pathlib import Path

from helpers.tiny_tokenizers import write_standin

SMALL = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
    "initializer_range": 0.25, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip

REST = r"[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    "llama-3.1": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + REST % r"\p{N}{1,3}",
    "qwen2.5": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + REST % r"\p{N}",
    "qwen3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + REST % r"\p{N}",
}


def build(folder: Path, standin: str, kind: str, **settings: object) -> Path:
    """A random model of a class of transformers, with the stand-in's tokenizer."""
    import torch
    import transformers

    write_standin(folder, standin)
    if standin in PATTERNS:  # how the real one cuts text; the stand-in's is simpler
        raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        raw["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = PATTERNS[standin]
        if standin.startswith("qwen"):
            raw["normalizer"] = {"type": "NFC"}
        (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    torch.manual_seed(0)
    size = len(transformers.AutoTokenizer.from_pretrained(folder))
    config = getattr(transformers, f"{kind}TextConfig" if kind == "Gemma3" else f"{kind}Config")(
        **SMALL | {"vocab_size": size} | settings
    )
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith(
                "bias"
            ):  # else all ones and zeros, which would hide a wrong norm or a lost bias
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


FAMILIES = {
    "Llama with its own output": ("llama-3.1", "Llama", {"tie_word_embeddings": False}),
    "Mistral": ("mistral-0.2", "Mistral", {"sliding_window": None, "head_dim": 16}),
    "Mistral, a space before the first word only": ("mistral-0.3", "Mistral", {"sliding_window": 512, "head_dim": 16}),
    "Qwen2": ("qwen2.5", "Qwen2", {"tie_word_embeddings": True}),
    "Gemma-2": (
        "gemma-2",
        "Gemma2",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 16,
            "attn_logit_softcapping": 20.0,
            "final_logit_softcapping": 10.0,
        },
    ),
    "Qwen3": ("qwen3", "Qwen3", {"head_dim": 32, "tie_word_embeddings": False}),
    "Gemma-3": (
        "gemma-3",
        "Gemma3",
        {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16, "num_hidden_layers": 7},
    ),
    "Gemma-3 with scaled positions": (
        "gemma-3",
        "Gemma3",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 1024,
            "num_hidden_layers": 6,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "Phi-3": ("phi-3", "Phi3", {"tie_word_embeddings": False, "sliding_window": 600}),
    "Phi-4-mini": (
        "phi-3",
        "Phi3",
        {
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0 + i / 8 for i in range(6)],
                "long_factor": [2.0 + i for i in range(6)],
                "original_max_position_embeddings": 512,
            },
            "original_max_position_embeddings": 512,
        },
    ),
    "SmolLM3": (
        "llama-3.1",
        "SmolLM3",
        {"num_hidden_layers": 8, "initializer_range": 0.15, "tie_word_embeddings": True},
    ),
    "Granite": (
        "llama-3.1",
        "Granite",
        {
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.1,
            "logits_scaling": 3.0,
            "tie_word_embeddings": True,
        },
    ),
}
