"""One decoder layer, forward and backward by hand, in few passes over memory.

LoRA (Hu et al., https://arxiv.org/abs/2106.09685) on a frozen base needs no weight gradients of the base, so nothing is
saved for them. `gradient_checkpointing` chooses what is saved for the backward pass: `none` saves all, `selective`
recomputes the MLP's wide tensors and the norms, `full` saves the layer's input only (`planning/memory.kept_values`
counts the same). What families of models differ in is in the layer's fields; there is no other layer. T tokens of a
packed row, H hidden width, I intermediate width, R rank, u = scaled low-rank activations (T, R).

Layers that differ in their adapters alone share the frozen weights' products (`frozen.py`): each is written as a
generator that asks for one product at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from noesis.core.families.architecture import Activation
from noesis.training.engine import attention, ops
from noesis.training.engine.adapters import Adapters
from noesis.training.engine.attention import Segments
from noesis.training.engine.blockwise import Scores
from noesis.training.engine.frozen import Asking, FrozenWeights, backward_products, forward_products
from noesis.training.engine.join import Join
from noesis.training.engine.offload import Offload
from noesis.training.engine.ops import NO_DROP, Dropout, Inputs
from noesis.training.engine.rotary import Angles, HeadNorms

Tensor = Any
Attend = Callable[["Layer", Tensor, Tensor, Tensor], attention.Attended]  # of the layer's q, k, v: (T, heads, D)


@dataclass
class Row:
    """What all layers of one forward pass share."""

    segments: Segments
    angles: dict[str, Angles]  # by the layers' `rotary`
    drops: list[list[Dropout]]  # four a layer: for the inputs of q/k/v, of o, of gate/up, of down
    incoming: Inputs | None = None  # the gradient from the layer above, already in FP8
    attend: Attend | None = None  # what attention is, where it is not within the row's segments


@dataclass
class Saved:
    """Tensors of the forward pass that backward uses; None where they are to be recomputed."""

    h: Tensor
    x: Tensor | None = None  # normed input of q/k/v, with dropout
    rstd: Tensor | None = None
    qkv: Tensor | None = None  # rotated
    raw: Tensor | None = None  # q and k before their heads' norms
    attended: Any = None  # attention.Attended
    o: Tensor | None = None  # attention's output with dropout
    joined: list[Tensor] = field(default_factory=list)  # what the join after attention needs
    h2: Tensor | None = None
    x2: Tensor | None = None
    rstd2: Tensor | None = None
    gu: Tensor | None = None  # gate and up without the adapters' part
    act: Tensor | None = None  # with dropout
    joined2: list[Tensor] = field(default_factory=list)
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
    scores: Scores
    rotary: str
    head_norms: HeadNorms | None
    activation: Activation
    joins: tuple[Join, Join]  # after attention, after the MLP
    frozen: dict[str, FrozenWeights]  # qkv, o, gate_up, down
    adapters: dict[str, Adapters]
    checkpointing: str
    backend: attention.Backend
    offload: Offload | None = None

    @property
    def fp8(self) -> bool:
        return bool(self.frozen["qkv"].fp8)

    def parameters(self) -> list[Tensor]:
        return [p for group in ("qkv", "o", "gate_up", "down") for p in self.adapters[group].parameters()]

    def forward(self, h: Tensor, row: Row) -> tuple[Tensor, Saved]:
        """h: (T, H) → (T, H), and everything that was computed on the way."""
        return forward_products(self.frozen, [self.asking_forward(h, row)])[0]

    def asking_forward(self, h: Tensor, row: Row) -> Asking[tuple[Tensor, Saved]]:
        """As `forward`, asking for the frozen weights' products."""
        drops, saved = row.drops[self.index], Saved(h)
        x, saved.rstd = ops.norm(h, self.norm, self.eps, drops[0], fp8=self.fp8)
        saved.x = x.dropped
        u = self.adapters["qkv"].down(x.dropped)
        qkv = yield "qkv", x
        low = self.adapters["qkv"]
        saved.qkv, saved.raw = ops.rotate(
            qkv, low.by_part(u), low.matrices()[2], row.angles[self.rotary], self.heads, self.head_norms
        )
        if row.attend is not None:
            saved.attended = row.attend(self, *self._split(saved.qkv))
        else:
            saved.attended = attention.forward(*self._split(saved.qkv), row.segments, self.scores, self.backend)
        o = ops.prepare(saved.attended.out.reshape(len(h), -1), drops[1], fp8=self.fp8)
        saved.o = o.dropped
        u2 = self.adapters["o"].down(o.dropped)
        y = yield "o", o
        saved.h2, saved.joined = self.joins[0].forward(y, u2, self.adapters["o"].matrices()[2][None], h)
        saved.u = [u, u2]
        yield from self._gate_up(saved, drops)
        a = ops.prepare(self._activate(saved), drops[3], fp8=self.fp8)
        saved.act = a.dropped
        u = self.adapters["down"].down(a.dropped)
        saved.u.append(u)
        y = yield "down", a
        out, saved.joined2 = self.joins[1].forward(y, u, self.adapters["down"].matrices()[2][None], saved.h2)
        return out, saved

    def _activate(self, saved: Saved) -> Tensor:
        low = self.adapters["gate_up"]
        return ops.glu(saved.gu, low.by_part(saved.u[2]), low.matrices()[2], self.activation)

    def _gate_up(self, saved: Saved, drops: list[Dropout]) -> Asking[None]:
        x, saved.rstd2 = ops.norm(saved.h2, self.norm2, self.eps, drops[2], fp8=self.fp8)
        saved.x2 = x.dropped
        if len(saved.u) == 2:
            saved.u.append(self.adapters["gate_up"].down(x.dropped))
        saved.gu = yield "gate_up", x

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

    def asking_restored(self, saved: Saved, row: Row) -> Asking[Saved]:
        """Recompute what `reduce` dropped."""
        drops = row.drops[self.index]
        if self.checkpointing == "full":
            h = saved.h if self.offload is None else self.offload.load(self.index)
            return (yield from self.asking_forward(h, row))[1]
        if self.checkpointing == "selective":
            x, _ = ops.norm(saved.h, self.norm, self.eps, drops[0], fp8=False)
            saved.x = x.dropped
            yield from self._gate_up(saved, drops)
            saved.act = ops.prepare(self._activate(saved), drops[3], fp8=False).dropped
        return saved

    def asking_backward(
        self, dh3: Tensor, saved: Saved, row: Row, *, first: bool
    ) -> Asking[tuple[Tensor | None, list[Tensor]]]:
        """(gradient of the input, None for the first layer; adapters' gradients in the order of `parameters`)."""
        drops, low, fp8 = row.drops[self.index], self.adapters, self.fp8
        if row.incoming is not None and row.incoming.plain.data_ptr() == dh3.data_ptr():
            d = row.incoming
        else:
            d = ops.prepare(dh3, NO_DROP, fp8=fp8)
        d = self.joins[1].backward(d, saved.joined2, fp8=fp8)
        du, g_down = low["down"].backward(d.plain, saved.u[3], saved.act)
        dact = yield "down", d
        saved.act = None
        dgu = ops.glu_backward(
            saved.gu, low["gate_up"].by_part(saved.u[2]), low["gate_up"].matrices()[2],
            dact, du, low["down"].matrices()[1][0], drops[3], self.activation,
        )  # fmt: skip
        saved.gu = dact = None
        du, g_gate_up = low["gate_up"].backward(dgu, saved.u[2], saved.x2)
        dx = yield "gate_up", ops.prepare(dgu, NO_DROP, fp8=fp8)
        dgu = saved.x2 = None
        dx = ops.add_low_rank(dx, du, low["gate_up"].matrices()[1], drop=drops[2])
        dh2 = ops.norm_backward(dx, saved.h2, saved.rstd2, self.norm2, dh3, fp8=fp8)

        d = self.joins[0].backward(dh2, saved.joined, fp8=fp8)
        du, g_o = low["o"].backward(d.plain, saved.u[1], saved.o)
        do = yield "o", d
        do = ops.add_low_rank(do, du, low["o"].matrices()[1], drop=drops[1])
        q, k, v = self._split(saved.qkv)
        dq, dk, dv = attention.backward(
            do.view(q.shape), q, k, v, saved.attended, row.segments, self.scores, self.backend
        )
        saved.attended = saved.qkv = saved.o = do = None
        dqkv = ops.rotate_backward(dq, dk, dv, row.angles[self.rotary], saved.raw, self.head_norms)
        du, g_qkv = low["qkv"].backward(dqkv, saved.u[0], saved.x)
        gradients = [*g_qkv, *g_o, *g_gate_up, *g_down]
        if first:
            return None, gradients
        dx = yield "qkv", ops.prepare(dqkv, NO_DROP, fp8=fp8)
        dx = ops.add_low_rank(dx, du, low["qkv"].matrices()[1], drop=drops[0])
        row.incoming = ops.norm_backward(dx, saved.h, saved.rstd, self.norm, dh2.plain, fp8=fp8)
        return row.incoming.plain, gradients

    def release(self) -> None:
        """Free unpacked weights."""
        for weights in self.frozen.values():
            weights.release()
        if self.checkpointing == "full":
            for adapters in self.adapters.values():
                adapters.copies = None


