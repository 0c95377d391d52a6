"""A PEFT adapter on disk: saved whole or not at all, or loaded into a model.

A fork (`noesis train --fork RUN`) and the second part of `sft+dpo` start with an adapter's weights; optimizer, schedule
and order are new.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from noesis.core.errors import TrainingError
from noesis.core.files import new_folder, write_text
from noesis.core.i18n import _
from noesis.core.rooted import remove

ADAPTER_FILE = "adapter_model.safetensors"
HEAD_FILE = "reward_head.safetensors"  # beside the adapter of a reward model: `weight`, (1, H)


def load_adapter_into(model: Any, adapter: Path) -> None:
    """Copy the adapter in folder `adapter` into `model`.

    Raises:
        TrainingError: it has other tensors or shapes: another base, rank, or other target modules.
    """
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    theirs, ours = load_file(adapter / ADAPTER_FILE), get_peft_model_state_dict(model)
    wrong = sorted(
        name
        for name in theirs.keys() | ours.keys()
        if name not in theirs or name not in ours or theirs[name].shape != ours[name].shape
    )
    if wrong:
        raise TrainingError(
            _(
                "the parent's adapter does not fit this run's ({wrong}): "
                "a fork needs the same base model, rank and target_modules",
                wrong=wrong[0],
            )
        )
    with torch.no_grad():
        for name, tensor in ours.items():
            tensor.copy_(theirs[name])


def save_adapter(model: Any, tokenizer: Any, target: Path) -> None:
    """Write a complete PEFT adapter with tokenizer into folder `target`, whole or not at all; a reward head, too."""
    from safetensors.torch import save_file

    model = getattr(model, "module", model)
    with new_folder(target) as part:
        model.save_pretrained(part, safe_serialization=True)
        if (head := getattr(model, "reward_head", None)) is not None:
            save_file({"weight": head.weight.detach().cpu().contiguous()}, part / HEAD_FILE)
        tokenizer.save_pretrained(part)
        remove(part / "README.md")  # PEFT's card template; the run has its own
        _remove_local_path(part / "adapter_config.json")


def _remove_local_path(config_file: Path) -> None:
    """Name the base by its folder alone: its place on this machine, and in whose home, is private."""
    settings = json.loads(config_file.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = Path(str(settings.get("base_model_name_or_path"))).name
    write_text(config_file, json.dumps(settings, indent=2, sort_keys=True))
