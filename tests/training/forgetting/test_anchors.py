"""Holding the model to the base (`replay.kl_weight`) on a tiny Llama: loss and LoRA gradients against plain torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from helpers.engine.steps import FP32, engine_of, lora_of, toy, worst
from helpers.tiny_runs import PLAIN, rows_of, small
from helpers.training_jobs import sft_job
from noesis.llm.token_rows import IGNORED, TokenRow
from noesis.training.anchors import anchors_of
from noesis.training.packing import pack

WEIGHT = 0.7


def mixed() -> list[TokenRow]:
    """Six rows, of which the second and the fifth are anchored."""
    return [TokenRow(ids, labels, anchored=i in (1, 4)) for i, (ids, labels) in enumerate(toy())]


def packed(rows: list[TokenRow]):
    return pack([(row.input_ids, row.labels) for row in rows], list(range(len(rows))))


def test_anchors_are_the_trained_tokens_of_the_anchored_rows():
    rows = [
        TokenRow([1, 2, 3], [IGNORED, 2, 3]),
        TokenRow([4, 5, 6, 7], [IGNORED, IGNORED, 6, 7], anchored=True),
        TokenRow([8, 9], [IGNORED, 9]),
    ]
    row = packed(rows)
    anchors = anchors_of(row, rows, WEIGHT)
    assert anchors is not None
    assert [row.targets[i] for i in anchors.places] == anchors.row.targets == [6, 7]
    assert [row.targets[i] for i in anchors.others] == [2, 3, 9]
    assert anchors_of(pack([([1, 2, 3], [IGNORED, 2, 3])], [0]), rows, WEIGHT) is None


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_divergence_and_its_gradient_are_those_of_autograd(beta: float):
    import torch

    from noesis.training.divergence import token_divergence

    draw = torch.Generator().manual_seed(0)
    logits = (torch.randn(5, 40, generator=draw, dtype=torch.float32) * 3).requires_grad_()
    teacher = torch.randn(5, 40, generator=draw, dtype=torch.float32) * 3
    p, q = teacher.double().softmax(-1), logits.double().softmax(-1)
    m = {0.0: q, 1.0: p}.get(beta, beta * p + (1 - beta) * q)
    to_p, to_q = ((x * (x / m).log()).sum(-1) for x in (p, q))
    expected = {0.0: to_p, 1.0: to_q}.get(beta, beta * to_p + (1 - beta) * to_q)
    expected.sum().backward()
    losses, gradient = token_divergence(logits.detach(), teacher, beta)
    torch.testing.assert_close(losses, expected.detach().float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [None, 16])
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_the_engines_loss_is_that_of_plain_torch(tiny_model: Path, checkpointing: str, chunk: int | None):
    import torch

    rows = mixed()
    model = engine_of(tiny_model, replace(FP32, gradient_checkpointing=checkpointing), lora_of())
    if chunk is not None:  # fewer tokens than the anchors have
        model.engine.output = replace(model.engine.output, chunk=chunk)
    loss, got = step(model, rows)
    expected, wanted = plain(tiny_model, model, rows)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert worst(got, wanted) < 1e-4
    again, _ = step(model, rows)  # the base's pass leaves the adapter on
    assert again == loss
    assert torch.is_grad_enabled()


@pytest.mark.slow
def test_dropout_is_not_in_what_the_model_is_held_to(tiny_model: Path):
    """With an adapter that adds nothing, nothing is to be held, whatever is dropped."""
    import torch

    model = engine_of(tiny_model, FP32, lora_of(dropout=0.5))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    step(model, [replace(row, anchored=True) for row in mixed()])
    assert float(model.engine.divergence.detach()) == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_transformers_layers_hold_as_the_engine_does(tiny_model: Path):
    import torch

    from helpers.training_jobs import sft_job
    from noesis.training.transformers_model import build

    rows = mixed()
    config = small(
        **{
            "lora.quantization": {"load_in_4bit": False, "bnb_4bit_compute_dtype": "float32"},
            "lora.lora_dropout": 0.0,
            "training.precision": "fp32",
        }
    )
    job = sft_job(tiny_model, tiny_model, rows, config)
    model = build(tiny_model, FP32, config, job.device, longest=64)
    draw = torch.Generator().manual_seed(1)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            parameter.data.copy_(torch.randn(parameter.shape, generator=draw) * 0.05)
    loss, got = step(model, rows)
    expected, wanted = plain(tiny_model, model, rows)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert worst(got, wanted) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("engine", [True, False])
def test_a_held_model_stays_nearer_to_the_base(tiny_model: Path, tmp_path: Path, record: dict, engine: bool):
    import json

    from noesis.training.trainer import train

    made = rows_of(tiny_model, 8, record)
    rows = [*made[:4], *(replace(row, anchored=True) for row in made[4:])]

    def last_kl(weight: float) -> float:
        config = small(
            **{"training.replay.kl_weight": weight, "training.num_train_epochs": 3, "lora.lora_dropout": 0.0},
            **({} if engine else PLAIN),
        )
        folder = tmp_path / str(weight)
        train(sft_job(tiny_model, folder, rows, config))
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert all(line["kl"] >= -1e-4 for line in lines)
        return lines[-1]["kl"]

    assert last_kl(20.0) < 0.5 * last_kl(1e-3)


def step(model, rows: list[TokenRow]) -> tuple[float, dict]:
    """Loss and gradients of one packed row."""
    import torch

    torch.manual_seed(0)
    row = packed(rows)
    model.zero_grad()
    model.engine.begin_step()
    loss = model(row, torch.tensor(float(len(row.targets))), anchors_of(row, rows, WEIGHT))
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def plain(folder: Path, like, rows: list[TokenRow]) -> tuple[float, dict]:
    """The same by transformers, PEFT and torch's own losses in float32, a sequence at a time."""
    import torch
    from peft import get_peft_model
    from torch.nn.functional import cross_entropy, kl_div
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model = get_peft_model(base, like.peft_config["default"])
    adapter = {name: p for name, p in like.named_parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(adapter[name].data)
    total = torch.zeros(())
    for row in rows:
        ids, labels = torch.tensor([row.input_ids]), torch.tensor(row.labels[1:])
        logits = model(input_ids=ids).logits[0, :-1]
        if not row.anchored:
            total = total + cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED)
            continue
        with torch.no_grad(), model.disable_adapter():
            of_base = model(input_ids=ids).logits[0, :-1]
        q, p = (x[labels != IGNORED].log_softmax(-1) for x in (logits, of_base))
        total = total + WEIGHT * kl_div(q, p, reduction="sum", log_target=True)
    loss = total / sum(row.predicted for row in rows)
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
