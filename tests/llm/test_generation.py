"""Packed answering: the same answers as one by one, whatever the company; drawn by each conversation's own seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from noesis.core.errors import ModelError
from noesis.llm.chat_template import render
from noesis.llm.clients.protocol import ModelReply, ModelRequest, NoReplyError, ScoreRequest, probabilities
from noesis.llm.clients.torch_client import TorchClient
from noesis.llm.generation.batch import _decode, generate_batch, next_tokens, shared_beginning
from noesis.llm.generation.sampling import sampling_noise
from noesis.llm.generation.scores import _parts, score_endings
from noesis.llm.generation.static_decoder import attends_in_every_layer, decode_statically
from noesis.llm.tokenizer import load_tokenizer

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

    from noesis.llm.chat_template import end_of_turn, render
    from noesis.llm.generation import sampling

    monkeypatch.setattr(sampling, "REPEAT_PENALTY", 1.0)
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

    import torch

    from noesis.llm.generation import batch

    shutil.copytree(tiny_model, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    settings = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text(encoding="utf-8"))
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<|endoftext|>"}))
    tokenizer = load_tokenizer(tmp_path / "m")
    script = iter([*tokenizer("yes")["input_ids"], tokenizer.token_id(last), *tokenizer("no no")["input_ids"]])
    monkeypatch.setattr(batch, "next_token", lambda *_: torch.tensor([next(script)]))
    assert generate_batch(loaded[0], tokenizer, talks(1), max_tokens=12) == ["yes"]


def test_no_room_is_said(loaded):
    model, tokenizer = loaded
    with pytest.raises(ModelError, match="trial_tokens"):
        generate_batch(model, tokenizer, talks(1), max_tokens=5000)


def tiny(kind: str):
    """A random model of this family, in float32 (transformers' masks are NaN in float64)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    own: dict[str, dict[str, object]] = {
        "mistral": {"sliding_window": 8},
        "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 16},
        "gemma3_text": {"sliding_window": 8, "query_pre_attn_scalar": 16},
        "phi3": {"sliding_window": 8},
    }
    config = AutoConfig.for_model(
        kind,
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        pad_token_id=0,
        **own.get(kind, {}),
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "smollm3"])
def test_a_cache_of_fixed_size_gives_the_same_answers(kind: str, temperature: float):
    """What a GPU captures as a graph, run here step by step, against the cache that grows. Windows included."""
    model = tiny(kind)
    prompts = [[(7 * i + j) % 60 + 3 for j in range(3 + 5 * i)] for i in range(4)]
    how = {"max_tokens": 20, "temperature": temperature, "noise": sampling_noise([5, 6, 7, 8], 20), "stops": [1, 2]}
    assert attends_in_every_layer(model)
    found = decode_statically(model, prompts, **how)
    assert found == _decode(model, prompts, **how)
    assert len({tuple(answer) for answer in found}) == len(prompts)


def test_an_answer_ends_at_any_of_the_ends():
    model = tiny("llama")
    prompts = [[(11 * i + j) % 60 + 3 for j in range(4)] for i in range(6)]
    how = {"max_tokens": 24, "temperature": 1.2, "noise": sampling_noise(list(range(6)), 24)}
    stops = list(range(0, 64, 5))
    found = decode_statically(model, prompts, stops=stops, **how)
    assert found == _decode(model, prompts, stops=stops, **how)
    assert {len(answer) < 24 for answer in found} == {True}
    assert not {token for answer in found for token in answer} & set(stops)


def test_endings_share_their_beginning_and_are_scored_as_alone(loaded):
    import math

    model, tokenizer = loaded
    groups = [
        [
            [
                {"role": "user", "content": "A long beginning that all share. " * n + f"Is it {word} right?" * (1 + i)},
                {"role": "assistant", "content": "Score: "},
            ]
            for i, word in enumerate(("perhaps", "quite", "not", "really"))
        ]
        for n in (3, 8)
    ]
    together = score_endings(model, tokenizer, groups, ("0", "1", "2"))
    for group, found in zip(groups, together, strict=True):
        for conversation, ending in zip(group, found, strict=True):
            ((alone,),) = score_endings(model, tokenizer, [[conversation]], ("0", "1", "2"))
            assert (ending.tokens, [t for t, _ in ending.likely]) == (alone.tokens, [t for t, _ in alone.likely])
            assert [p for _, p in ending.likely] == pytest.approx([p for _, p in alone.likely], abs=1e-6)
            ((*everything,),) = next_tokens(model, tokenizer, [conversation], 100_000)
            for text, p in ending.likely:
                assert math.exp(p) == pytest.approx(math.exp(dict(everything)[text]), abs=1e-6)
    assert len({tuple(ending.likely) for found in together for ending in found}) == 8
    assert {text.strip() for text, _ in together[0][0].likely} == {"0", "1", "2"}


def test_a_pass_takes_the_endings_that_fit():
    assert list(_parts([3, 2], 4)) == [[(0, 0, 3), (1, 0, 1)], [(1, 1, 2)]]
    assert list(_parts([9], 4)) == [[(0, 0, 4)], [(0, 4, 8)], [(0, 8, 9)]]


def test_the_client_scores_and_writes_what_waits_together(tiny_model: Path):
    import asyncio

    client = TorchClient(str(tiny_model))
    request = ScoreRequest((("user", "Is 7 prime?"),), (" Yes?", " No, it is not?"), ("0", "1", "2"), "Score: ")
    found: dict[int, ModelReply] = {}

    async def run() -> ModelReply:
        try:
            written = client.ask(ModelRequest((("user", "why?"),), {}, 4))
            _, reply = await asyncio.gather(client.scores(request, found.__setitem__), written)
            with pytest.raises(NoReplyError, match="context"):
                await client.scores(replace(request, endings=("why " * 9000,)), found.__setitem__)
            return reply
        finally:
            await client.close()

    assert asyncio.run(run()).finish == "length"
    assert sorted(found) == [0, 1]
    assert all(0 < sum(probabilities(reply, request.choices)) < 1 for reply in found.values())
    assert found[0].prompt_tokens < found[1].prompt_tokens
