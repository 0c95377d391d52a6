"""Frozen weights of one or several projections with the same input, stored and multiplied as dense, FP8 or NF4.

The rows of the projections are stacked: weight (N, K), with N the sum of their outputs. `forward` gives x·Wᵀ,
`backward` gives dy·W. NF4 is that of bitsandbytes (QLoRA, https://arxiv.org/abs/2305.14314).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeVar

import torch

from noesis.planning.setup import Precision
from noesis.training.engine import reference
from noesis.training.engine.ops import Inputs

Tensor = Any
T = TypeVar("T")
Asking = Generator[tuple[str, Inputs], Tensor, T]  # asks for products: yields (group, inputs), is sent the product


class Dense:
    """In the dtype of the activations."""

    fp8 = False

    def __init__(self, parts: list[Tensor]) -> None:
        self.weight = parts[0] if len(parts) == 1 else torch.cat(parts)

    def forward(self, x: Inputs) -> Tensor:
        return x.plain @ self.weight.T

    def backward(self, dy: Inputs) -> Tensor:
        return dy.plain @ self.weight

    def release(self) -> None:
        """Nothing was unpacked."""


class ShardedDense(Dense):
    """The same, sharded: each GPU has an equal part, gathered for a product.

    All GPUs run the same products in the same order.
    """

    def __init__(self, parts: list[Tensor]) -> None:
        super().__init__(parts)
        self.shape, self.whole = self.weight.shape, None
        self.part = own_part(self.weight.reshape(-1))
        del self.weight

    def forward(self, x: Inputs) -> Tensor:
        return x.plain @ self._gathered().T

    def backward(self, dy: Inputs) -> Tensor:
        return dy.plain @ self._gathered()

    def _gathered(self) -> Tensor:
        if self.whole is None:
            self.whole = gather(self.part)[: self.shape.numel()].view(self.shape)
        return self.whole

    def release(self) -> None:
        """Free the gathered weights."""
        self.whole = None


class Fp8:
    """Float8 e4m3 with a scale a row, stored once for each direction; inputs are quantised row by row."""

    fp8 = True

    def __init__(self, parts: list[Tensor]) -> None:
        rows, columns = sum(len(p) for p in parts), parts[0].shape[1]
        device = parts[0].device
        self.dtype = parts[0].dtype
        self.q = torch.empty((rows, columns), dtype=torch.float8_e4m3fn, device=device)
        self.scale = torch.empty((rows, 1), dtype=torch.float32, device=device)
        at = 0
        for part in parts:
            self.q[at : at + len(part)], self.scale[at : at + len(part)] = reference.quantise_rows(part)
            at += len(part)
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        self.q_t, self.scale_t = reference.quantise_rows(whole.T.contiguous())  # (K, N), (K, 1)

    def forward(self, x: Inputs) -> Tensor:
        return self._product(x, self.q, self.scale)

    def backward(self, dy: Inputs) -> Tensor:
        return self._product(dy, self.q_t, self.scale_t)

    def _product(self, x: Inputs, q: Tensor, scale: Tensor) -> Tensor:
        if x.q.is_cuda:
            return torch._scaled_mm(x.q, q.T, x.scale, scale.T, out_dtype=self.dtype, use_fast_accum=FAST_ACCUMULATION)
        return ((x.q.float() @ q.float().T) * x.scale * scale.T).to(self.dtype)

    def release(self) -> None:
        """Nothing was unpacked."""


class Nf4:
    """bitsandbytes' NF4: blocks of 64 weights, their scales quantised too if `double_quant`.

    Unpacked for a product, until `release`.
    """

    fp8 = False

    def __init__(self, parts: list[Tensor], *, sharded: bool = False, double_quant: bool = True) -> None:
        from bitsandbytes.functional import quantize_4bit

        self.shapes = [tuple(part.shape) for part in parts]
        self.dtype, self.device = parts[0].dtype, parts[0].device
        self.parts = []
        for part in parts:
            packed, state = quantize_4bit(part.contiguous(), quant_type="nf4", compress_statistics=double_quant)
            self.parts.append((own_part(packed.view(-1)) if sharded else packed.view(-1), state))
        self.sharded = sharded
        self.unpacked: Tensor | None = None

    def weight(self) -> Tensor:
        """(N, K), cached until `release`."""
        if self.unpacked is None:
            rows, columns = sum(shape[0] for shape in self.shapes), self.shapes[0][1]
            out = torch.empty((rows, columns), dtype=self.dtype, device=self.device)
            at = 0
            for (packed, state), shape in zip(self.parts, self.shapes, strict=True):
                whole = gather(packed)[: shape[0] * shape[1] // 2] if self.sharded else packed
                dequantise(whole, state, out[at : at + shape[0]])
                at += shape[0]
            self.unpacked = out
        return self.unpacked

    def forward(self, x: Inputs) -> Tensor:
        return x.plain @ self.weight().T

    def backward(self, dy: Inputs) -> Tensor:
        return dy.plain @ self.weight()

    def release(self) -> None:
        """Free the unpacked weights; on a CPU they stay, since unpacking there takes as long as the product."""
        if self.device.type != "cpu":
            self.unpacked = None


class Biased:
    """Frozen weights whose product gets a bias, in the dtype of the activations: (N,)."""

    def __init__(self, weights: Dense | Fp8 | Nf4, bias: Tensor) -> None:
        self.weights, self.bias, self.fp8 = weights, bias, weights.fp8

    def forward(self, x: Inputs) -> Tensor:
        return self.weights.forward(x).add_(self.bias)

    def backward(self, dy: Inputs) -> Tensor:
        return self.weights.backward(dy)

    def release(self) -> None:
        """Free what was unpacked."""
        self.weights.release()


FAST_ACCUMULATION = True  # of the FP8 products: docs/decisions/0012-engine.md


def dequantise(packed: Tensor, state: Any, out: Tensor) -> None:
    """Unpack bitsandbytes' 4-bit weights into `out`, in one kernel on a GPU."""
    if not out.is_cuda:
        from bitsandbytes.functional import dequantize_4bit

        out.copy_(dequantize_4bit(packed.view(-1, 1), state).view(out.shape))
        return
    from noesis.training.engine import kernels

    block = 2048
    nested = state.nested
    empty = state.code
    kernels.nf4_dequantise[(-(-out.numel() // (2 * block)),)](
        packed, state.absmax, state.code,
        state.state2.code if nested else empty, state.state2.absmax if nested else empty,
        state.offset if nested else empty, out, out.numel(), NESTED=nested, BLOCK=block, num_warps=8,
    )  # fmt: skip


def own_part(flat: Tensor) -> Tensor:
    """This process's equal part of a flat tensor, the last one filled up with zeros."""
    world_size, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    size = -(-flat.numel() // world_size)
    part = flat.new_zeros(size)
    mine = flat[rank * size : (rank + 1) * size]
    part[: mine.numel()] = mine
    return part


def gather(part: Tensor) -> Tensor:
    """The parts of all processes, one after another."""
    whole = part.new_empty(part.numel() * torch.distributed.get_world_size())
    torch.distributed.all_gather_into_tensor(whole, part)
    return whole


FrozenWeights = Dense | Fp8 | Nf4 | Biased


def forward_products(frozen: Mapping[str, FrozenWeights], asking: Sequence[Asking[T]]) -> list[T]:
    """Run generators that ask for the same forward products in the same order; each product is made once for all."""
    return _shared({group: weights.forward for group, weights in frozen.items()}, asking, fp8=_fp8(frozen))


def backward_products(frozen: Mapping[str, FrozenWeights], asking: Sequence[Asking[T]]) -> list[T]:
    """As `forward_products`, for products with the transposed weights."""
    return _shared({group: weights.backward for group, weights in frozen.items()}, asking, fp8=_fp8(frozen))


def _fp8(frozen: Mapping[str, FrozenWeights]) -> bool:
    return any(weights.fp8 for weights in frozen.values())


def _shared(multiply: Mapping[str, Callable[[Inputs], Tensor]], asking: Sequence[Asking[T]], *, fp8: bool) -> list[T]:
    answers: list[Any] = [None] * len(asking)
    while True:
        asked, results = [], []
        for generator, answer in zip(asking, answers, strict=True):
            try:
                asked.append(generator.send(answer))
            except StopIteration as end:  # all of them end together
                results.append(end.value)
        if results:
            return results
        group, inputs = asked[0][0], [each for _, each in asked]
        if len(inputs) == 1:
            answers = [multiply[group](inputs[0])]
        else:
            lengths = [len(each.q if fp8 else each.plain) for each in inputs]
            answers = list(multiply[group](_joined(inputs, fp8=fp8)).split(lengths))


def _joined(inputs: Sequence[Inputs], *, fp8: bool) -> Inputs:
    """What a product reads of several inputs, one below the other."""
    if fp8:
        return Inputs(None, None, torch.cat([each.q for each in inputs]), torch.cat([each.scale for each in inputs]))
    return Inputs(torch.cat([each.plain for each in inputs]), None)


def store(
    precision: Precision,
    parts: list[Tensor],
    biases: list[Tensor],
    *,
    sharded: bool = False,
    double_quant: bool = True,
) -> FrozenWeights:
    """Weights (outputs, inputs) of projections with one input, stored in `precision`.

    Args:
        biases: (outputs,) of each projection, or none at all.
        sharded: spread over the GPUs; FP8 never is.
        double_quant: quantise NF4's scales too.
    """
    stored: Dense | Fp8 | Nf4
    if precision == "fp8":
        stored = Fp8(parts)
    elif precision == "nf4":
        stored = Nf4(parts, sharded=sharded, double_quant=double_quant)
    else:
        stored = ShardedDense(parts) if sharded else Dense(parts)
    return Biased(stored, torch.cat(biases)) if biases else stored
