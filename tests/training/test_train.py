"""Training on a tiny Llama: loss, dropout, rows, an adapter that plain peft loads, resuming after Ctrl-C."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.project import ROOT
from helpers.tiny_runs import CONSTITUTION, PLAIN, rows_of, small
from helpers.training_jobs import sft_job
from noesis.core.config import Config, load_config
from noesis.core.device import Device, detect
from noesis.core.errors import ModelError, TrainingError
from noesis.core.project import Project
from noesis.dataset.encode import training_rows
from noesis.dataset.schema import Example
from noesis.llm.hub import find_base, find_description, find_model
from noesis.llm.row_encoder import open_encoder
from noesis.llm.token_rows import IGNORED
from noesis.planning.draft import choose_demo_rank_and_epochs, make_plan
from noesis.planning.model_shapes import read_shape
from noesis.training.job import TrainResult, count_workload

CPU = Device("cpu", "test", 8 * 10**9, 2, True)


def test_a_row_that_is_too_long_is_refused_by_name(tiny_tokenizer_folder: Path, record: dict):
    with pytest.raises(TrainingError, match=r"x_001 \(pt\) has \d+ tokens, more than max_length 100"):
        training_rows(
            [Example.from_json(record)],
            open_encoder(tiny_tokenizer_folder),
            CONSTITUTION,
            include_critique=False,
            max_length=100,
        )


def test_a_plan_counts_tokens_and_refuses_what_does_not_fit(tiny_shape: Path, record: dict):
    rows = rows_of(tiny_shape, 20, record)
    plan = make_plan(small(), "tiny", read_shape(tiny_shape), count_workload(rows), CPU)
    assert plan.tokens_per_epoch == sum(len(r.input_ids) for r in rows)
    assert plan.trained_tokens_per_epoch == sum(sum(label != IGNORED for label in r.labels) for r in rows)
    assert (plan.steps, plan.micro_batch, plan.accumulation) == (3, 1, 8)
    # counted by hand: 2 layers of q 64×64, k and v 64×32, o 64×64, gate, up and down 64×128; rank 4
    assert plan.adapter_parameters == 2 * 4 * (128 + 96 + 96 + 128 + 192 + 192 + 192)
    with pytest.raises(TrainingError, match="per_device_train_batch_size: 1"):
        make_plan(small(), "tiny", read_shape(tiny_shape), count_workload(rows), Device("cpu", "test", 10**8, 2, True))


def test_smollm2_is_counted_right(tmp_path: Path):
    """Parameters as published: 134,515,008; adapter of rank 64 as PEFT counts it: 19,537,920."""
    config = {
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    }
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    shape = read_shape(tmp_path)
    assert shape.linear_weights + shape.embedding_weights + 61 * 576 == 134_515_008
    assert shape.adapter_weights(64, load_config(Project(ROOT)).lora.target_modules) == 19_537_920


def test_the_demo_trains_at_least_one_epoch_however_slow_the_machine(tiny_shape: Path, record: dict):
    rows = rows_of(tiny_shape, 8, record) * 4000
    assert choose_demo_rank_and_epochs(
        small(**{"training.demo.train_minutes": 0.0001}), read_shape(tiny_shape), count_workload(rows), CPU
    ) == (
        8,
        1,
    )
    assert choose_demo_rank_and_epochs(
        small(**{"training.demo.train_minutes": 1e9}), read_shape(tiny_shape), count_workload(rows), CPU
    ) == (
        64,
        3,
    )


@pytest.mark.parametrize("find", [find_model, find_base, find_description], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "name", ["nonsense", "/no/such/folder", "../up", "a/b/c", "", "org/na me", "org/--x", "org/x..y", "no/such.gguf"]
)
def test_a_wrong_model_name_is_one_message(name: str, find: Callable[[str], object]):
    with pytest.raises(ModelError, match="no model|there is no file|is not a model folder"):
        find(name)


def test_a_hub_model_without_network_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ModelError, match="network|Hub"):
        find_model("some-org/some-model")


@pytest.mark.slow
def test_byte_dropout_keeps_the_mean_and_rests_in_evaluation():
    import torch

    from noesis.training.dropout import ByteDropout

    torch.manual_seed(0)
    dropout, x = ByteDropout(0.05), torch.ones(1000, 1001, requires_grad=True)
    y = dropout(x)
    dropped = float((y == 0).float().mean())
    assert abs(dropped - 13 / 256) < 1e-3
    assert abs(float(y.detach().mean()) - 1) < 1e-3
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    torch.manual_seed(0)
    assert torch.equal(dropout(x), y)
    assert torch.equal(dropout.eval()(x), x)


def train_tiny(tiny_model: Path, folder: Path, record: dict, config: Config, count: int = 20) -> TrainResult:
    from noesis.training.trainer import train

    return train(sft_job(tiny_model, folder, rows_of(tiny_model, count, record), config))


@pytest.mark.slow
def test_training_lowers_the_loss_and_leaves_plain_peft_adapters(tiny_model: Path, tmp_path: Path, record: dict):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = train_tiny(tiny_model, tmp_path, record, small(**{"training.num_train_epochs": 3}))
    assert result.final_loss < result.first_loss - 0.5
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["epoch_0", "epoch_1", "epoch_2", "resume"]
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == list(range(1, 10))
    assert set(metrics[0]) == {
        "step",
        "epoch",
        "loss",
        "lr",
        "grad_norm",
        "tokens",
        "tokens_per_s",
        "peak_memory_bytes",
        "usd",
    }
    assert metrics[-1]["tokens"] == result.tokens == 3 * sum(len(r.input_ids) for r in rows_of(tiny_model, 20, record))
    adapter = tmp_path / "checkpoints" / "epoch_2"
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter)
    assert {p.dtype.is_floating_point for n, p in model.named_parameters() if "lora_" in n} == {True}
    assert len(AutoTokenizer.from_pretrained(adapter)) == 512


@pytest.mark.slow
def test_a_run_stopped_by_ctrl_c_ends_with_the_same_adapter(
    tiny_model: Path, tmp_path: Path, record: dict, monkeypatch: pytest.MonkeyPatch
):
    from noesis.training.state.resumable import Resumable

    config = small(**{"training.num_train_epochs": 2, "training.save_every": "1 step"})
    train_tiny(tiny_model, tmp_path / "whole", record, config)
    original, calls = Resumable._save_checkpoint, []

    def stop_in_mid_epoch(self, *args, **kwargs):
        original(self, *args, **kwargs)
        calls.append(self.state.global_step)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Resumable, "_save_checkpoint", stop_in_mid_epoch)
    with pytest.raises(KeyboardInterrupt):
        train_tiny(tiny_model, tmp_path / "broken", record, config)
    monkeypatch.undo()
    result = train_tiny(tiny_model, tmp_path / "broken", record, config)
    assert result.steps == 6
    name = "checkpoints/epoch_1/adapter_model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()
    assert (
        (tmp_path / "whole" / "metrics.jsonl").read_text().count("\n")
        == (tmp_path / "broken" / "metrics.jsonl").read_text().count("\n")
        == 6
    )


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_before_it_is_applied(
    tiny_model: Path, tmp_path: Path, record: dict, monkeypatch: pytest.MonkeyPatch
):
    from noesis.training.transformers_model import TransformersModel

    real = TransformersModel.loss
    monkeypatch.setattr(TransformersModel, "loss", lambda *a: real(*a) * float("nan"))
    with pytest.raises(TrainingError, match="the loss is nan .* at step 1; nothing of this step was applied"):
        train_tiny(tiny_model, tmp_path, record, small(**PLAIN), count=4)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.slow
def test_scores_are_log_probabilities_and_the_adapter_can_be_switched_off(
    tiny_model: Path, tmp_path: Path, record: dict
):
    import torch
    from transformers import AutoModelForCausalLM

    from noesis.training.base_model import load_base, with_adapter
    from noesis.training.likelihood import log_likelihoods

    train_tiny(tiny_model, tmp_path, record, small())
    row = rows_of(tiny_model, 1, record)[0]
    config = small(**{"lora.quantization": {"load_in_4bit": False, "bnb_4bit_compute_dtype": "float32"}})
    model = with_adapter(load_base(tiny_model, config, detect(), longest=500), tmp_path / "checkpoints" / "epoch_0")
    ((off, count),) = log_likelihoods(model, [row], config, detect(), adapter=False, what="score")
    ((on, _),) = log_likelihoods(model, [row], config, detect(), adapter=True, what="score")
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    expected = -float(plain(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])).loss)
    assert off / count == pytest.approx(expected, rel=1e-4)
    assert on > off
