"""Decoding that never leaves the device: cache, masks and tokens of fixed size, so that one step is one CUDA graph.

In eager mode a step of a small model takes as long as Python needs to launch its kernels, 20 to 30 ms; the replayed
graph takes as long as reading the weights. The host looks only every `LOOK_EVERY` tokens whether all answers have
ended.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import Any

from noesis.llm.generation.sampling import PENALISED, next_token

ROWS = 128  # most conversations at once
MEMORY_SHARE = 0.6  # of the free memory, for the cache
LOOK_EVERY = 16
LAYER_TYPES = {"full_attention", "sliding_attention"}
LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}  # the host looks at the positions


def attends_in_every_layer(model: Any) -> bool:
    """Whether every layer attends to all tokens or to a window of them."""
    return set(getattr(model.config, "layer_types", None) or LAYER_TYPES) <= LAYER_TYPES


def rows_that_fit(model: Any, length: int) -> int:
    """How many conversations of `length` tokens the device's free memory has room for; at least 1."""
    import torch

    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = 2 * config.num_hidden_layers * heads * width * length * model.dtype.itemsize
    logits = 3 * config.vocab_size * 4
    free = torch.cuda.mem_get_info(model.device)[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return max(1, min(ROWS, int(free * MEMORY_SHARE / (cache + logits))))


def decode_statically(
    model: Any, prompts: list[list[int]], *, max_tokens: int, temperature: float, noise: Any, stops: list[int]
) -> list[list[int]]:
    """Token ids of each answer, without the end token.

    Args:
        noise: of `sampling_noise`.
    """
    import torch

    with torch.inference_mode():
        batch = _Batch(model, prompts, max_tokens, temperature, noise, stops)
        batch.prefill()
        _run(batch.step, max_tokens - 1, batch.all_ended, graph=_capturable(model))
        answers = batch.tokens[:, batch.width :].tolist()
    return [list(takewhile(lambda token: token not in stops, ids)) for ids in answers]


def _capturable(model: Any) -> bool:
    rope = getattr(model.config, "rope_parameters", None) or {}
    return model.device.type == "cuda" and rope.get("rope_type") not in LENGTH_DEPENDENT_ROPE


def _run(step: Callable[[], None], count: int, done: Callable[[], bool], *, graph: bool) -> None:
    """`step`, `count` times or until `done`; as a CUDA graph from the third time on."""
    import torch

    captured = None
    for i in range(count):
        if i % LOOK_EVERY == 0 and done():
            return
        if captured is not None:
            captured.replay()
        elif not graph or i < 2:
            with torch.cuda.stream(torch.cuda.Stream()) if graph else torch.no_grad():
                step()  # libraries set themselves up in the first calls, which a graph must not contain
            if graph:
                torch.cuda.synchronize()
        else:
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                step()
            captured.replay()


class _Batch:
    """The state of one batch, all of it on the device. `now` is the column of the next token."""

    def __init__(
        self, model: Any, prompts: list[list[int]], max_tokens: int, temperature: float, noise: Any, stops: list[int]
    ) -> None:
        import torch
        from transformers.cache_utils import Cache, StaticLayer

        self.model, self.temperature, self.pad = model, temperature, stops[0]
        self.width = max(map(len, prompts))
        length, device = self.width + max_tokens, model.device
        rows = [[self.pad] * (self.width - len(p)) + p + [self.pad] * max_tokens for p in prompts]
        self.tokens = torch.tensor(rows, device=device)  # (rows, length), padded on the left
        self.padding = torch.tensor([[self.width - len(p)] for p in prompts], device=device)  # (rows, 1)
        self.noise = noise.to(device)
        self.columns = torch.arange(length, device=device)
        self.recent = torch.arange(1, PENALISED + 1, device=device)
        self.now = torch.tensor([self.width], device=device)
        self.stops = torch.tensor(stops, device=device)
        self.ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        # windows are in the mask, so that every layer's cache is of the same kind
        self.cache = Cache(layers=[StaticLayer(max_cache_len=length) for _ in range(model.config.num_hidden_layers)])

    def prefill(self) -> None:
        """Read the prompts and draw the first token."""
        self._forward(self.columns[: self.width])

    def step(self) -> None:
        """Read the last token of each row and draw the next."""
        self._forward(self.now - 1)

    def all_ended(self) -> bool:
        """Whether every answer has its end token. Waits for the device."""
        return bool(self.ended.all())

    def _forward(self, at: Any) -> None:
        """Read the tokens in the columns `at`, and draw the one after them into column `now`."""
        import torch

        out = self.model(
            input_ids=self.tokens.index_select(1, at),
            attention_mask=self._masks(at),
            position_ids=(at - self.padding).clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        recent = torch.maximum(self.now - self.recent, self.padding)  # (rows, PENALISED): columns
        noise = self.noise.index_select(1, self.now - self.width)[:, 0]
        token = next_token(out.logits[:, -1].float(), self.tokens.gather(1, recent), self.temperature, noise)
        token = torch.where(self.ended, self.pad, token)
        self.ended |= (token[:, None] == self.stops).any(1)
        self.tokens.index_copy_(1, self.now, token[:, None])
        self.now += 1

    def _masks(self, at: Any) -> Any:
        """Additive masks (rows, 1, queries, length): one, or by kind of layer, as transformers' models take them."""
        import torch

        config, dtype = self.model.config, self.model.dtype
        past = self.columns <= at[:, None]  # (queries, length)
        own = self.columns >= self.padding  # (rows, length)
        seen = (past & own[:, None])[:, None]
        window = getattr(config, "sliding_window", None)
        near = seen & (self.columns > at[:, None] - window) if window else seen

        def additive(mask: Any) -> Any:  # finite: a padding query sees nothing, which must not become NaN
            return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)

        kinds = {"full_attention": additive(seen), "sliding_attention": additive(near)}
        types = getattr(config, "layer_types", None)
        return {kind: kinds[kind] for kind in set(types)} if types else kinds["sliding_attention"]
