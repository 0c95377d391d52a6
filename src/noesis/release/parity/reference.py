"""What a GGUF is measured against: the model in float32 in transformers, merged, or as its adapter on the base it was
trained on.

Small models are loaded in float32. Large ones stay in the type they are stored in, and each layer's weights are widened
while it runs: the arithmetic is the same, the memory half. A GPU computes it where there is one with room for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from noesis.core.config import Quantization
from noesis.llm.causal_model import load_causal_model, put_adapter
from noesis.llm.weights import iter_trained_weights, list_tensors

LARGE = 4e9  # bytes in float32; above, weights are widened one layer at a time
GPU_ROOM = 4e9  # bytes beside the weights: a widened layer, activations, logits
GPU_ROWS = 8  # at a time


def merged_model(folder: Path, device: str = "cpu") -> Float32Model:
    """A model folder, computing in float32.

    Args:
        device: `cuda`: if its memory has room.
    """
    return Float32Model(_load(folder), device)


def adapted_model(
    base: Path, adapter: Path, quantization: Quantization | None, dtype: str, device: str = "cpu"
) -> Float32Model:
    """The adapter on its base in PEFT, as in training (the base dequantised where it was quantised), but in float32.

    Args:
        quantization, dtype: how training stored the base; None: its original weights.
    """
    import torch

    model = _load(base)
    state = model.state_dict()
    with torch.inference_mode():
        for name, weight in iter_trained_weights(base, quantization, dtype, None, exact=True):
            if name in state:
                state[name].copy_(weight)
    return Float32Model(put_adapter(model, adapter), device)


def _load(folder: Path) -> Any:
    import torch

    numbers = sum(tensor.numbers for tensor in list_tensors(folder).values())
    kind = torch.float32 if numbers * 4 <= LARGE else "auto"
    return load_causal_model(folder, dtype=kind).eval()


class Float32Model:
    """A model that computes in float32 whatever type its weights are stored in."""

    def __init__(self, model: Any, device: str = "cpu") -> None:
        import torch

        self.model = model.to(device) if device == "cpu" or _has_room(model) else model
        for module in model.modules():
            if any(p.dtype != torch.float32 for p in module.parameters(recurse=False)):
                module.register_forward_pre_hook(_widen)
                module.register_forward_hook(_narrow)

    @property
    def where(self) -> str:
        """What computes: `cpu`, or the GPU's name."""
        import torch

        device = self.model.device
        return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else "cpu"

    def logits(self, rows: list[list[int]]) -> Iterator[Any]:
        """Logits after each token of each row: float32 arrays (length, vocabulary)."""
        import torch

        size = GPU_ROWS if self.model.device.type == "cuda" else 1
        for some in (rows[i : i + size] for i in range(0, len(rows), size)):
            width = max(map(len, some))
            # what follows a row's end is never looked at: each token sees those before it only
            ids = torch.tensor([row + row[-1:] * (width - len(row)) for row in some], device=self.model.device)
            with torch.inference_mode():
                found = self.model(input_ids=ids, use_cache=False).logits.float().cpu().numpy()
            for row, values in zip(some, found, strict=True):
                yield values[: len(row)]

    def answer(self, ids: list[int], count: int, stop: set[int]) -> list[int]:
        """Greedy continuation of `ids`: at most `count` tokens, without the one in `stop` that ends it."""
        import torch

        answer: list[int] = []
        cache, step = None, torch.tensor([ids], device=self.model.device)
        while len(answer) < count:
            with torch.inference_mode():
                out = self.model(input_ids=step, past_key_values=cache, use_cache=True)
            token = int(out.logits[0, -1].argmax())
            if token in stop:
                break
            answer.append(token)
            cache, step = out.past_key_values, torch.tensor([[token]], device=self.model.device)
        return answer


def _has_room(model: Any) -> bool:
    """Whether the GPU holds this model."""
    import torch

    torch.cuda.empty_cache()
    return bool(model.get_memory_footprint() + GPU_ROOM <= torch.cuda.mem_get_info()[0])


def _widen(module: Any, _: Any) -> None:
    module.narrow = [(p, p.data) for p in module.parameters(recurse=False)]
    for p, data in module.narrow:
        p.data = data.float()


def _narrow(module: Any, _: Any, __: Any) -> None:
    for p, data in module.narrow:
        p.data = data
    del module.narrow
