"""One decoder layer, forward and backward by hand, in few passes over memory.

LoRA (Hu et al., https://arxiv.org/abs/2106.09685) on a frozen base needs no weight gradients of the base, so nothing is
saved for them. `gradient_checkpointing` chooses what is saved for the backward pass: `none` saves all, `selective`
recomputes the MLP's wide tensors and the norms, `full` saves the layer's input only (`planning/memory.kept_values`
counts the same). T tokens of a packed row, H hidden width, I intermediate width, R rank, u = scaled low-rank
activations (T, R).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from noesis.training.engine import attention, ops
from noesis.training.engine.attention import Segments
from noesis.training.engine.frozen import FrozenWeights
from noesis.training.engine.offload import Offload
from noesis.training.engine.ops import Dropout, Inputs

Tensor = Any


class Adapters:
    """The LoRA matrices of projections with one input: A_i (R, K) and B_i (N_i, R), float32 parameters.

    pairs: (A, B) of each projection; None for one without an adapter, which is computed with zeros
    sizes: N_i; inputs: K
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
        self.pairs, self.sizes, self.inputs = pairs, sizes, inputs
        self.rank, self.scale, self.dtype, self.device = rank, scale, dtype, device
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
    """a · b in float32, whatever the factors' dtype."""
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
    drops: list[list[Dropout]]  # four a layer: for the inputs of q/k/v, of o, of gate/up, of down
    incoming: Inputs | None = None  # the gradient from the layer above, already in FP8


