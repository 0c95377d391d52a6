"""One decoder layer, forward and backward by hand: frozen products, adapters, norms, attention and SwiGLU as few passes over memory.

LoRA on a frozen base needs no weight gradients of the base, so nothing is kept for them. What is kept for the backward pass is chosen by
`gradient_checkpointing`: `none` keeps all, `selective` recomputes the MLP's wide tensors and the norms, `full` keeps the layer's input only.
T tokens of a packed row, H hidden width, I intermediate width, R rank, u = scaled low-rank activations (T, R).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from noesis.training.engine import attention, ops
from noesis.training.engine.attention import Attended, Segments
from noesis.training.engine.offload import Offload
from noesis.training.engine.ops import Dropout, Inputs

Tensor = Any


class Adapters:
    """The LoRA matrices of projections with one input: A_i (R, K) and B_i (N_i, R), float32 parameters; copies in the activations' type.

    A projection without an adapter has None twice and takes part with zeros.
    """

    def __init__(
        self,
        pairs: list[tuple[Tensor, Tensor] | None],
        sizes: list[int],
        inputs: int,
        rank: int,
        scale: float,
        dtype: Any,
        device: Any,
    ) -> None:
        self.pairs, self.sizes, self.inputs, self.rank, self.scale, self.dtype, self.device = (
            pairs,
            sizes,
            inputs,
            rank,
            scale,
            dtype,
            device,
        )
        self.copies: tuple[Tensor, Tensor, Tensor] | None = None

    def parameters(self) -> list[Tensor]:
        """A and B of each projection that has them, in order."""
        return [p for pair in self.pairs if pair for p in pair]

    def matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """(A stacked (G·R, K), A transposed (G, K, R), B stacked (N, R)), made once a step."""
        if self.copies is None:
            with torch.no_grad():
                zeros = {"dtype": self.dtype, "device": self.device}
                a = [p[0].to(self.dtype) if p else torch.zeros((self.rank, self.inputs), **zeros) for p in self.pairs]
                b = [
                    p[1].to(self.dtype) if p else torch.zeros((n, self.rank), **zeros)
                    for p, n in zip(self.pairs, self.sizes, strict=True)
                ]
                self.copies = (torch.cat(a), torch.stack([x.T for x in a]), torch.cat(b))
        return self.copies

    def down(self, x: Tensor) -> Tensor:
        """u = scale · x · Aᵀ: (T, G·R)."""
        a = self.matrices()[0]
        return torch.addmm(x.new_empty(()), x, a.T, beta=0, alpha=self.scale)

    def backward(self, dy: Tensor, u: Tensor, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(du: (T, G·R), gradients in the order of `parameters`). dy: (T, N), x: (T, K) with dropout."""
        b = self.matrices()[2]
        r, at = self.rank, 0
        du = dy.new_empty((len(dy), len(self.pairs) * r))
        out_b = []
        for i, size in enumerate(self.sizes):
            part = dy[:, at : at + size]
            torch.addmm(
                du.new_empty(()), part, b[at : at + size], beta=0, alpha=self.scale, out=du[:, i * r : (i + 1) * r]
            )
            if self.pairs[i]:
                out_b.append(_float_product(part.T, u[:, i * r : (i + 1) * r]))
            at += size
        da = _float_product(du.T, x)
        out_a = [da[i * r : (i + 1) * r] for i, pair in enumerate(self.pairs) if pair]
        return du, [g for pair in zip(out_a, out_b, strict=True) for g in pair]


def _float_product(a: Tensor, b: Tensor) -> Tensor:
    """a · b in float32, whatever the factors' type."""
    if a.dtype == torch.float32:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a.float() @ b.float()) if a.dtype == torch.float16 else (a @ b).float()


@dataclass
class Row:
    """What all layers of one forward pass share."""

    segments: Segments
    cos: Tensor  # (T, D/2), float32
    sin: Tensor
    drops: list[list[Dropout]]  # four a layer: inputs of q/k/v, of o, of gate/up, of down
    incoming: Inputs | None = None  # the gradient that the layer above handed down, already in FP8


