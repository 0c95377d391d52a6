"""Model sizes, from a model's config.json or, without its files, from `models.yaml`, which lists the usual ones."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from noesis.core.errors import ModelError
from noesis.core.jsonl import read_json_file, whole_number
from noesis.core.yaml_file import read_yaml

FILE = Path(__file__).with_name("models.yaml")


@dataclass(frozen=True)
class Shape:
    """The dimensions of a Llama-like model."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool  # the output layer shares the embedding's weights

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
    def parameters(self) -> int:
        return self.linear_weights + self.outer_weights

    def adapter_weights(self, r: int, modules: tuple[str, ...]) -> int:
        """Trained weights of a LoRA adapter of rank `r` on `modules`."""
        return self.layers * sum(r * (a + b) for name, (a, b) in self.linear().items() if name in modules)


@dataclass(frozen=True)
class TokenRatio:
    """How many tokens a tokenizer usually makes of text.

    pt, en: tokens per UTF-8 byte
    plus_minus: relative error of both
    frame: tokens that the chat template adds to a row
    """

    pt: float
    en: float
    plus_minus: float
    frame: int


@dataclass(frozen=True)
class Known:
    """A model that `models.yaml` lists."""

    name: str
    shape: Shape
    gated: bool
    ratio: TokenRatio


def known_model(name: str) -> Known | None:
    """The entry of a Hub name in `models.yaml`; None if it has none."""
    return _known().get(name.casefold())


@cache
def _known() -> dict[str, Known]:
    raw: dict[str, Any] = read_yaml(FILE)
    names = [field.name for field in fields(Shape)]
    found = {}
    for entry in raw["models"]:
        sizes = dict(zip(names, entry["size"], strict=True))
        shape = Shape(**{**sizes, "tied": bool(sizes["tied"])})
        ratio = TokenRatio(**raw["tokenizers"][entry["tokenizer"]])
        for name in entry["names"]:
            found[name.casefold()] = Known(name, shape, entry["gated"], ratio)
    return found


def read_shape(folder: Path) -> Shape:
    """The shape of the model in `folder`.

    Raises:
        ModelError: config.json is missing or describes no Llama-like model.
    """
    try:
        raw = read_json_file(folder / "config.json")
        heads, hidden = (
            whole_number(raw, "num_attention_heads", 1, 1 << 14),
            whole_number(raw, "hidden_size", 1, 1 << 20),
        )
        given = {"num_key_value_heads": heads, "head_dim": hidden // heads}
        given |= {key: raw[key] for key in given if raw.get(key)}
        return Shape(
            layers=whole_number(raw, "num_hidden_layers", 1, 2_000),
            hidden=hidden,
            intermediate=whole_number(raw, "intermediate_size", 1, 1 << 22),
            heads=heads,
            kv_heads=whole_number(given, "num_key_value_heads", 1, 1 << 14),
            head_dim=whole_number(given, "head_dim", 1, 1 << 14),
            vocabulary=whole_number(raw, "vocab_size", 1, 4_000_000),
            tied=bool(raw.get("tie_word_embeddings", False)),
        )
    except FileNotFoundError:
        raise ModelError(f"{folder} has no config.json: fetch the model again, or give another folder") from None
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder / 'config.json'} does not describe a Llama-like model: {error}; fetch the model again, "
            "or choose another"
        ) from None
