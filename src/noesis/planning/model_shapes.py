"""Model sizes, from a model's config.json or, without its files, from `models.yaml`, which lists the usual ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from noesis.core.errors import ModelError
from noesis.core.families.architecture import UnknownArchitecture, read_dimensions
from noesis.core.families.registry import describe
from noesis.core.families.shape import Parts, Shape
from noesis.core.i18n import _
from noesis.core.jsonl import read_json_file
from noesis.core.yaml_file import read_yaml

FILE = Path(__file__).with_name("models.yaml")
SIZES = (  # of config.json, in the order of `size` in models.yaml
    *("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size", "tie_word_embeddings"),
)


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
    found = {}
    for entry in raw["models"]:
        shape = describe({"model_type": entry["family"], **dict(zip(SIZES, entry["size"], strict=True))}).shape
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
        try:
            return describe(raw).shape
        except UnknownArchitecture:
            return replace(read_dimensions(raw, Parts()), on_engine=False)
    except FileNotFoundError:
        raise ModelError(
            _("{folder} has no config.json: fetch the model again, or give another folder", folder=folder)
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(
            _(
                "{folder} does not describe a Llama-like model: {error}; fetch the model again, or choose another",
                folder=folder / "config.json",
                error=error,
            )
        ) from None
