"""A fork begins with the adapter of another run (`noesis train --fork RUN`): its weights only; optimizer, schedule and order are its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from noesis.errors import TrainingError

FILE = "adapter_model.safetensors"


def begin_with(model: Any, parent: Path) -> None:
    """Copy the adapter in folder `parent` into `model`.

    Raises:
        TrainingError: it has other tensors or shapes: another base, rank, or other target modules.
    """
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    theirs, ours = load_file(parent / FILE), get_peft_model_state_dict(model)
    wrong = sorted(
        name
        for name in theirs.keys() | ours.keys()
        if name not in theirs or name not in ours or theirs[name].shape != ours[name].shape
    )
    if wrong:
        raise TrainingError(
            f"the parent's adapter does not fit this run's ({wrong[0]}): a fork needs the same base model, rank and target_modules"
        )
    with torch.no_grad():
        for name, tensor in ours.items():
            tensor.copy_(theirs[name])