@dataclass
class Saved:
    """Tensors of the forward pass that backward uses; None where they are to be recomputed."""

    h: Tensor
    x: Tensor | None = None  # normed input of q/k/v, with dropout
    rstd: Tensor | None = None
    qkv: Tensor | None = None  # rotated
    attended: Any = None  # attention.Attended
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
    frozen: dict[str, FrozenWeights]  # qkv, o, gate_up, down
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
        drops, saved = row.drops[self.index], Saved(h)
        x, saved.rstd = ops.norm(h, self.norm, self.eps, drops[0], fp8=self.fp8)
        saved.x = x.dropped
        u = self.adapters["qkv"].down(x.dropped)
        qkv = self.frozen["qkv"].forward(x)
        saved.qkv = ops.rotate(qkv, u, self.adapters["qkv"].matrices()[2], row.cos, row.sin, self.heads)
        saved.attended = attention.forward(*self._split(saved.qkv), row.segments, self.scale, self.backend)
        o = ops.prepare(saved.attended.out.reshape(len(h), -1), drops[1], fp8=self.fp8)
        saved.o = o.dropped
        u2 = self.adapters["o"].down(o.dropped)
        y = self.frozen["o"].forward(o)
        saved.h2 = ops.add_low_rank(y, u2, self.adapters["o"].matrices()[2][None], drop=NO_DROP, residual=h)
        saved.u = [u, u2]
        return self._mlp(saved, drops), saved

    def _mlp(self, saved: Saved, drops: list[Dropout]) -> Tensor:
        self._gate_up(saved, drops)
        act = ops.swiglu(saved.gu, saved.u[2], self.adapters["gate_up"].matrices()[2])
        a = ops.prepare(act, drops[3], fp8=self.fp8)
        saved.act = a.dropped
        u = self.adapters["down"].down(a.dropped)
        saved.u.append(u)
        y = self.frozen["down"].forward(a)
        return ops.add_low_rank(y, u, self.adapters["down"].matrices()[2][None], drop=NO_DROP, residual=saved.h2)

    def _gate_up(self, saved: Saved, drops: list[Dropout]) -> None:
        x, saved.rstd2 = ops.norm(saved.h2, self.norm2, self.eps, drops[2], fp8=self.fp8)
        saved.x2 = x.dropped
        if len(saved.u) == 2:
            saved.u.append(self.adapters["gate_up"].down(x.dropped))
        saved.gu = self.frozen["gate_up"].forward(x)

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k = self.heads
        heads = qkv.view(len(qkv), q + 2 * k, self.head_dim)
        return heads[:, :q], heads[:, q : q + k], heads[:, q + k :]

    def reduce(self, saved: Saved) -> Saved:
        """Drop what will be recomputed."""
        if self.checkpointing == "full":
            if self.offload is not None:
                self.offload.store(self.index, saved.h)
                return Saved(None)
            return Saved(saved.h)
        if self.checkpointing == "selective":
            saved.x = saved.x2 = saved.gu = saved.act = None
        return saved

    def restore(self, saved: Saved, row: Row) -> Saved:
        """Recompute what `reduce` dropped."""
        drops = row.drops[self.index]
        if self.checkpointing == "full":
            h = saved.h if self.offload is None else self.offload.load(self.index)
            return self.forward(h, row)[1]
        if self.checkpointing == "selective":
            x, _ = ops.norm(saved.h, self.norm, self.eps, drops[0], fp8=False)
            saved.x = x.dropped
            self._gate_up(saved, drops)
            act = ops.swiglu(saved.gu, saved.u[2], self.adapters["gate_up"].matrices()[2])
            saved.act = ops.prepare(act, drops[3], fp8=False).dropped
        return saved

    def backward(self, dh3: Tensor, saved: Saved, row: Row, *, first: bool) -> tuple[Tensor | None, list[Tensor]]:
        """(gradient of the input, None for the first layer; adapters' gradients in the order of `parameters`)."""
        drops, low, fp8 = row.drops[self.index], self.adapters, self.fp8
        if row.incoming is not None and row.incoming.plain.data_ptr() == dh3.data_ptr():
            d = row.incoming
        else:
            d = ops.prepare(dh3, NO_DROP, fp8=fp8)
        du, g_down = low["down"].backward(dh3, saved.u[3], saved.act)
        dact = self.frozen["down"].backward(d)
        saved.act = None
        dgu = ops.swiglu_backward(
            saved.gu, saved.u[2], low["gate_up"].matrices()[2], dact, du, low["down"].matrices()[1][0], drops[3]
        )
        saved.gu = dact = None
        du, g_gate_up = low["gate_up"].backward(dgu, saved.u[2], saved.x2)
        dx = self.frozen["gate_up"].backward(ops.prepare(dgu, NO_DROP, fp8=fp8))
        dgu = saved.x2 = None
        dx = ops.add_low_rank(dx, du, low["gate_up"].matrices()[1], drop=drops[2])
        d = ops.norm_backward(dx, saved.h2, saved.rstd2, self.norm2, dh3, fp8=fp8)

        du, g_o = low["o"].backward(d.plain, saved.u[1], saved.o)
        do = self.frozen["o"].backward(d)
        do = ops.add_low_rank(do, du, low["o"].matrices()[1], drop=drops[1])
        q, k, v = self._split(saved.qkv)
        dq, dk, dv = attention.backward(
            do.view(q.shape), q, k, v, saved.attended, row.segments, self.scale, self.backend
        )
        saved.attended = saved.qkv = saved.o = do = None
        dqkv = ops.rotate_backward(dq, dk, dv, row.cos, row.sin)
        du, g_qkv = low["qkv"].backward(dqkv, saved.u[0], saved.x)
        gradients = [*g_qkv, *g_o, *g_gate_up, *g_down]
        if first:
            return None, gradients
        dx = self.frozen["qkv"].backward(ops.prepare(dqkv, NO_DROP, fp8=fp8))
        dx = ops.add_low_rank(dx, du, low["qkv"].matrices()[1], drop=drops[0])
        row.incoming = ops.norm_backward(dx, saved.h, saved.rstd, self.norm, d.plain, fp8=fp8)
        return row.incoming.plain, gradients

    def release(self) -> None:
        """Free unpacked weights."""
        for weights in self.frozen.values():
            weights.release()
        if self.checkpointing == "full":
            for adapters in self.adapters.values():
                adapters.copies = None


NO_DROP = Dropout(0)


class DecoderLayer(torch.autograd.Function):
    """The layer as autograd sees it: inputs h, the layer, the row, the adapters' parameters."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, layer: Layer, row: Row, *parameters: Tensor) -> Tensor:
        out, saved = layer.forward(h, row)
        layer.release()
        ctx.layer, ctx.row, ctx.saved = layer, row, layer.reduce(saved)
        return out

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> Any:  # type: ignore[override]
        layer, saved = ctx.layer, ctx.layer.restore(ctx.saved, ctx.row)
        ctx.saved = None
        dh, gradients = layer.backward(dh.contiguous(), saved, ctx.row, first=not ctx.needs_input_grad[0])
        layer.release()
        return (dh, None, None, *gradients)
