"""LoRA matrices (Hu et al., https://arxiv.org/abs/2106.09685) of projections with one input, as the layer uses them.

T tokens of a packed row, K inputs, N outputs, R rank, G projections, u = scaled low-rank activations (T, G·R).
"""

from __future__ import annotations

from typing import Any

import torch

Tensor = Any


class Adapters:
    """The LoRA matrices of projections with one input: A_i (R, K) and B_i (N_i, R), float32 parameters.

    pairs: (A, B) of each projection; None for one without an adapter, which is computed with zeros
    sizes: N_i; inputs: K
    shared: how many parts the one projection has that stands for several (q, k and v in one), whose A they share
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
        shared: int = 1,
    ) -> None:
        self.pairs, self.sizes, self.inputs, self.shared = pairs, sizes, inputs, shared
        self.rank, self.scale, self.dtype, self.device = rank, scale, dtype, device
        self.copies: tuple[Tensor, Tensor, Tensor] | None = None

    def parameters(self) -> list[Tensor]:
        """A and B of each projection that has them, in order."""
        return [p for pair in self.pairs if pair for p in pair]

    def of_others(self, pairs: list[tuple[Tensor, Tensor] | None]) -> Adapters:
        """Other matrices for the same projections."""
        like = (self.sizes, self.inputs, self.rank, self.scale, self.dtype, self.device, self.shared)
        return Adapters(pairs, *like)

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

    def switch_off(self) -> None:
        """Add nothing until the next step, or until the copies are made again."""
        a, at, b = self.matrices()
        self.copies = (a, at, torch.zeros_like(b))

    def down(self, x: Tensor) -> Tensor:
        """u = scale · x · Aᵀ: (T, G·R)."""
        a = self.matrices()[0]
        return torch.addmm(x.new_empty(()), x, a.T, beta=0, alpha=self.scale)

    def by_part(self, u: Tensor) -> Tensor:
        """u as the kernels take it: a group of columns for each part, the same one where parts share their A."""
        return u if self.shared == 1 else u.repeat(1, self.shared)

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
