"""Layer inputs stored in main memory between the forward and the backward pass, copied while the GPU computes."""

from __future__ import annotations

from typing import Any

import torch

Tensor = Any


class Offload:
    """One pinned buffer a layer; the input of the next lower layer is fetched while this one computes."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self.buffers: dict[int, Tensor] = {}
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.fetched: dict[int, tuple[Tensor, Any]] = {}

    def store(self, index: int, h: Tensor) -> None:
        """Copy h: (T, H) of layer `index` out; the tensor may be freed at once."""
        buffer = self.buffers.get(index)
        if buffer is None or buffer.numel() < h.numel():
            buffer = self.buffers[index] = torch.empty(h.numel(), dtype=h.dtype, pin_memory=True)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            buffer[: h.numel()].copy_(h.reshape(-1), non_blocking=True)
        h.record_stream(self.stream)
        self.shapes[index] = tuple(h.shape)

    def load(self, index: int) -> Tensor:
        """The tensor of layer `index`; fetching that of the next lower layer starts."""
        self._fetch(index)
        h, event = self.fetched.pop(index)
        torch.cuda.current_stream().wait_event(event)
        h.record_stream(torch.cuda.current_stream())
        if index > 0:
            self._fetch(index - 1)
        return h

    def _fetch(self, index: int) -> None:
        if index in self.fetched:
            return
        shape = self.shapes[index]
        with torch.cuda.stream(self.stream):
            buffer = self.buffers[index]
            h = torch.empty(shape, dtype=buffer.dtype, device="cuda")
            h.view(-1).copy_(buffer[: h.numel()], non_blocking=True)
            event = torch.cuda.Event()
            event.record(self.stream)
        self.fetched[index] = (h, event)
