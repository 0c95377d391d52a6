"""How likely a model finds given answers, and how far an adapter moves it; the Tribunal, which loads no model, gets the
numbers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from noesis.core.config import Config
from noesis.core.console import Progress
from noesis.core.device import Device
from noesis.core.i18n import _
from noesis.llm.token_rows import IGNORED, TokenRow
from noesis.training.base_model import compute_context
from noesis.training.state.strength import at_strength


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


def divergences(
    model: Any, rows: Sequence[TokenRow], strengths: Sequence[float], config: Config, device: Device, *, what: str
) -> list[float]:
    """Mean KL divergence of the model with its adapter from the base, in nats per labelled token, at each strength.

    The base is computed once for all strengths.

    Args:
        rows: answers of the base's own, so that the divergence is over what the base would say.
        what: name of the progress bar.
    """
    import torch

    totals, tokens = [0.0] * len(strengths), 0
    model.eval()
    with (
        torch.inference_mode(),
        compute_context(model, config, device),
        Progress(what, len(rows) * (1 + len(strengths)), _("passes")) as progress,
    ):
        for row in rows:
            ids = torch.tensor([row.input_ids], device=model.device)
            first = next(i for i, label in enumerate(row.labels) if label != IGNORED)

            def likely(strength: float, ids: Any = ids, keep: int = len(row.input_ids) - first + 1) -> Any:
                with at_strength(model, strength):
                    logits = model(input_ids=ids, logits_to_keep=keep, use_cache=False).logits
                progress.advance(1)
                return torch.log_softmax(logits[0, :-1].float(), dim=-1)  # (answer, vocabulary)

            base = likely(0.0)
            for i, strength in enumerate(strengths):
                totals[i] += float((base.exp() * (base - likely(strength))).sum())
            tokens += len(row.input_ids) - first
    return [total / tokens for total in totals]
