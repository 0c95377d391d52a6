"""The models of several seeds: each a PEFT model with an adapter of its own, on frozen weights that they share."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from noesis.training.backends.build_model import build_model
from noesis.training.base_model import lora_config
from noesis.training.engine.model import adapted_modules, adapter_pairs
from noesis.training.job import TrainJob


class Together(torch.nn.Module):  # type: ignore[misc]
    """The models as one module, whose parameters an optimizer takes at once."""

    def __init__(self, models: Sequence[Any]) -> None:
        super().__init__()
        self.models = torch.nn.ModuleList(models)
        self.config = models[0].config

    def forward(self, **inputs: Any) -> Any:
        """Each model has a forward pass of its own."""
        raise TypeError("several seeds have no loss in common")


def build_models(job: TrainJob, seeds: Sequence[int]) -> list[Any]:
    """A model of each seed, its adapter drawn as in a training of that seed alone."""
    models: list[Any] = []
    for seed in seeds:
        torch.manual_seed(seed)
        models.append(_beside(models[0], job) if models else build_model(job))
    return models


def _beside(model: Any, job: TrainJob) -> Any:
    """A model with a new adapter on the frozen weights of `model`."""
    like = model.engine
    lora = lora_config(job.config, job.model_folder)
    base, other, _ = adapted_modules(job.model_folder, like.dtype, lora, like.device)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            path, _, attribute = name.rpartition(".")
            setattr(other.get_submodule(path), attribute, parameter)
    engine = copy.copy(like)
    engine.base = base
    groups = like.architecture.shape.parts.groups
    engine.layers = [
        replace(
            layer,
            adapters={
                group: layer.adapters[group].of_others(adapter_pairs(base.model.layers[layer.index], members))
                for group, members in groups.items()
            },
        )
        for layer in like.layers
    ]
    engine.parameters = [layer.parameters() for layer in engine.layers]
    other.forward, other.engine = engine.loss, engine
    return other
