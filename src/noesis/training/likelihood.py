"""How likely a model finds given answers; the Tribunal, which loads no model, gets the numbers."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from noesis.core.config import Config
from noesis.core.console import Progress
from noesis.core.device import Device
from noesis.llm.token_rows import IGNORED, TokenRow
from noesis.training.base_model import compute_context


def log_likelihoods(
    model: Any, rows: list[TokenRow], config: Config, device: Device, *, adapter: bool, what: str
) -> list[tuple[float, int]]:
    """Sum of the natural-log probabilities of each row's labelled tokens, and how many tokens those are.

    Args:
        adapter: score with the adapter on or off; off is the very base that it was trained on.
        what: name of the progress bar.
    """
    import torch

    scores = []
    model.eval()
    switch = nullcontext() if adapter else model.disable_adapter()
    with (
        torch.inference_mode(),
        switch,
        compute_context(model, config, device),
        Progress(what, sum(len(r.input_ids) for r in rows), "tok") as progress,
    ):
        for row in rows:
            ids = torch.tensor([row.input_ids], device=model.device)
            labels = torch.tensor(row.labels, device=model.device)
            first = next(i for i, label in enumerate(row.labels) if label != IGNORED)
            # logits: (1, length - first + 1, vocabulary), of the positions that predict the answer
            logits = model(input_ids=ids, logits_to_keep=len(row.input_ids) - first + 1, use_cache=False).logits
            chosen = torch.log_softmax(logits[0, :-1].float(), dim=-1).gather(1, labels[first:, None])
            scores.append((float(chosen.double().sum()), row.trained))
            progress.advance(len(row.input_ids))
    return scores
