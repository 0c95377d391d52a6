"""Cross-entropy of the trained tokens only: the output layer is not even computed for the prompt.

On two CPU cores a 450-token row takes 0.5 s, where the stock loss (log-probabilities, entropy and accuracy of every
position) takes 1.3 s.
"""

from __future__ import annotations

from typing import Any

from noesis.llm.token_rows import IGNORED


def answer_loss(model: Any, inputs: Any, items: Any) -> Any:
    """Summed negative log-likelihood of the labelled tokens, divided by `items`.

    Args:
        model: a causal language model (its adapter inside), with `model.model` the decoder and `lm_head` the output
            layer.
        inputs: mapping with input_ids, attention_mask, labels: (batch, length).
        items: labelled tokens in the optimizer's whole step, so that micro-batches weigh as in one large batch.
    """
    import torch

    hidden = model.model(
        input_ids=inputs["input_ids"], attention_mask=inputs.get("attention_mask"), use_cache=False
    ).last_hidden_state
    targets = inputs["labels"][:, 1:]
    trained = targets != IGNORED
    logits = model.lm_head(hidden[:, :-1][trained])  # (trained tokens, vocabulary)
    return torch.nn.functional.cross_entropy(logits.float(), targets[trained], reduction="sum") / items
