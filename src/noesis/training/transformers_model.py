"""transformers' own layers behind the engine's interface: packed rows in, loss out. For what the engine does not know.

The sequences of a row are kept apart by attention alone (`packed_attention`); positions restart at each. A model whose
layers are not all attention, or which does not let its attention be exchanged, gets its sequences one at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from noesis.core.config import Config
from noesis.core.device import Device
from noesis.core.errors import TrainingError
from noesis.core.i18n import _
from noesis.llm.generation.static_decoder import attends_in_every_layer
from noesis.planning.setup import Setup
from noesis.training.anchors import Anchors
from noesis.training.base_model import EAGER_TOKENS, compute_context, load_base, lora_config
from noesis.training.divergence import LogitsDivergence
from noesis.training.dropout import use_byte_dropout
from noesis.training.engine import ops
from noesis.training.packing import PackedRow

Tensor = Any
ATTENTION = "noesis_packed"  # its name in transformers
FLASH_WIDTH = 256  # widest head that FlashAttention takes, in multiples of 8


def build(folder: Path, setup: Setup, config: Config, device: Device, *, longest: int) -> Any:
    """The PEFT model with its frozen base; `model(PackedRow, divisor)` is the loss.

    Args:
        longest: tokens of the longest row.
    """
    from peft import get_peft_model

    base = load_base(folder, config, device, longest=longest)
    if setup.gradient_checkpointing != "none":
        base.gradient_checkpointing_enable({"use_reentrant": False})
    model = get_peft_model(base, lora_config(config, folder))
    for parameter in model.parameters():  # in bfloat16, steps of 2e-4 round away
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if device.kind == "cpu":
        use_byte_dropout(model)
    model.train()  # which checkpointing asks for; `TransformersModel.training` decides about dropout
    model.engine = TransformersModel(model, config, device)
    # DistributedDataParallel would broadcast the frozen base to every GPU
    model._ddp_params_and_buffers_to_ignore = [n for n, p in model.named_parameters() if not p.requires_grad] + [
        n for n, _ in model.named_buffers()
    ]
    model.forward = model.engine.loss
    return model


class TransformersModel:
    """The forward pass of a packed row."""

    def __init__(self, model: Any, config: Config, device: Device) -> None:
        self.model, self.config, self.on = model, config, device
        self.base = model.get_base_model()
        self.device = self.base.device
        self.packs = can_be_packed(self.base)
        self.divergence: Tensor = None  # of the last row that had anchors, without its weight
        # a soft cap is a tanh, whose backward pass reads the logits that the loss overwrites
        self.capped = bool(getattr(self.base.config, "final_logit_softcapping", None))
        if self.packs:
            _register()
            self.base.set_attn_implementation(ATTENTION)

    @property
    def training(self) -> bool:
        """Whether LoRA's dropout is on."""
        return bool(self.model.training)

    @training.setter
    def training(self, on: bool) -> None:
        self.model.train(on)

    def begin_step(self) -> None:
        """Nothing is cached from step to step."""

    def loss(self, packed: PackedRow, divisor: Tensor, anchors: Anchors | None = None) -> Tensor:
        """Summed loss of the row's trained tokens / `divisor` (a float32 scalar on the device), as the engine's."""
        if anchors is None:
            return self.token_losses(packed).sum() / divisor
        logits, targets = self._logits(packed), torch.tensor(packed.targets, device=self.device)
        places, others = (
            torch.tensor(x, dtype=torch.int64, device=self.device) for x in (anchors.places, anchors.others)
        )
        losses = CrossEntropy.apply(logits[others], targets[others])
        divergences = LogitsDivergence.apply(logits[places], self._base_logits(anchors.row), 0.0)
        self.divergence = divergences.sum() / divisor
        return losses.sum() / divisor + anchors.weight * self.divergence

    def token_losses(self, packed: PackedRow) -> Tensor:
        """Negative log-likelihood of each of the row's trained tokens: (trained tokens,) float32."""
        found = [
            CrossEntropy.apply(self._part_logits(ids, positions, lengths), torch.tensor(targets, device=self.device))
            for ids, positions, targets, lengths in self._parts(packed)
        ]
        return torch.cat(found) if found else self._nothing()

    def _base_logits(self, packed: PackedRow) -> Tensor:
        """Of the base alone at the row's trained tokens: (trained tokens, V)."""
        training, self.training = self.training, False
        try:
            with torch.no_grad(), self.model.disable_adapter():
                return self._logits(packed)
        finally:
            self.training = training

    def _logits(self, packed: PackedRow) -> Tensor:
        """At the row's trained tokens: (trained tokens, V)."""
        return torch.cat([self._part_logits(ids, at, lengths) for ids, at, _, lengths in self._parts(packed)])

    def _parts(self, packed: PackedRow) -> list[tuple[list[int], list[int], list[int], list[int]]]:
        """(ids, positions, targets, lengths) of what is computed together: the row, or each sequence that trains."""
        parts = [(packed.input_ids, packed.positions, packed.targets, packed.lengths)]
        if not self.packs:
            parts = list(_sequences(packed))
        return [part for part in parts if part[1]]

    def states(self, packed: PackedRow) -> Tensor:
        """Hidden states after the last norm, for another head than the output layer: (T, H), with gradient."""
        parts = [(packed.input_ids, packed.lengths)]
        if not self.packs:
            parts = [(ids, lengths) for ids, _, _, lengths in _sequences(packed)]
        with compute_context(self.model, self.config, self.on):
            found = [self.base.base_model(**self._inputs(*part)).last_hidden_state[0] for part in parts]
        return torch.cat(found)

    def _inputs(self, ids: list[int], lengths: list[int]) -> dict[str, Any]:
        """What transformers' layers take of a row."""
        bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(self.device)
        row = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": lengths, "max_length_k": max(lengths)}
        return {
            "input_ids": torch.tensor([ids], device=self.device),
            "position_ids": torch.tensor([[i for n in lengths for i in range(n)]], device=self.device),
            "use_cache": False,
            **(row if self.packs else {}),
        }

    def _part_logits(self, ids: list[int], positions: list[int], lengths: list[int]) -> Tensor:
        keep = torch.tensor(positions, device=self.device)
        with compute_context(self.model, self.config, self.on):
            logits = self.base(**self._inputs(ids, lengths), logits_to_keep=keep).logits[0]
        return logits.clone() if self.capped else logits.contiguous()

    def _nothing(self) -> Tensor:
        """Of a row that trains nothing: a zero on which every adapter depends, as several GPUs need it."""
        return torch.stack([p.sum() for p in self.model.parameters() if p.requires_grad]).sum()[None] * 0


class CrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    """logits: (trained tokens, V), overwritten by their gradient, targets: (trained tokens,) → losses, float32."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        losses = ops.cross_entropy(logits, targets, torch.ones(1, device=logits.device))
        ctx.gradient = logits
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:  # type: ignore[override]
        gradient = ctx.gradient.mul_(upstream[:, None])
        ctx.gradient = None
        return gradient, None


def can_be_packed(base: Any) -> bool:
    """Whether all that joins two tokens in this model is attention that can be exchanged."""
    return bool(getattr(base, "_supports_attention_backend", False)) and attends_in_every_layer(base)


def _sequences(packed: PackedRow) -> Any:
    """(ids, positions, targets, lengths) of each sequence of a row."""
    start = 0
    for length in packed.lengths:
        own = [
            (p - start, t) for p, t in zip(packed.positions, packed.targets, strict=True) if start <= p < start + length
        ]
        yield packed.input_ids[start : start + length], [p for p, _ in own], [t for _, t in own], [length]
        start += length


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION, packed_attention)
    AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)  # the bounds are the mask


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    max_length_q: list[int],
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence, as transformers calls it.

    Args:
        query: (1, heads, T, D); key and value may have fewer heads.
        max_length_q: the lengths of all sequences, where transformers' convention has the longest.

    Returns:
        (1, T, heads, D)
    """
    if unknown := [name for name in ("s_aux", "position_bias") if others.get(name) is not None]:
        raise TrainingError(
            _(
                "this model's attention has {unknown}, which rows of several sequences can't be trained with: "
                "choose a model of another family",
                unknown=unknown[0],
            )
        )
    q, k, v = query[0], key[0], value[0]
    width = q.shape[-1]
    flash = q.is_cuda and q.dtype != torch.float32 and softcap is None and width <= FLASH_WIDTH and width % 8 == 0
    if flash and v.shape[-1] == width:
        out = torch.ops.aten._flash_attention_forward(
            *(x.transpose(0, 1).contiguous() for x in (q, k, v)),
            cu_seq_lens_q,
            cu_seq_lens_q,
            max(max_length_q),
            max(max_length_q),
            0.0,
            True,
            False,
            scale=scaling,
            window_size_left=None if sliding_window is None else sliding_window - 1,
            window_size_right=None if sliding_window is None else 0,
        )[0]
        return out[None], None
    parts = zip(*(x.split(max_length_q, dim=1) for x in (q, k, v)), strict=True)
    out = torch.cat([_attend(a, b, c, scaling, sliding_window, softcap) for a, b, c in parts], dim=1)
    return out.transpose(0, 1)[None], None


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None) -> Tensor:
    """One sequence. q: (heads, T, D) → (heads, T, D)."""
    length, groups = q.shape[1], q.shape[0] // k.shape[0]
    k, v = (x.repeat_interleave(groups, 0) if groups > 1 else x for x in (k, v))
    windowed = window is not None and window < length
    if softcap is None and not (q.device.type == "cpu" and length <= EAGER_TOKENS):
        mask = _mask(length, window, q.device) if windowed else None
        return scaled_dot_product_attention(q[None], k[None], v[None], mask, is_causal=mask is None, scale=scale)[0]
    scores = (q @ k.transpose(1, 2)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~_mask(length, window if windowed else None, q.device), torch.finfo(scores.dtype).min)
    return torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype) @ v


def _mask(length: int, window: int | None, device: Any) -> Tensor:
    """True where a token sees another: (length, length)."""
    ones = torch.ones(length, length, dtype=torch.bool, device=device)
    return ones.tril() if window is None else ones.tril() & ones.triu(1 - window)