class DecoderLayer(torch.autograd.Function):
    """The layer as autograd sees it; several at once where they differ in their adapters alone.

    Inputs: the layers, the row of each, the hidden states of each, then the adapters' parameters of all, in order.
    """

    @staticmethod
    def forward(ctx: Any, layers: list[Layer], rows: list[Row], *tensors: Tensor) -> tuple[Tensor, ...]:
        asking = [layer.asking_forward(h, row) for layer, row, h in zip(layers, rows, tensors, strict=False)]
        found = forward_products(layers[0].frozen, asking)
        for layer in layers:
            layer.release()
        ctx.layers, ctx.rows = layers, rows
        ctx.saved = [layer.reduce(saved) for layer, (_, saved) in zip(layers, found, strict=True)]
        return tuple(out for out, _ in found)

    @staticmethod
    def backward(ctx: Any, *dhs: Tensor) -> Any:
        layers, rows, frozen = ctx.layers, ctx.rows, ctx.layers[0].frozen
        restoring = [
            layer.asking_restored(saved, row) for layer, saved, row in zip(layers, ctx.saved, rows, strict=True)
        ]
        restored = forward_products(frozen, restoring)
        ctx.saved = None
        first = not ctx.needs_input_grad[2]
        asking = [
            layer.asking_backward(dh.contiguous(), saved, row, first=first)
            for layer, dh, saved, row in zip(layers, dhs, restored, rows, strict=True)
        ]
        found = backward_products(frozen, asking)
        for layer in layers:
            layer.release()
        return (None, None, *(dh for dh, _ in found), *(g for _, gradients in found for g in gradients))
