"""Self-distillation on a tiny Llama: sampling with kept keys and values, the loss, resuming to the bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.engine.steps import FP32, engine_of, lora_of, toy
from helpers.tiny_runs import CONSTITUTION, PLAIN, examples, small
from noesis.core.device import detect
from noesis.core.errors import TrainingError
from noesis.dataset.encode import distill_prompts
from noesis.llm.row_encoder import open_encoder
from noesis.planning.by_method import plan_of
from noesis.planning.model_shapes import read_shape
from noesis.planning.workload import Workloads
from noesis.training.job import TrainingSet, TrainJob, count_sampled
from noesis.training.packing import pack

NEW = 12


def test_only_the_teacher_reads_critique_and_revision(tiny_tokenizer_folder: Path, record: dict):
    encoder = open_encoder(tiny_tokenizer_folder)
    (prompt,) = distill_prompts(examples(1, record), encoder, CONSTITUTION, max_length=4096)
    model, teacher = (encoder.tokenizer.decode(ids) for ids in (prompt.student, prompt.teacher))
    for text in (record["critique"], record["response_revised"]):
        assert text in teacher
        assert text not in model
    with pytest.raises(TrainingError, match=r"row x_000 .*critique and revised answer"):
        distill_prompts(examples(1, record), encoder, CONSTITUTION, max_length=len(prompt.teacher) - 1)


@pytest.mark.slow
def test_sampling_draws_what_reading_everything_again_would_draw(tiny_model: Path):
    import torch

    from noesis.training.engine import ops
    from noesis.training.sampling import _draw, sample

    model = engine_of(tiny_model, FP32, lora_of(dropout=0.3))
    engine, prompts = model.engine, [ids for ids, _ in toy(4)]

    def again(stops: list[int]) -> list[list[int]]:
        draw = torch.Generator().manual_seed(5)
        answers: list[list[int]] = [[] for _ in prompts]
        engine.training = False
        for _ in range(NEW):
            rows = [pack([(p + a, [-100] * len(p + a))], []) for p, a in zip(prompts, answers, strict=True)]
            with torch.no_grad():
                last = torch.stack([engine._layers(row)[row.lengths[0] - 1] for row in rows])
                x = ops.norm(last, engine.output.norm, engine.output.eps, ops.NO_DROP, fp8=False)[0].plain
            for answer, token in zip(answers, _draw(engine, x, 0.8, draw), strict=True):
                answer.append(token)
        engine.training = True
        for answer in answers:
            cut = next((i for i, token in enumerate(answer) if token in stops), len(answer))
            del answer[cut + 1 :]
        return answers

    whole = again([])
    stops = [whole[1][3], whole[2][0]]  # one ends early, one at once

    def drawn(stops: list[int]) -> list[list[int]]:
        return sample(engine, prompts, max_new_tokens=NEW, temperature=0.8, stops=stops, seed=5)

    assert drawn([]) == whole
    # a sequence that has ended goes on unseen, so that the others are as they would be without it
    assert drawn(stops) == again(stops)
    assert drawn([]) != sample(engine, prompts, max_new_tokens=NEW, temperature=0.8, stops=[], seed=6)
    assert engine.training


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_model_comes_nearer_to_its_teacher(tiny_model: Path, tmp_path: Path, record: dict, beta: float):
    from noesis.training.trainer import train

    job = distill_job(tiny_model, tmp_path, record, epochs=6, beta=beta)
    result = train(job)
    losses = [line["loss"] for line in lines_of(tmp_path)]
    assert result.steps == len(losses) == 12
    assert all(1 <= line["answer_tokens"] <= NEW for line in lines_of(tmp_path))
    assert sum(losses[-4:]) < sum(losses[:4])
    assert (tmp_path / "checkpoints" / "epoch_5" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_bit(tiny_model: Path, tmp_path: Path, record: dict):
    import shutil

    from noesis.training.trainer import train

    def adapter(folder: Path) -> bytes:
        return (folder / "checkpoints" / "epoch_1" / "adapter_model.safetensors").read_bytes()

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(distill_job(tiny_model, whole, record, epochs=2))
    shutil.copytree(whole, stopped)
    states = sorted((stopped / "checkpoints" / "resume").glob("checkpoint-*"), key=lambda p: int(p.name[11:]))
    shutil.rmtree(states[-1])
    shutil.rmtree(stopped / "checkpoints" / "epoch_1")
    result = train(distill_job(tiny_model, stopped, record, epochs=2))
    assert result.steps == 4
    assert adapter(stopped) == adapter(whole)


@pytest.mark.slow
def test_the_engine_alone_distils(tiny_model: Path, tmp_path: Path, record: dict):
    from noesis.training.trainer import train

    with pytest.raises(TrainingError, match="engine alone"):
        train(distill_job(tiny_model, tmp_path, record, epochs=1, **PLAIN))


def distill_job(model: Path, folder: Path, record: dict, *, epochs: int, beta: float = 1.0, **more: object) -> TrainJob:
    config = small(
        **{
            "training.method": "distill",
            "training.distill": {"beta": beta, "max_new_tokens": NEW, "temperature": 1.0},
            "training.num_train_epochs": epochs,
            "training.save_every": "1 step",
            "training.lr_scheduler_type": "constant",
        },
        **more,
    )
    prompts = distill_prompts(examples(16, record), open_encoder(model), CONSTITUTION, max_length=4096)
    workloads = Workloads(sft=count_sampled(prompts, NEW))
    plan = plan_of(config, "tiny", read_shape(model), workloads, detect())
    assert any("sampled at every step" in reason for reason in plan.reasons)
    job = TrainJob(
        model, TrainingSet(prompts=prompts), config, plan, detect(), folder / "checkpoints", folder / "metrics.jsonl"
    )
    assert TrainJob.from_json(job.to_json()) == replace(job, budget=None)
    return job


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
