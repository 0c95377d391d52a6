"""The frozen base model, quantised as configured, and the adapter on it (QLoRA, https://arxiv.org/abs/2305.14314)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from noesis.core.config import Config
from noesis.core.device import Device
from noesis.core.errors import ModelError
from noesis.core.i18n import _
from noesis.llm.causal_model import load_causal_model, put_adapter
from noesis.planning.model_shapes import read_shape
from noesis.planning.precision import compute_dtype
from noesis.training.distributed import local_rank
from noesis.training.state.adapter import ADAPTER_FILE

EAGER_TOKENS = 1024  # on a CPU, rows up to this long are faster with plain matrix products than with fused attention


def load_base(folder: Path, config: Config, device: Device, *, longest: int) -> Any:
    """The base model from safetensors, in NF4 by bitsandbytes if configured; nothing in it requires a gradient.

    Args:
        longest: tokens of the longest row that will be run.

    Raises:
        ModelError: the weights can't be read.
    """
    import torch
    from transformers import BitsAndBytesConfig

    dtype = getattr(torch, compute_dtype(config, device))
    quantization = config.lora.quantization
    arguments: dict[str, Any] = {"dtype": dtype}
    if quantization.load_in_4bit:
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=quantization.bnb_4bit_use_double_quant,
            bnb_4bit_compute_dtype=dtype,
        )
    if device.kind == "cuda":
        arguments["device_map"] = {"": local_rank()}
    elif longest <= EAGER_TOKENS:
        arguments["attn_implementation"] = "eager"
    model = load_causal_model(folder, **arguments)
    model.requires_grad_(False)
    return model


@contextmanager
def compute_context(model: Any, config: Config, device: Device) -> Iterator[None]:
    """Run an adapted model's forward pass in the configured dtype: the float32 adapter is cast, not its wide inputs."""
    import torch
    from peft.helpers import disable_input_dtype_casting

    dtype = compute_dtype(config, device)
    if dtype == "float32" or (device.kind == "cuda" and dtype == "float16"):
        yield
        return
    with torch.autocast(device.kind, dtype=getattr(torch, dtype)), disable_input_dtype_casting(model):
        yield


def with_adapter(base: Any, adapter: Path) -> Any:
    """The base with the trained adapter in folder `adapter` on it, for scoring.

    Raises:
        ModelError: the adapter is not in safetensors; other formats can run code and are never loaded.
    """
    if not (adapter / ADAPTER_FILE).is_file():
        raise ModelError(
            _(
                "{adapter} holds no {adapter_file}; adapters in other formats are not loaded, since they can run code",
                adapter=adapter,
                adapter_file=ADAPTER_FILE,
            )
        )
    return put_adapter(base, adapter)


def swap_adapter(model: Any, adapter: Path) -> None:
    """Replace the adapter that `with_adapter` put on by another of the same shape.

    Copied tensor by tensor: `load_state_dict` would make bitsandbytes unpack the base for good, and its other kernel
    rounds differently.

    Raises:
        ModelError: the new adapter has other tensors or shapes.
    """
    import torch
    from safetensors.torch import load_file

    tensors = load_file(adapter / ADAPTER_FILE)
    parameters = {
        name.replace(".default.", "."): parameter for name, parameter in model.named_parameters() if ".default." in name
    }
    mismatched = [
        name
        for name in parameters.keys() | tensors.keys()
        if name not in tensors or name not in parameters or parameters[name].shape != tensors[name].shape
    ]
    if mismatched:
        raise ModelError(
            _(
                "{adapter} does not have the shape of the adapter that was loaded before it: {mismatched} differs",
                adapter=adapter,
                mismatched=min(mismatched),
            )
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def lora_config(config: Config, folder: Path) -> Any:
    """`peft.LoraConfig` from lora_config.yaml, its modules by the names that the model in `folder` has for them."""
    from peft import LoraConfig

    settings = config.lora.model_dump(exclude={"quantization"})
    settings["target_modules"] = list(read_shape(folder).parts.targets(tuple(settings["target_modules"])))
    return LoraConfig(**settings)
