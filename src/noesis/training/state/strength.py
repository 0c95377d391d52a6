"""An adapter at another strength: its update of the base times a number, in a loaded model or as an adapter of its own.

A scaled adapter has another B and the trained A, alpha and rank. Everything that knows an adapter by the hash of its
tensors (scores, answers, certificates) then takes it for what it is: another adapter. With another `lora_alpha` the
hash would stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from noesis.core.files import copy_file, files_in, new_folder
from noesis.core.i18n import _
from noesis.llm.causal_model import library_errors
from noesis.training.state.adapter import ADAPTER_FILE

NAME = "default"  # PEFT's, of the adapter that `with_adapter` puts on


@contextmanager
def at_strength(model: Any, strength: float) -> Iterator[None]:
    """Within it, the adapter's update of the base is `strength` times the trained one; 0: the base alone.

    Args:
        model: of `base_model.with_adapter`.
    """
    from peft.tuners.lora import LoraLayer

    if not strength:
        with model.disable_adapter():
            yield
        return
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.set_scale(NAME, strength)
    try:
        yield
    finally:
        for layer in layers:
            layer.set_scale(NAME, 1.0)


def write_scaled_adapter(adapter: Path, target: Path, strength: float) -> None:
    """Write the adapter in folder `adapter` at this strength into folder `target`, whole or not at all."""
    from safetensors.torch import save_file

    tensors = _scaled(adapter, strength)
    with new_folder(target) as part:
        for file in files_in(adapter):
            if file.name != ADAPTER_FILE:
                copy_file(file, part / file.name)
        save_file(tensors, part / ADAPTER_FILE, metadata={"format": "pt"})


def is_scaled(adapter: Path, scaled: Path, strength: float) -> bool:
    """Whether the tensors in folder `scaled` are those of `adapter` at this strength, bit for bit.

    Raises:
        ModelError: one of them is damaged.
    """
    import torch

    expected, found = _scaled(adapter, strength), _tensors(scaled)
    return expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)


def _scaled(adapter: Path, strength: float) -> dict[str, Any]:
    return {name: x * strength if ".lora_B." in name else x for name, x in _tensors(adapter).items()}


def _tensors(adapter: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    with library_errors(_("can't read the adapter {adapter}", adapter=adapter)):
        tensors: dict[str, Any] = load_file(adapter / ADAPTER_FILE)
    return tensors
