"""What a GGUF is measured against: the model in float32 in transformers, from its adapter on the base it was trained on, or merged.

Small models are held in float32. Large ones stay in the type they are stored in, and each layer's weights are widened while it is
used: the arithmetic is the same, the memory half.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from noesis.core.config import Quantization
from noesis.llm.weights import iter_trained_weights, list_tensors

LARGE = 4e9  # bytes in float32 above which weights are widened one layer at a time


def merged_model(folder: Path) -> Any:
    """A model folder, computing in float32."""
    return _Float32(_load(folder), folder)


def adapted_model(base: Path, adapter: Path, quantization: Quantization | None, dtype: str) -> Any:
    """The adapter on its base by PEFT, both as in training (the base dequantised where it was quantised), computing in float32."""
    import torch
    from peft import PeftModel

    model = _load(base)
    places = model.state_dict()
    with torch.inference_mode():
        for name, weight in iter_trained_weights(base, quantization, dtype, None, exact=True):
            if name in places:
                places[name].copy_(weight)
    return _Float32(PeftModel.from_pretrained(model, str(adapter)).eval(), base)


def _load(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    found = list_tensors(folder)
    numbers = sum(s.size / (4 if s.dtype == "F32" else 2) for s in found.values())
    kind = torch.float32 if numbers * 4 <= LARGE else "auto"
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=kind, use_safetensors=True, trust_remote_code=False, local_files_only=True
    ).eval()


class _Float32:
    """A model that computes in float32 whatever its weights are stored in."""

    def __init__(self, model: Any, place: Path) -> None:
        import torch

        self.model, self.place = model, place
        for module in model.modules():
            own = [p for p in module.parameters(recurse=False) if p.dtype != torch.float32]
            if own:
                module.register_forward_pre_hook(_widen)
                module.register_forward_hook(_narrow)

    def logits(self, rows: list[list[int]]) -> Iterator[Any]:
        """Logits after each token of each row: float32 arrays (length, vocabulary)."""
        import torch

        for row in rows:
            with torch.inference_mode():
                yield self.model(input_ids=torch.tensor([row]), use_cache=False).logits[0].float().numpy()

    def answer(self, ids: list[int], count: int, stop: set[int]) -> list[int]:
        """Greedy continuation of `ids`: at most `count` tokens, the one in `stop` not among them."""
        import torch

        said: list[int] = []
        past, given = None, torch.tensor([ids])
        while len(said) < count:
            with torch.inference_mode():
                out = self.model(input_ids=given, past_key_values=past, use_cache=True)
            chosen = int(out.logits[0, -1].argmax())
            if chosen in stop:
                break
            said.append(chosen)
            past, given = out.past_key_values, torch.tensor([[chosen]])
        return said


def _widen(module: Any, _: Any) -> None:
    module.narrow = [(p, p.data) for p in module.parameters(recurse=False)]
    for p, data in module.narrow:
        p.data = data.float()


def _narrow(module: Any, _: Any, __: Any) -> None:
    for p, data in module.narrow:
        p.data = data
    del module.narrow
