"""The dimensions of a decoder-only model and the parts of its layers: enough to count weights and to name them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

SEPARATE: dict[str, tuple[str, ...]] = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
FUSED: dict[str, tuple[str, ...]] = {
    "qkv": ("qkv_proj",),
    "o": ("o_proj",),
    "gate_up": ("gate_up_proj",),
    "down": ("down_proj",),
}


@dataclass(frozen=True)
class Parts:
    """What a layer is made of; the default is Llama's.

    fused: q, k and v are one projection, gate and up another
    biases: groups of projections that have a bias: of qkv, o, gate_up, down
    head_norms: each head of the queries and keys is normed before it is rotated
    post_norms: what attention and MLP give is normed before it is added
    capped: attention's scores are capped, which no fused kernel does here
    """

    fused: bool = False
    biases: tuple[str, ...] = ()
    head_norms: bool = False
    post_norms: bool = False
    capped: bool = False

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """The projections' names by their common input."""
        return FUSED if self.fused else SEPARATE

    @property
    def input_norms(self) -> tuple[str, str]:
        """Names of the norms before attention and MLP."""
        return "input_layernorm", "pre_feedforward_layernorm" if self.post_norms else "post_attention_layernorm"

    @property
    def output_norms(self) -> tuple[str, ...]:
        """Names of the norms after attention and MLP."""
        return ("post_attention_layernorm", "post_feedforward_layernorm") if self.post_norms else ()

    def targets(self, modules: tuple[str, ...]) -> tuple[str, ...]:
        """An adapter's `target_modules` by this layer's names: where projections are one, so is their LoRA."""
        own = {name: mine for group in SEPARATE for name in SEPARATE[group] for mine in self.groups[group]}
        return tuple(dict.fromkeys(own[name] if self.fused and name in own else name for name in modules))


@dataclass(frozen=True)
class Shape:
    """The dimensions of a decoder-only model."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool  # the output layer shares the embedding's weights
    parts: Parts = Parts()
    on_engine: bool = True  # a family that the engine knows; others train on transformers' layers

    @property
    def query(self) -> int:
        """Width of the queries and of the attention's output."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of the keys and of the values."""
        return self.kv_heads * self.head_dim

    def linear(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each projection of one layer."""
        q, kv, h, i = self.query, self.key, self.hidden, self.intermediate
        if self.parts.fused:
            return {"qkv_proj": (h, q + 2 * kv), "o_proj": (q, h), "gate_up_proj": (h, 2 * i), "down_proj": (i, h)}
        return {
            "q_proj": (h, q),
            "k_proj": (h, kv),
            "v_proj": (h, kv),
            "o_proj": (q, h),
            "gate_proj": (h, i),
            "up_proj": (h, i),
            "down_proj": (i, h),
        }

    @cached_property
    def linear_weights(self) -> int:
        """Weights of the projections of all layers."""
        return self.layers * sum(a * b for a, b in self.linear().values())

    @property
    def embedding_weights(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def outer_weights(self) -> int:
        """Embeddings and output layer, which are never quantised."""
        return self.embedding_weights * (1 if self.tied else 2)

    @property
    def small_weights(self) -> int:
        """Norms and biases, which are never quantised either."""
        parts, widths = self.parts, self.linear()
        norms = (4 if parts.post_norms else 2) * self.hidden + (2 * self.head_dim if parts.head_norms else 0)
        biases = sum(widths[name][1] for group in parts.biases for name in parts.groups[group])
        return self.layers * (norms + biases) + self.hidden

    @property
    def parameters(self) -> int:
        return self.linear_weights + self.outer_weights + self.small_weights

    def adapter_weights(self, r: int, modules: tuple[str, ...]) -> int:
        """Trained weights of a LoRA adapter of rank `r` on `modules`."""
        targets = self.parts.targets(modules)
        return self.layers * sum(r * (a + b) for name, (a, b) in self.linear().items() if name in targets)
