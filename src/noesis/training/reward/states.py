"""Pooled hidden states of a frozen base for many answers, in parts on disk, so that a stopped command goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from noesis.core.console import Progress
from noesis.core.files import make_folder, new_file
from noesis.core.i18n import _
from noesis.llm.reward.model import Conversation, RewardModel

PART = 32  # answers


def frozen_model(folder: Path, *, pool: Literal["last", "mean"], layers: int | None) -> RewardModel:
    """The base in `folder` with a head that says nothing yet.

    Raises:
        ModelError: it can't be loaded.
    """
    import torch

    from noesis.llm.causal_model import load_causal_model
    from noesis.llm.reward.model import of_causal_model
    from noesis.llm.tokenizer import load_tokenizer

    model = load_causal_model(folder, dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    head = torch.zeros(1, model.config.hidden_size)
    return of_causal_model(model, load_tokenizer(folder), head, pool=pool, layers=layers)


def pooled_states(
    model: RewardModel, conversations: Sequence[Conversation], parts: Path, *, between: Callable[[], None]
) -> NDArray[np.float32]:
    """(conversations, H), from the files in folder `parts` as far as they are there.

    Args:
        between: called before each part is computed; what it raises ends the work.
    """
    from safetensors.numpy import load_file, save_file

    make_folder(parts)
    found = []
    with Progress(_("states"), len(conversations), _("answers"), every_s=15) as progress:
        for start in range(0, len(conversations), PART):
            file = parts / f"{start // PART:05d}.safetensors"
            group = conversations[start : start + PART]
            if file.is_file():
                progress.total -= len(group)
                found.append(load_file(file)["states"])
                continue
            between()
            states = model.pooled(group).numpy()
            with new_file(file) as part:
                save_file({"states": states}, part)
            found.append(states)
            progress.advance(len(group))
    return np.concatenate(found)
