"""The JSON files of a model folder, checked before any library builds a model by them.

transformers and PEFT believe what they read: a config.json of two million layers takes all memory, one of 0 heads ends
in a traceback, and a text of `target_modules` is a regular expression. A folder is refused in one message instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from noesis.core.errors import ModelError
from noesis.core.files import files_in
from noesis.core.i18n import _
from noesis.core.jsonl import fraction, read_json_file, whole_number

# key of config.json: (least, most)
SIZES = {
    "num_hidden_layers": (1, 2_000),
    "hidden_size": (1, 1 << 20),
    "intermediate_size": (1, 1 << 22),
    "num_attention_heads": (1, 1 << 14),
    "num_key_value_heads": (1, 1 << 14),
    "head_dim": (1, 1 << 14),
    "vocab_size": (1, 4_000_000),
    "max_position_embeddings": (1, 1 << 28),
    "sliding_window": (0, 1 << 28),
    "original_max_position_embeddings": (1, 1 << 28),
}
POSITIVE = ("rms_norm_eps", "layer_norm_eps", "rope_theta", "factor", "low_freq_factor", "high_freq_factor")
ROPE = ("rope_scaling", "rope_parameters")
LARGEST_FACTOR = 1e12
READ_BY_LIBRARIES = (
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "model.safetensors.index.json",
)
QUANTISED = ("quantization_config", "compression_config", "quantization")  # transformers, compressed-tensors, MLX
QUANTISED_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")  # AutoGPTQ, AutoAWQ, ModelOpt
TOWERS = ("text_config", "vision_config", "audio_config", "thinker_config")
WRITERS = ("ForCausalLM", "LMHeadModel")  # how the names of architectures end that write text
WEIGHTS_PER_BYTE = 2  # of the densest storage, 4 bits
SMALL = 10_000_000  # weights that a model without any may have: a file of the shape alone


def read_model_config(folder: Path) -> dict[str, Any]:
    """config.json, with numbers that a model can have.

    Raises:
        ModelError: it is missing, not JSON, or one of its numbers is none that a model has.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(
            _(
                "{folder} is not a model folder: it has no config.json; give the folder that holds config.json, "
                "tokenizer.json and the .safetensors files, or fetch the model again",
                folder=folder,
            )
        )
    raw = _read(file)
    try:
        for key, (least, most) in SIZES.items():
            if raw.get(key) is not None:
                whole_number(raw, key, least, most)
        for part in (raw, *(raw[key] for key in ROPE if isinstance(raw.get(key), dict))):
            for key in POSITIVE:
                if part.get(key) is not None:
                    fraction(part, key, 0.0, LARGEST_FACTOR)
        heads, shared = raw.get("num_attention_heads"), raw.get("num_key_value_heads")
        if heads and shared and heads % shared:
            raise ValueError(
                _(
                    "num_attention_heads is {heads}, no multiple of num_key_value_heads, {shared}",
                    heads=heads,
                    shared=shared,
                )
            )
        names = raw.get("architectures")
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise ValueError(_("architectures is {short}: expected a list of names", short=_short(names)))
    except ValueError as error:
        raise ModelError(
            _("{file}: {error}; it is damaged or hostile: fetch the model again", file=file, error=error)
        ) from None
    return raw


def check_model_folder(folder: Path) -> None:
    """Check the JSON files of `folder`, and that its weights are about as many as config.json says.

    Raises:
        ModelError: a file can't be read, or holds what no model has.
    """
    raw = read_model_config(folder)
    for name in READ_BY_LIBRARIES:
        if (folder / name).is_file():
            _read(folder / name)
    stored = sum(file.stat().st_size for file in files_in(folder, ".safetensors"))
    claimed = _claimed_weights(raw)
    if claimed > max(SMALL, 2 * WEIGHTS_PER_BYTE * stored):
        raise ModelError(
            _(
                "{folder} describes {claimed:.2g} weights, and the .safetensors files have {stored:,} "
                "bytes: it is damaged or hostile: fetch the model again",
                folder=folder / "config.json",
                claimed=claimed,
                stored=stored,
            )
        )


