"""Given answers scored together, and drift: the same numbers as one row at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from noesis.llm.causal_model import put_adapter
from noesis.llm.chat_template import encode
from noesis.llm.generation import choices as scoring
from noesis.llm.generation.choices import choice_log_likelihoods
from noesis.llm.generation.drift import drift_on
from noesis.llm.token_rows import IGNORED
from noesis.llm.tokenizer import load_tokenizer
from noesis.tribunal.kept.items import KeptItem
from noesis.tribunal.kept.measure import measure_kept

pytestmark = pytest.mark.slow

PROMPTS = [[{"role": "user", "content": "why " * (1 + 5 * i % 7) + f"{i}?"}] for i in range(7)]
CHOICES = [("verdade", "a verdade e a justiça", "7") if i % 2 else ("sim", "não sei") for i in range(7)]


@pytest.fixture(scope="module")
def base(tiny_model: Path):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64).eval(), load_tokenizer(tiny_model)


def alone(model, tokenizer, prompt: list[dict[str, str]], answer: str) -> float:
    import torch

    row = encode(tokenizer, prompt, answer, name="x")
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0]
    chosen = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(row.input_ids)[1:, None])[:, 0]
    return float(chosen[torch.tensor(row.labels)[1:] != IGNORED].sum())


@pytest.mark.parametrize("together", [True, False])
def test_company_changes_no_score(base, monkeypatch: pytest.MonkeyPatch, together: bool):
    model, tokenizer = base
    monkeypatch.setattr(scoring, "ROWS", 8)  # several passes
    monkeypatch.setattr(scoring, "attends_in_every_layer", lambda _: together)
    counted: list[int] = []
    found = choice_log_likelihoods(model, tokenizer, PROMPTS, CHOICES, on_prompts=counted.append)
    for prompt, options, scores in zip(PROMPTS, CHOICES, found, strict=True):
        expected = [alone(model, tokenizer, prompt, option) for option in options]
        assert scores == pytest.approx(expected, abs=1e-4)  # logsumexp in float32
    assert sum(counted) == len(PROMPTS)


def test_measure_kept_finds_what_the_model_itself_prefers(base):
    model, tokenizer = base
    scores = choice_log_likelihoods(model, tokenizer, PROMPTS[:3], CHOICES[:3])
    best = [max(range(len(s)), key=s.__getitem__) for s in scores]

    def items(right: bool) -> list[KeptItem]:
        return [
            KeptItem(
                id=f"i{n}",
                language="pt",
                kind="k",
                tier=1,
                prompt=prompt[0]["content"],
                answer=options[at if right else at - 1],
                distractors=tuple(o for o in options if o != options[at if right else at - 1]),
            )
            for n, (prompt, options, at) in enumerate(zip(PROMPTS, CHOICES, best, strict=False))
        ]

    assert measure_kept(model, tokenizer, items(True)) == [True] * 3
    assert measure_kept(model, tokenizer, items(False)) == [False] * 3


def test_drift_is_zero_without_a_change_and_the_divergence_with_one(tiny_model: Path, tiny_adapter: Path):
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(tiny_model)
    model = put_adapter(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), tiny_adapter)
    answers = ["a verdade", "", "justiça"]
    found = drift_on(model, tokenizer, PROMPTS[:3], answers)
    assert found[1] == (0.0, 0)
    assert all(total > 0 and tokens > 0 for total, tokens in (found[0], found[2]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    assert [total for total, _ in drift_on(model, tokenizer, PROMPTS[:3], answers)] == pytest.approx(
        [0, 0, 0], abs=1e-6
    )