@dataclass
class Saved:
    """Tensors of the forward pass that backward uses; None where they are to be computed again."""

    h: Tensor
    x: Tensor | None = None  # normed input of q/k/v, with dropout
    rstd: Tensor | None = None
    qkv: Tensor | None = None  # rotated
    attended: Attended | None = None
    o: Tensor | None = None  # attention's output with dropout
    h2: Tensor | None = None
    x2: Tensor | None = None
    rstd2: Tensor | None = None
    gu: Tensor | None = None  # gate and up without the adapters' part
    act: Tensor | None = None  # with dropout
    u: list[Tensor] = field(default_factory=list)  # of q/k/v, o, gate/up, down


@dataclass
class Layer:
    """One layer's frozen weights and adapters."""

    index: int
    norm: Tensor
    norm2: Tensor
    eps: float
    heads: tuple[int, int]  # of queries, of keys
    head_dim: int
    frozen: dict[str, Any]  # qkv, o, gate_up, down
    adapters: dict[str, Adapters]
    checkpointing: str
    backend: attention.Backend
    offload: Offload | None = None

    @property
    def fp8(self) -> bool:
        return bool(self.frozen["qkv"].fp8)

    @property
    def scale(self) -> float:
        return float(self.head_dim**-0.5)

    def parameters(self) -> list[Tensor]:
        return [p for group in ("qkv", "o", "gate_up", "down") for p in self.adapters[group].parameters()]

    def forward(self, h: Tensor, row: Row) -> tuple[Tensor, Saved]:
        """h: (T, H) → (T, H), and everything that was computed on the way."""
        drops, kept = row.drops[self.index], Saved(h)
        x, kept.rstd = ops.norm(h, self.norm, self.eps, drops[0], fp8=self.fp8)
        kept.x = x.dropped
        u = self.adapters["qkv"].down(x.dropped)
        qkv = self.frozen["qkv"].forward(x)
        kept.qkv = ops.rotate(qkv, u, self.adapters["qkv"].matrices()[2], row.cos, row.sin, self.heads)
        kept.attended = attention.forward(*self._split(kept.qkv), row.segments, self.scale, self.backend)
        o = ops.prepare(kept.attended.out.reshape(len(h), -1), drops[1], fp8=self.fp8)
        kept.o = o.dropped
        u2 = self.adapters["o"].down(o.dropped)
        y = self.frozen["o"].forward(o)
        kept.h2 = ops.add_low_rank(y, u2, self.adapters["o"].matrices()[2][None], drop=NO_DROP, residual=h)
        kept.u = [u, u2]
        return self._mlp(kept, drops), kept

    def _mlp(self, kept: Saved, drops: list[Dropout]) -> Tensor:
        self._gate_up(kept, drops)
        act = ops.swiglu(kept.gu, kept.u[2], self.adapters["gate_up"].matrices()[2])
        a = ops.prepare(act, drops[3], fp8=self.fp8)
        kept.act = a.dropped
        u = self.adapters["down"].down(a.dropped)
        kept.u.append(u)
        y = self.frozen["down"].forward(a)
        return ops.add_low_rank(y, u, self.adapters["down"].matrices()[2][None], drop=NO_DROP, residual=kept.h2)

    def _gate_up(self, kept: Saved, drops: list[Dropout]) -> None:
        x, kept.rstd2 = ops.norm(kept.h2, self.norm2, self.eps, drops[2], fp8=self.fp8)
        kept.x2 = x.dropped
        if len(kept.u) == 2:
            kept.u.append(self.adapters["gate_up"].down(x.dropped))
        kept.gu = self.frozen["gate_up"].forward(x)

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k = self.heads
        heads = qkv.view(len(qkv), q + 2 * k, self.head_dim)
        return heads[:, :q], heads[:, q : q + k], heads[:, q + k :]

    def reduce(self, kept: Saved) -> Saved:
        """Forget what will be computed again."""
        if self.checkpointing == "full":
            if self.offload is not None:
                self.offload.store(self.index, kept.h)
                return Saved(None)
            return Saved(kept.h)
        if self.checkpointing == "selective":
            kept.x = kept.x2 = kept.gu = kept.act = None
        return kept

    def restore(self, kept: Saved, row: Row) -> Saved:
        """Compute again what `reduce` forgot."""
        drops = row.drops[self.index]
        if self.checkpointing == "full":
            h = kept.h if self.offload is None else self.offload.load(self.index)
            return self.forward(h, row)[1]
        if self.checkpointing == "selective":
            x, _ = ops.norm(kept.h, self.norm, self.eps, drops[0], fp8=False)
            kept.x = x.dropped
            self._gate_up(kept, drops)
            act = ops.swiglu(kept.gu, kept.u[2], self.adapters["gate_up"].matrices()[2])
            kept.act = ops.prepare(act, drops[3], fp8=False).dropped
        return kept

    def backward(self, dh3: Tensor, kept: Saved, row: Row, *, first: bool) -> tuple[Tensor | None, list[Tensor]]:
        """(gradient of the layer's input, or None for the first layer; gradients of the adapters in the order of `parameters`)."""
        drops, low, fp8 = row.drops[self.index], self.adapters, self.fp8
        d = (
            row.incoming
            if row.incoming is not None and row.incoming.plain.data_ptr() == dh3.data_ptr()
            else ops.prepare(dh3, NO_DROP, fp8=fp8)
        )
        du, g_down = low["down"].backward(dh3, kept.u[3], kept.act)
        dact = self.frozen["down"].backward(d)
        kept.act = None
        dgu = ops.swiglu_backward(
            kept.gu, kept.u[2], low["gate_up"].matrices()[2], dact, du, low["down"].matrices()[1][0], drops[3]
        )
        kept.gu = dact = None
        du, g_gate_up = low["gate_up"].backward(dgu, kept.u[2], kept.x2)
        dx = self.frozen["gate_up"].backward(ops.prepare(dgu, NO_DROP, fp8=fp8))
        dgu = kept.x2 = None
        dx = ops.add_low_rank(dx, du, low["gate_up"].matrices()[1], drop=drops[2])
        d = ops.norm_backward(dx, kept.h2, kept.rstd2, self.norm2, dh3, fp8=fp8)

        du, g_o = low["o"].backward(d.plain, kept.u[1], kept.o)
        do = self.frozen["o"].backward(d)
        do = ops.add_low_rank(do, du, low["o"].matrices()[1], drop=drops[1])
        q, k, v = self._split(kept.qkv)
        assert kept.attended is not None
        dq, dk, dv = attention.backward(
            do.view(q.shape), q, k, v, kept.attended, row.segments, self.scale, self.backend
        )
        kept.attended = kept.qkv = kept.o = do = None
        dqkv = ops.rotate_backward(dq, dk, dv, row.cos, row.sin)
        du, g_qkv = low["qkv"].backward(dqkv, kept.u[0], kept.x)
        gradients = [*g_qkv, *g_o, *g_gate_up, *g_down]
        if first:
            return None, gradients
        dx = self.frozen["qkv"].backward(ops.prepare(dqkv, NO_DROP, fp8=fp8))
        dx = ops.add_low_rank(dx, du, low["qkv"].matrices()[1], drop=drops[0])
        row.incoming = ops.norm_backward(dx, kept.h, kept.rstd, self.norm, d.plain, fp8=fp8)
        return row.incoming.plain, gradients

    def release(self) -> None:
        """Give unpacked weights back."""
        for weights in self.frozen.values():
            weights.release()
        if self.checkpointing == "full":
            for adapters in self.adapters.values():
                adapters.copies = None


NO_DROP = Dropout(0)


class DecoderLayer(torch.autograd.Function):
    """The layer to autograd: inputs h, the layer, the row, the adapters' parameters."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, layer: Layer, row: Row, *parameters: Tensor) -> Tensor:
        out, kept = layer.forward(h, row)
        layer.release()
        ctx.layer, ctx.row, ctx.kept = layer, row, layer.reduce(kept)
        return out

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> Any:  # type: ignore[override]
        layer, kept = ctx.layer, ctx.layer.restore(ctx.kept, ctx.row)
        ctx.kept = None
        dh, gradients = layer.backward(dh.contiguous(), kept, ctx.row, first=not ctx.needs_input_grad[0])
        layer.release()
        return (dh, None, None, *gradients)
