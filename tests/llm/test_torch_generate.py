"""Packed answering: the same answers as one by one, whatever the company; drawn by each conversation's own seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from noesis.core.errors import ModelError
from noesis.llm.chat_template import render
from noesis.llm.tokenizer import load_tokenizer
from noesis.llm.torch_generate import generate_batch, next_tokens, shared_beginning

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def loaded(tiny_model: Path):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64).eval()  # no near ties in float64
    return model, load_tokenizer(tiny_model)


def talks(count: int) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": "why " * (1 + 3 * i % 7) + f"{i}?"}] for i in range(count)]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_company_changes_nothing(loaded, temperature: float):
    model, tokenizer = loaded
    conversations, seeds = talks(9), list(range(9))
    alone = [
        generate_batch(model, tokenizer, [c], max_tokens=12, temperature=temperature, seeds=[s])[0]
        for c, s in zip(conversations, seeds, strict=True)
    ]
    assert (
        generate_batch(model, tokenizer, conversations, max_tokens=12, temperature=temperature, seeds=seeds, batch=4)
        == alone
    )
    assert (
        generate_batch(model, tokenizer, conversations, max_tokens=12, temperature=temperature, seeds=seeds, batch=9)
        == alone
    )
    assert len(set(alone)) > 1


def test_a_common_beginning_is_read_once_and_changes_nothing(loaded):
    model, tokenizer = loaded
    system = {"role": "system", "content": "Be honest, be fair, ask before you answer, and help the person think. " * 4}
    conversations = [[system, *talk] for talk in talks(7)]
    alone = [
        generate_batch(model, tokenizer, [c], max_tokens=12, temperature=0.8, seeds=[i])[0]
        for i, c in enumerate(conversations)
    ]
    ids = [tokenizer(render(tokenizer, c, add_generation_prompt=True))["input_ids"] for c in conversations]
    assert shared_beginning(ids) > 100
    assert (
        generate_batch(model, tokenizer, conversations, max_tokens=12, temperature=0.8, seeds=list(range(7))) == alone
    )


def test_the_common_beginning_leaves_each_prompt_a_token():
    assert shared_beginning([list(range(50)), list(range(40)), list(range(45))]) == 39
    assert shared_beginning([list(range(50)), [*range(36), 99, 98]]) == 36
    assert shared_beginning([list(range(50))]) == shared_beginning([list(range(50)), list(range(9))]) == 0


def test_next_tokens_are_the_models_distribution(loaded):
    import math

    model, tokenizer = loaded
    talk = [{"role": "user", "content": "A or B?"}, {"role": "assistant", "content": "("}]
    ((*top,),) = next_tokens(model, tokenizer, [talk], 10_000)
    assert sum(math.exp(p) for _, p in top) == pytest.approx(1.0, abs=1e-4)
    assert [p for _, p in top] == sorted((p for _, p in top), reverse=True)


def test_seeds_decide(loaded):
    model, tokenizer = loaded
    (conversation,) = talks(1)
    drawn = generate_batch(model, tokenizer, [conversation] * 4, max_tokens=12, temperature=1.0, seeds=[1, 2, 1, 3])
    assert drawn[0] == drawn[2]
    assert len(set(drawn)) == 3


def test_greedy_is_the_models_own_choice(loaded, monkeypatch: pytest.MonkeyPatch):
    import torch

    from noesis.llm import torch_generate as batch
    from noesis.llm.chat_template import end_of_turn, render

    monkeypatch.setattr(batch, "REPEAT_PENALTY", 1.0)
    model, tokenizer = loaded
    (conversation,) = talks(1)
    ids = tokenizer(render(tokenizer, conversation, add_generation_prompt=True))["input_ids"]
    stop = end_of_turn(tokenizer)
    reference = model.generate(
        torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=stop, pad_token_id=stop
    )[0, len(ids) :].tolist()
    expected = tokenizer.decode([t for t in reference if t != stop]).strip()
    assert generate_batch(model, tokenizer, [conversation], max_tokens=12) == [expected]


@pytest.mark.parametrize("last", ["<|im_end|>", "<|endoftext|>"], ids=["the turn's end", "the model's EOS"])
def test_an_answer_ends_at_the_turns_end_and_at_another_eos(
    loaded, last: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import json
    import shutil

    from noesis.llm import torch_generate as batch

    shutil.copytree(tiny_model, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    settings = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text(encoding="utf-8"))
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<|endoftext|>"}))
    tokenizer = load_tokenizer(tmp_path / "m")
    script = iter([*tokenizer("yes")["input_ids"], tokenizer.token_id(last), *tokenizer("no no")["input_ids"]])
    monkeypatch.setattr(batch, "_sample", lambda *_: next(script))
    assert generate_batch(loaded[0], tokenizer, talks(1), max_tokens=12) == ["yes"]


def test_no_room_is_said(loaded):
    model, tokenizer = loaded
    with pytest.raises(ModelError, match="trial_tokens"):
        generate_batch(model, tokenizer, talks(1), max_tokens=5000)
