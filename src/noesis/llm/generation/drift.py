"""How far an adapter moves a model on what the model itself would say: KL divergence, token by token."""

from __future__ import annotations

from typing import Any

from noesis.core.messages import Message
from noesis.core.text import common_prefix
from noesis.llm.generation.batch import prompt_ids
from noesis.llm.tokenizer import ChatTokenizer


def drift_on(
    model: Any, tokenizer: ChatTokenizer, prompts: list[list[Message]], answers: list[str]
) -> list[tuple[float, int]]:
    """Sum over an answer's tokens of KL(base ‖ tuned) in nats, and how many tokens those are; (0, 0) of an empty one.

    Args:
        model: with its adapter on; the base is the same model with the adapter off.
        answers: the base's own, one to each prompt.
    """
    import torch

    found = []
    with torch.inference_mode():
        for prompt, answer in zip(prompts, answers, strict=True):
            start = prompt_ids(tokenizer, prompt)
            row = prompt_ids(tokenizer, [*prompt, {"role": "assistant", "content": answer}]) if answer else start
            count = len(row) - common_prefix(start, row)
            if not count:
                found.append((0.0, 0))
                continue
            ids = torch.tensor([row], device=model.device)
            tuned = _logprobs(model, ids, count)
            with model.disable_adapter():
                base = _logprobs(model, ids, count)
            kl = (base.exp() * (base - tuned)).sum(-1)
            found.append((float(kl.double().sum().clamp(min=0)), count))
    return found


def _logprobs(model: Any, ids: Any, count: int) -> Any:
    """(count, vocabulary): natural-log probabilities at the positions that predict the last `count` tokens."""
    return model(input_ids=ids, logits_to_keep=count + 1, use_cache=False).logits[0, :-1].float().log_softmax(-1)
