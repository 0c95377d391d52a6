"""What a GGUF is measured against: the model in float32 in transformers, merged, or as its adapter on the base it was
trained on.

Small models are loaded in float32. Large ones stay in the type they are stored in, and each layer's weights are widened
while it runs: the arithmetic is the same, the memory half.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from noesis.core.config import Quantization
from noesis.llm.causal_model import load_causal_model, put_adapter
from noesis.llm.weights import iter_trained_weights, list_tensors

LARGE = 4e9  # bytes in float32; above, weights are widened one layer at a time


def merged_model(folder: Path) -> Float32Model:
    """A model folder, computing in float32."""
    return Float32Model(_load(folder))


def adapted_model(base: Path, adapter: Path, quantization: Quantization | None, dtype: str) -> Float32Model:
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
    return Float32Model(put_adapter(model, adapter))


def _load(folder: Path) -> Any:
    import torch

    numbers = sum(tensor.numbers for tensor in list_tensors(folder).values())
    kind = torch.float32 if numbers * 4 <= LARGE else "auto"
    return load_causal_model(folder, dtype=kind).eval()


class Float32Model:
    """A model that computes in float32 whatever type its weights are stored in."""

    def __init__(self, model: Any) -> None:
        import torch

        self.model = model
        for module in model.modules():
            if any(p.dtype != torch.float32 for p in module.parameters(recurse=False)):
                module.register_forward_pre_hook(_widen)
                module.register_forward_hook(_narrow)

    def logits(self, rows: list[list[int]]) -> Iterator[Any]:
        """Logits after each token of each row: float32 arrays (length, vocabulary)."""
        import torch

        for row in rows:
            with torch.inference_mode():
                yield self.model(input_ids=torch.tensor([row]), use_cache=False).logits[0].float().numpy()

    def answer(self, ids: list[int], count: int, stop: set[int]) -> list[int]:
        """Greedy continuation of `ids`: at most `count` tokens, without the one in `stop` that ends it."""
        import torch

        answer: list[int] = []
        cache, step = None, torch.tensor([ids])
        while len(answer) < count:
            with torch.inference_mode():
                out = self.model(input_ids=step, past_key_values=cache, use_cache=True)
            token = int(out.logits[0, -1].argmax())
            if token in stop:
                break
            answer.append(token)
            cache, step = out.past_key_values, torch.tensor([[token]])
        return answer


def _widen(module: Any, _: Any) -> None:
    module.narrow = [(p, p.data) for p in module.parameters(recurse=False)]
    for p, data in module.narrow:
        p.data = data.float()


def _narrow(module: Any, _: Any, __: Any) -> None:
    for p, data in module.narrow:
        p.data = data
    del module.narrow
