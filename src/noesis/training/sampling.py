"""Answers of the model that is being trained, sampled on the engine itself: no second copy of the weights.

The keys and values of what was read are kept, one padded tensor a layer; the sequences advance together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from noesis.llm.token_rows import IGNORED
from noesis.training.engine import attention
from noesis.training.engine.attention import Attended
from noesis.training.engine.layer import Layer
from noesis.training.packing import MULTIPLE, PackedRow, pack

Tensor = Any


def sample(
    engine: Any,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    stops: Sequence[int],
    seed: int,
) -> list[list[int]]:
    """An answer to each prompt, the token that ended it included.

    Args:
        engine: `engine.model.Engine` with its adapter.
        stops: ids of tokens that end an answer.
        seed: the same one draws the same answers of the same model.
    """
    draw = torch.Generator().manual_seed(seed)
    answers: list[list[int]] = [[] for _ in prompts]
    with torch.no_grad(), _without_dropout(engine):
        first = pack([(ids, [IGNORED] * len(ids)) for ids in prompts], [])
        cache = Cache(engine, first.lengths, len(prompts), max_new_tokens)
        h = engine.last_states(first, cache.fill)
        ends = torch.tensor(first.lengths[: len(prompts)]).cumsum(0) - 1
        tokens = _draw(engine, h[ends.to(h.device)], temperature, draw)
        for _ in range(max_new_tokens - 1):
            for answer, token in zip(answers, tokens, strict=True):
                if not answer or answer[-1] not in stops:
                    answer.append(token)
            if all(answer[-1] in stops for answer in answers):
                return answers
            h = engine.last_states(cache.next_row(tokens), cache.extend)
            tokens = _draw(engine, h[: len(prompts)], temperature, draw)
    for answer, token in zip(answers, tokens, strict=True):
        if not answer or answer[-1] not in stops:
            answer.append(token)
    return answers


class Cache:
    """Keys and values of each layer: (prompts, heads, tokens, D) for as many tokens as there can be."""

    def __init__(self, engine: Any, lengths: list[int], prompts: int, new: int) -> None:
        self.device, self.lengths, self.prompts, self.new = engine.device, lengths, prompts, 0
        self.of_prompt = torch.tensor(lengths[:prompts], device=engine.device)
        self.width = max(lengths[:prompts]) + new
        self.stored: dict[int, tuple[Tensor, Tensor]] = {}

    def fill(self, layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Attended:
        """Attention within the prompts, whose keys and values are kept."""
        shape = (self.prompts, k.shape[1], self.width, k.shape[2])
        stored = k.new_zeros(shape), v.new_zeros(shape)
        for kept, new in zip(stored, (k, v), strict=True):
            for i, part in enumerate(new.split(self.lengths)[: self.prompts]):
                kept[i, :, : len(part)] = part.transpose(0, 1)
        self.stored[layer.index] = stored
        segments = attention.Segments.of(self.lengths, self.device)
        return attention.forward(q, k, v, segments, layer.scores, layer.backend)

    def next_row(self, tokens: list[int]) -> PackedRow:
        """A row of one token for each prompt, on a GPU filled up for whole tiles of the kernels."""
        at = [length + self.new for length in self.lengths[: self.prompts]]
        filler = [0] * (-len(at) % MULTIPLE if self.device.type == "cuda" else 0)
        self.new += 1
        ids = [*tokens, *filler]
        return PackedRow(ids, [*at, *filler], [1] * len(ids), [], [], [], len(at))

    def extend(self, layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Attended:
        """Attention of each prompt's next token to all before it, in float32."""
        keys, values = self.stored[layer.index]
        own = torch.arange(self.prompts, device=self.device)
        at, scores = self.of_prompt + self.new - 1, layer.scores
        keys[own, :, at], values[own, :, at] = k[: self.prompts], v[: self.prompts]
        seen = int(at.max()) + 1 if self.device.type == "cpu" else self.width
        place = torch.arange(seen, device=self.device)
        hidden = place > at[:, None]
        if scores.window is not None:
            hidden |= place <= at[:, None] - scores.window
        groups = q.shape[1] // k.shape[1]
        by_key = q[: self.prompts].unflatten(1, (k.shape[1], groups)).float()  # (prompts, key heads, groups, D)
        products = by_key @ keys[:, :, :seen].float().transpose(2, 3) * scores.scale
        if scores.cap is not None:
            products = scores.cap * torch.tanh(products / scores.cap)
        weights = products.masked_fill(hidden[:, None, None], -torch.inf).softmax(-1)
        out = torch.zeros_like(q)
        out[: self.prompts] = (weights @ values[:, :, :seen].float()).flatten(1, 2).to(q.dtype)
        return Attended(out, None, None)


def _draw(engine: Any, x: Tensor, temperature: float, draw: torch.Generator) -> list[int]:
    """A token of each distribution, by Gumbel noise from the processor, the same on every device. x: (prompts, H)."""
    logits = engine.output.logits(x)[0].float().cpu()
    uniform = torch.rand(logits.shape, generator=draw).clamp_(min=1e-20)
    noise = uniform.log_().neg_().clamp_(min=1e-20).log_().neg_()
    tokens: list[int] = (logits / temperature + noise).argmax(-1).tolist()
    return tokens


@contextmanager
def _without_dropout(engine: Any) -> Iterator[None]:
    training, engine.training = engine.training, False
    try:
        yield
    finally:
        engine.training = training
