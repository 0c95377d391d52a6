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
from noesis.llm.weights.tensors import iter_trained_weights, list_tensors

LARGE = 4e9  # bytes in float32; above, weights are widened one layer at a time
GPU_ROOM = 4e9  # bytes beside the weights: a widened layer, activations, logits
ROWS = 8  # at a time where a pass has a cost of its own: on a GPU, and where weights are widened for it


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
        narrow = [m for m in model.modules() if any(p.dtype != torch.float32 for p in m.parameters(recurse=False))]
        for module in narrow:
            module.register_forward_pre_hook(_widen)
            module.register_forward_hook(_narrow)
        self.rows = ROWS if narrow or self.model.device.type == "cuda" else 1  # at a time

    @property
    def where(self) -> str:
        """What computes: `cpu`, or the GPU's name."""
        import torch

        device = self.model.device
        return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else "cpu"

    def logits(self, rows: list[list[int]]) -> Iterator[Any]:
        """Logits after each token of each row: float32 arrays (length, vocabulary)."""
        import torch

        for some in (rows[i : i + self.rows] for i in range(0, len(rows), self.rows)):
            width = max(map(len, some))
            # what follows a row's end is never looked at: each token sees those before it only
            ids = torch.tensor([row + row[-1:] * (width - len(row)) for row in some], device=self.model.device)
            with torch.inference_mode():
                found = self.model(input_ids=ids, use_cache=False).logits.float().cpu().numpy()
            for row, values in zip(some, found, strict=True):
                yield values[: len(row)]

    def answer(self, ids: list[int], count: int, stop: set[int], draft: list[int]) -> list[int]:
        """Greedy continuation of `ids`: at most `count` tokens, without the one in `stop` that ends it.

        Args:
            draft: what it may be, from another model: as far as it is right, it costs one pass instead of one a token.
        """
        import torch

        draft = draft[:count]
        answer: list[int] = []
        with torch.inference_mode():
            logits = self.model(input_ids=self._tensor(ids + draft), use_cache=False).logits[0, len(ids) - 1 :]
            greedy = logits.argmax(-1).tolist()
            while len(answer) < len(draft) and draft[len(answer)] == greedy[len(answer)] not in stop:
                answer.append(draft[len(answer)])
            following, cache, unseen = greedy[len(answer)], None, ids + answer
            while len(answer) < count and following not in stop:
                answer.append(following)
                if len(answer) < count:
                    unseen.append(following)
                    out = self.model(input_ids=self._tensor(unseen), past_key_values=cache, use_cache=True)
                    following, cache, unseen = int(out.logits[0, -1].argmax()), out.past_key_values, []
        return answer

    def _tensor(self, ids: list[int]) -> Any:
        import torch

        return torch.tensor([ids], device=self.model.device)


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
