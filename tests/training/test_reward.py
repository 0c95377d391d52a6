"""Training a reward model on a tiny Llama: what it computes, that it learns, that a stop changes no bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from helpers.tiny_runs import small
from noesis.core.device import detect
from noesis.llm.row_encoder import open_encoder
from noesis.llm.token_rows import TokenPair
from noesis.planning.by_method import reward_plan
from noesis.planning.model_shapes import read_shape
from noesis.training.job import PreferencePairs, RewardHead, TrainingSet, TrainJob

pytestmark = pytest.mark.slow
FLOAT32 = {
    "training.method": "dpo",
    "training.precision": "fp32",
    "lora.quantization.load_in_4bit": False,
    "lora.lora_dropout": 0.05,
    "training.dpo.learning_rate": 1e-2,
    "training.num_train_epochs": 2,
    "training.save_every": "1 step",
}


def pairs_of(model: Path, count: int, held_out: int = 4) -> PreferencePairs:
    """Better answers name courage, worse ones fear."""
    encoder = open_encoder(model)
    made = []
    for i in range(count + held_out):
        asked = [{"role": "user", "content": f"Pergunta {i}: o que é a coragem?"}]
        rows = [encoder.encode(asked, f"{i} é {word}, e nada mais.", name=str(i)) for word in ("coragem", "medo")]
        made.append(TokenPair(str(i), rows[0], rows[1]))
    return PreferencePairs(made[:count], made[count:])


def job_of(model: Path, folder: Path, pairs: PreferencePairs, head: RewardHead) -> TrainJob:
    config = small(**FLOAT32)
    plan = reward_plan(config, "tiny", read_shape(model), pairs.work, detect())
    data = TrainingSet(pairs=pairs)
    return TrainJob(model, data, config, plan, detect(), folder / "checkpoints", folder / "metrics.jsonl", reward=head)


@pytest.mark.parametrize("pool", ["last", "mean"])
@pytest.mark.parametrize("engine", [True, False])
def test_a_reward_is_the_heads_product_with_the_pooled_state(
    tiny_model: Path, tmp_path: Path, pool: str, engine: bool, monkeypatch: pytest.MonkeyPatch
):
    """Against transformers' own model, one conversation at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    from noesis.training.backends import build_model
    from noesis.training.backends.run_trainer import TrainerParts
    from noesis.training.reward.trainer import build_reward_trainer, rewards

    if not engine:
        monkeypatch.setattr(build_model, "engine_refusal", lambda job: "this test")
    pairs, head = pairs_of(tiny_model, 3), RewardHead(pool)  # type: ignore[arg-type]
    parts = TrainerParts(AutoTokenizer.from_pretrained(tiny_model), TrainerCallback(), None)  # type: ignore[arg-type]
    model = build_reward_trainer(job_of(tiny_model, tmp_path, pairs, head), parts).model
    weight = torch.randn(model.reward_head.weight.shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        model.reward_head.weight.copy_(weight)
    model.engine.training = False
    sequences = [row for pair in pairs.train for row in pair.sequences]
    found = rewards(model, sequences, head)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    for reward, (ids, labels) in zip(found.tolist(), sequences, strict=True):
        with torch.no_grad():
            states = plain.model(torch.tensor([ids])).last_hidden_state[0]
        answer = torch.tensor([label >= 0 for label in labels])
        pooled = states[-1] if pool == "last" else states[answer].mean(0)
        assert reward == pytest.approx(float(weight[0] @ pooled), abs=1e-4)


def test_it_learns_and_a_stop_changes_no_bit(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from noesis.training.state.resumable import Resumable
    from noesis.training.trainer import train

    pairs, head = pairs_of(tiny_model, 20), RewardHead("mean", 0.01)
    whole = train(job_of(tiny_model, tmp_path / "whole", pairs, head))
    assert whole.held_out is not None
    assert whole.held_out.by_epoch[-1].reward_accuracy == 1.0
    assert whole.held_out.by_epoch[-1].loss < 0.69  # of indifference

    ended = Resumable.step_ended

    def killed(self: Resumable) -> None:
        ended(self)
        if self.state.global_step == 3:  # type: ignore[attr-defined]
            raise MemoryError("killed here")

    monkeypatch.setattr(Resumable, "step_ended", killed)
    again = job_of(tiny_model, tmp_path / "again", pairs, head)
    with pytest.raises(MemoryError):
        train(again)
    monkeypatch.undo()
    resumed = train(again)
    assert resumed.tokens < whole.tokens  # it did not begin anew
    for name in ("adapter_model.safetensors", "reward_head.safetensors"):
        one, other = (tmp_path / run / "checkpoints" / "epoch_1" / name for run in ("whole", "again"))
        assert one.read_bytes() == other.read_bytes()


def test_a_job_says_what_it_trains_in_another_process(tiny_model: Path, tmp_path: Path):
    job = job_of(tiny_model, tmp_path, pairs_of(tiny_model, 3), RewardHead("last", 0.5))
    assert TrainJob.from_json(job.to_json()).reward == job.reward
    assert TrainJob.from_json(replace(job, reward=None).to_json()).reward is None
