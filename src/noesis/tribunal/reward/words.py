"""What a trained judge must beat besides: a bag of words that learnt from the very same pairs and understands nothing.

Keywords and length were written down beforehand; whatever learns from pairs also learns which words weak answers and
planted faults prefer. A judge that is no better than this has learnt no more.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noesis.core.errors import ModelError
from noesis.core.i18n import _

Floats = NDArray[np.float64]
SLOTS = 1 << 12  # that words are hashed into
_WORD = re.compile(r"\w+|[?!:;…]")


def word_presence(answers: Sequence[str]) -> Floats:
    """(answers, SLOTS): 1 where a word of that slot is in the answer."""
    found = np.zeros((len(answers), SLOTS))
    for row, answer in zip(found, answers, strict=True):
        row[[zlib.crc32(word.encode()) % SLOTS for word in set(_WORD.findall(answer.lower()))]] = 1.0
    return found


def word_scorer(file: Path) -> Callable[[str, str], float]:
    """A scorer as the baselines are, from the weights in `file`: `weight`, (SLOTS,).

    Raises:
        ModelError: it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        weight = load_file(file)["weight"].astype(np.float64)
        if weight.shape != (SLOTS,) or not np.isfinite(weight).all():
            raise ValueError(_("it holds {shape} weights", shape=weight.shape))
    except (SafetensorError, KeyError, ValueError) as error:
        raise ModelError(
            _("{file} is no bag of words ({error}): fetch the reward model again", file=file, error=error)
        ) from None

    def score(answer: str, judge: str) -> float:
        return float((word_presence([answer]) @ weight)[0])

    return score