def require_trainable(folder: Path) -> None:
    """Refuse, by its small files alone, a model that can't be trained and released here.

    Raises:
        ModelError: it is stored quantised, a mixture of experts, sees or hears, or does not write text; or as
            `read_model_config`.
    """
    raw = read_model_config(folder)
    how = next((name for name in QUANTISED_FILES if (folder / name).is_file()), None)
    for part in (raw, *(raw[key] for key in TOWERS if isinstance(raw.get(key), dict))):
        for key in QUANTISED:
            if part.get(key):
                method = part[key].get("quant_method") if isinstance(part[key], dict) else None
                how = f"{key}: {method}" if isinstance(method, str) else key
    if how is not None:
        raise ModelError(
            _(
                "the model in {folder} is stored quantised ({short}): give the model that it was made of, in BF16, "
                "F16 or F32, as --model; with load_in_4bit: true in lora_config.yaml it takes as little memory",
                folder=folder,
                short=_short(how),
            )
        )
    if towers := [key for key in TOWERS if isinstance(raw.get(key), dict)]:
        raise ModelError(
            _(
                "the model in {folder} has parts that see or hear ({towers} in its config.json), "
                "and only text is trained: choose a model of the same family that is made for text alone",
                folder=folder,
                towers=", ".join(towers),
            )
        )
    if experts := [key for key, value in raw.items() if "experts" in key and type(value) is int and value > 1]:
        raise ModelError(
            _(
                "the model in {folder} is a mixture of experts ({short}: {raw}), which is not "
                "trained here: choose a dense model",
                folder=folder,
                short=_short(experts[0]),
                raw=raw[experts[0]],
            )
        )
    names = raw.get("architectures") or []
    if raw.get("is_encoder_decoder") is True or (names and not any(name.endswith(WRITERS) for name in names)):
        kind = ", ".join(names) or "an encoder and a decoder"
        raise ModelError(
            _(
                "the model in {folder} ({short}) does not continue a text: choose one whose architecture ends in "
                "{writers}, in its version for instructions",
                folder=folder,
                short=_short(kind),
                writers=WRITERS[0],
            )
        )


def check_adapter_settings(file: Path) -> dict[str, Any]:
    """adapter_config.json, with values that PEFT can use without harm.

    Raises:
        FileNotFoundError: it is missing.
        ModelError: it is not JSON, or holds what no LoRA adapter has.
    """
    raw = _read(file)
    checks: dict[str, Callable[[], object]] = {
        "r": lambda: whole_number(raw, "r", 1, 1 << 16),
        "lora_alpha": lambda: fraction(raw, "lora_alpha", 0.0, 1e6),
        "lora_dropout": lambda: fraction(raw, "lora_dropout", 0.0, 1.0, zero=True) if "lora_dropout" in raw else None,
        "target_modules": lambda: _names(raw.get("target_modules")),
        "init_lora_weights": lambda: _one_of(raw.get("init_lora_weights"), (None, True, False, "gaussian")),
    }
    try:
        for check in checks.values() if raw.get("peft_type") == "LORA" else ():
            check()
    except ValueError as error:
        raise ModelError(
            _("{file}: {error}; if it is damaged, fetch the adapter again", file=file, error=error)
        ) from None
    return raw


def _read(file: Path) -> dict[str, Any]:
    try:
        return read_json_file(file)
    except ValueError as error:
        raise ModelError(_("{file} is damaged: {error}", file=file, error=error)) from None


def _names(value: Any) -> None:
    """PEFT takes a text as a regular expression, which may never end."""
    if isinstance(value, str):
        raise ValueError(
            _("target_modules is the pattern {short}: write out the list of the modules' names", short=_short(value))
        )
    if not (isinstance(value, list) and value and all(isinstance(name, str) for name in value)):
        raise ValueError(_("target_modules is {short}: expected a list of names", short=_short(value)))


def _one_of(value: Any, known: tuple[Any, ...]) -> None:
    """PEFT's other ways to begin change the base's own weights."""
    if not any(value is other or (isinstance(value, str) and value == other) for other in known):
        raise ValueError(_("init_lora_weights is {short}: expected one of {known}", short=_short(value), known=known))


def _claimed_weights(raw: dict[str, Any]) -> float:
    """About how many weights the config describes; 0 where it does not say."""
    if not all(raw.get(key) for key in ("num_hidden_layers", "hidden_size")):
        return 0.0
    hidden, heads = raw["hidden_size"], raw.get("num_attention_heads") or 1
    head = raw.get("head_dim") or max(hidden // heads, 1)
    attention = 2 * hidden * head * (heads + (raw.get("num_key_value_heads") or heads))
    layer = attention + 3 * hidden * (raw.get("intermediate_size") or 0)
    return math.fsum((raw["num_hidden_layers"] * layer, hidden * (raw.get("vocab_size") or 0)))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
