"""Preference training on a tiny Llama: the loss against TRL's own, soft labels, held-out rewards, resuming."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from helpers.tiny_runs import CONSTITUTION, PLAIN, examples, small
from helpers.training_jobs import preference_job
from noesis.core.config import Config
from noesis.dataset.encode import example_pairs, soft_pairs
from noesis.dataset.schema import Example, PreferencePair
from noesis.llm.row_encoder import open_encoder
from noesis.training.job import PreferencePairs

PAIR = {
    "id": "p",
    "language": "pt",
    "prompt": "O que é a prudência?",
    "chosen": "Saber o que convém fazer agora.",
    "rejected": "Medo.",
    "p_chosen": 0.75,
}


def preferences(
    folder: Path, record: dict, count: int = 10, held_out: int = 3, *, soft: int = 0, critique: bool = False
) -> PreferencePairs:
    encoder = open_encoder(folder)
    pairs = example_pairs(
        examples(count + held_out, record), encoder, CONSTITUTION, include_critique=critique, max_length=2048
    )
    more = soft_pairs(
        [
            PreferencePair.model_validate(PAIR | {"id": f"p{i}", "prompt": f"Pergunta {i}: o que é a prudência?"})
            for i in range(soft)
        ],
        encoder,
        CONSTITUTION,
        max_length=2048,
    )
    return PreferencePairs([*pairs[:count], *more], pairs[count:])


def configured(**overrides: object) -> Config:
    base = {
        "training.method": "dpo",
        "training.dpo.learning_rate": 1e-2,
        "training.dpo.epochs": 2,
        "training.save_every": "1 step",
    }
    return small(**(base | overrides))


def prefer(tiny_model: Path, folder: Path, data: PreferencePairs, config: Config, start: Path | None = None) -> dict:
    from noesis.training.trainer import train

    return train(preference_job(tiny_model, folder, data, config, parent=start)).to_json()


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_critique_stands_before_both_answers(tiny_tokenizer_folder: Path, record: dict):
    encoder = open_encoder(tiny_tokenizer_folder)
    tokenizer = encoder.tokenizer
    (pair,) = example_pairs([Example.from_json(record)], encoder, CONSTITUTION, include_critique=True, max_length=2048)
    texts = [tokenizer.decode([label for label in row.labels if label >= 0]) for row in (pair.chosen, pair.rejected)]
    for text, answer in zip(texts, (record["response_revised"], record["response_initial"]), strict=True):
        assert text.startswith(f"[ANÁLISE INTERNA]\n{record['critique']}\n[FIM DA ANÁLISE]\n\n{answer}")


@pytest.mark.slow
@pytest.mark.parametrize("engine", [True, False])
def test_the_first_step_is_that_of_trl(
    tiny_model: Path, tmp_path: Path, record: dict, engine: bool, monkeypatch: pytest.MonkeyPatch
):
    """TRL's sigmoid and sft losses on the same pairs, with the adapter moved away from its reference."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from noesis.training.backends import build_model
    from noesis.training.backends.preference_loss import Scorer, rewards
    from noesis.training.backends.preference_trainer import build_preference_trainer
    from noesis.training.backends.run_trainer import TrainerParts
    from noesis.training.base_model import lora_config

    config = configured(
        **{"lora.quantization": {"load_in_4bit": False, "bnb_4bit_compute_dtype": "float32"}, "lora.lora_dropout": 0.0}
    )
    data = preferences(tiny_model, record, 4, 0)
    job = preference_job(tiny_model, tmp_path, data, config)
    parts = TrainerParts(AutoTokenizer.from_pretrained(tiny_model), TrainerCallback(), None)  # type: ignore[arg-type]
    if not engine:
        monkeypatch.setattr(build_model, "engine_refusal", lambda job: "this test")
    ours = build_preference_trainer(job, parts)
    scorer = Scorer(ours.model.engine)
    rows = [row for pair in data.train for row in pair.sequences]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        reference = scorer.losses(rows).view(-1, 2)
        moved = {
            n: torch.randn(p.shape, generator=generator) * 0.1
            for n, p in sorted(ours.model.named_parameters())
            if "lora_" in n and ".default." in n
        }
        for name, parameter in ours.model.named_parameters():
            if name in moved:
                parameter.copy_(moved[name])
    scorer.begin_step()
    found = scorer.losses(rows).view(-1, 2)
    reward = rewards(found, reference, 0.1)
    from noesis.training.backends.preference_loss import preference_loss

    loss = preference_loss(reward[:, 0], reward[:, 1], torch.ones(4)).mean() + 0.3 * found[:, 0].sum() / sum(
        p.chosen.trained for p in data.train
    )
    loss.backward()

    class AsItIs(DPOTrainer):
        def _prepare_dataset(self, dataset, *args):
            return dataset

    columns = [
        {
            "prompt_ids": ids[: len(ids) - p.chosen.trained],
            "chosen_ids": ids[len(ids) - p.chosen.trained :],
            "rejected_ids": p.rejected.input_ids[len(ids) - p.chosen.trained :],
        }
        for p in data.train
        for ids in [p.chosen.input_ids]
    ]
    arguments = DPOConfig(
        output_dir=str(tmp_path),
        beta=0.1,
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, 0.3],
        max_length=None,
        use_cpu=True,
        report_to=[],
        bf16=False,
        gradient_checkpointing=False,
    )
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    theirs = AsItIs(
        model=base,
        args=arguments,
        train_dataset=Dataset.from_list(columns),
        processing_class=parts.tokenizer,
        peft_config=lora_config(config, tiny_model),
    )
    with torch.no_grad():
        for name, parameter in theirs.model.named_parameters():
            if name in moved:
                parameter.copy_(moved[name])
    theirs.model.train()
    expected = theirs.compute_loss(theirs.model, theirs.data_collator(columns))
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    wanted = dict(theirs.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        if name in moved:
            assert (
                float((parameter.grad - wanted[name].grad).norm()) <= 1e-3 * float(wanted[name].grad.norm()) + 1e-7
            ), name


@pytest.mark.slow
def test_a_soft_label_is_the_mean_of_both_orders():
    import torch

    from noesis.training.backends.preference_loss import preference_loss

    chosen, rejected, one = torch.tensor([0.7, -0.2]), torch.tensor([0.1, 0.4]), torch.ones(2)
    p = torch.tensor([0.8, 0.5])
    expected = p * preference_loss(chosen, rejected, one) + (1 - p) * preference_loss(rejected, chosen, one)
    torch.testing.assert_close(preference_loss(chosen, rejected, p), expected)
    assert float(preference_loss(torch.zeros(1), torch.zeros(1), one[:1])) == pytest.approx(math.log(2))


@pytest.mark.slow
@pytest.mark.parametrize("path", ["engine", "packed", "plain"])
def test_rewards_of_held_out_pairs_rise(tiny_model: Path, tmp_path: Path, record: dict, path: str):
    overrides = {"engine": {}, "packed": {"training.packing": True}, "plain": PLAIN}[path]
    result = prefer(
        tiny_model,
        tmp_path,
        preferences(tiny_model, record, 16, 3, soft=4, critique=path == "packed"),
        configured(**overrides),
    )
    assert (result["steps"], result["epochs"]) == (6, 2)
    found = lines_of(tmp_path)
    assert (
        abs(found[0]["preference_loss"] - math.log(2)) < 0.02 and abs(found[0]["reward_margin"]) < 0.05
    )  # as the reference, but for rounding
    assert found[-1]["reward_margin"] > 0.1
    last = result["held_out"]["by_epoch"][-1]
    assert [line["step"] for line in found if "held_out_reward_margin" in line] == [3, 6]
    assert result["held_out"]["pairs"] == 3 and last["reward_accuracy"] == 1.0
    assert last["reward_margin"] > result["held_out"]["by_epoch"][0]["reward_margin"]
    assert (tmp_path / "checkpoints" / "epoch_1" / "adapter_model.safetensors").is_file()
    assert "ref" not in json.loads((tmp_path / "checkpoints" / "epoch_1" / "adapter_config.json").read_text())
    assert not (tmp_path / "checkpoints" / "epoch_1" / "ref").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stop", [2, 3])  # in mid-epoch, and at an epoch's end
def test_preference_training_that_was_stopped_ends_with_the_same_adapter(
    tiny_model: Path, tmp_path: Path, record: dict, monkeypatch: pytest.MonkeyPatch, stop: int
):
    from noesis.training.state.resumable import Resumable

    data = preferences(tiny_model, record, 20)
    prefer(tiny_model, tmp_path / "whole", data, configured())
    original = Resumable._save_checkpoint

    def stops(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if self.state.global_step == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(Resumable, "_save_checkpoint", stops)
    with pytest.raises(KeyboardInterrupt):
        prefer(tiny_model, tmp_path / "broken", data, configured())
    monkeypatch.undo()
    prefer(tiny_model, tmp_path / "broken", data, configured())
    name = "checkpoints/epoch_1/adapter_model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()
    for a, b in zip(lines_of(tmp_path / "whole"), lines_of(tmp_path / "broken"), strict=True):
        changing = ("tokens_per_s", "peak_memory_bytes", "usd")
        assert {k: v for k, v in a.items() if k not in changing} == {k: v for k, v in b.items() if k not in changing}


def project_of(tmp_path: Path) -> Path:
    """A project with 12 examples exported, 3 of them held out, a file of pairs and one of general rows."""
    from helpers.project import ROOT

    root = tmp_path / "project"
    (root / "data" / "training" / "exports").mkdir(parents=True)
    for name in ("constitution.yaml", "training/lora_config.yaml", "training/training_config.yaml"):
        (root / "data" / name).write_bytes((ROOT / "data" / name).read_bytes())
    for part, count in (("train", 9), ("eval", 3)):
        rows = (
            (ROOT / "data" / "training" / "exports" / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        )
        (root / "data" / "training" / "exports" / f"{part}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (root / "pairs.jsonl").write_text(
        "\n".join(json.dumps(PAIR | {"id": f"p{i}", "prompt": f"Pergunta {i}: e a prudência?"}) for i in range(3)),
        encoding="utf-8",
    )
    (root / "general.jsonl").write_text(
        "\n".join(json.dumps({"prompt": f"Say {i}.", "response": f"{i} it is."}) for i in range(5)), encoding="utf-8"
    )
    return root


def settings(**more: object) -> dict:
    return {
        "lora.r": 4,
        "lora.lora_alpha": 8,
        "training.learning_rate": 1e-2,
        "training.dpo.learning_rate": 1e-2,
        "training.dpo.epochs": 1,
        "training.num_train_epochs": 1,
        "training.save_every": "1 step",
        "training.dpo.pairs": "pairs.jsonl",
        "training.per_device_train_batch_size": 1,
        "training.max_length": 8192,
    } | more


def run_of(root: Path, tiny_model: Path, path: Path, **more: object):
    from noesis.core.config import load_config
    from noesis.core.project import Project
    from noesis.pipeline.stages.plan import run_plan
    from noesis.pipeline.stages.train import run_train
    from noesis.pipeline.start_run import from_exports, start_run

    project = Project(root)
    config = load_config(project, settings(**{"training.model": str(tiny_model)} | more))
    s = start_run(project, config, path, from_exports(project.exports, project))
    run_plan(s)
    run_train(s)
    return s


@pytest.mark.slow
def test_a_whole_run_of_both_parts_goes_on_after_a_kill_and_can_be_verified_and_replayed(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from noesis.core.files import sha256_file
    from noesis.pipeline.replay import replay
    from noesis.pipeline.verify.check_run import verify
    from noesis.training.state.resumable import Resumable

    root = project_of(tmp_path)
    both = {"training.method": "sft+dpo", "training.replay.file": "general.jsonl", "training.replay.share": 0.25}
    whole = run_of(root, tiny_model, tmp_path / "runs" / "whole", **both)
    result = whole.run.result("train")
    assert (result["sft"]["steps"], result["steps"]) == (
        3,
        3,
    )  # 9 examples and 3 general rows; 9 examples and 3 pairs; 4 a step
    assert len((whole.run.data / "replay.jsonl").read_text().splitlines()) == 3
    assert result["held_out"]["pairs"] == 3
    assert [found for found in verify(whole.run) if found.wrong] == []
    from noesis.pipeline.stages.report import run_report

    page = run_report(whole).read_text(encoding="utf-8")
    assert "3 held-out pairs after" in page and "Method sft+dpo" in page
    original = Resumable._save_checkpoint
    for part, step in (("sft", 2), ("checkpoints", 1)):

        def stops(self, *args, part=part, step=step, **kwargs):
            original(self, *args, **kwargs)
            if Path(self.args.output_dir).parent.name == part and self.state.global_step == step:
                raise KeyboardInterrupt

        monkeypatch.setattr(Resumable, "_save_checkpoint", stops)
        with pytest.raises(KeyboardInterrupt):
            run_of(root, tiny_model, tmp_path / "runs" / "broken", **both)
        monkeypatch.undo()
    broken = run_of(root, tiny_model, tmp_path / "runs" / "broken", **both)
    adapters = [sha256_file(s.run.adapter() / "adapter_model.safetensors") for s in (whole, broken)]
    assert (
        adapters[0]
        == adapters[1]
        != sha256_file(whole.run.checkpoints / "sft" / "epoch_0" / "adapter_model.safetensors")
    )
    assert replay(whole.run.path).identical
    again = (whole.run.data / "pairs.jsonl").read_text().replace("0.75", "0.95", 1)
    (whole.run.data / "pairs.jsonl").write_text(again)
    assert any("other examples" in (found.wrong or "") for found in verify(whole.run))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (PAIR | {"p_chosen": 0.4}, "p_chosen: .*greater than or equal to 0.5"),
        ({k: v for k, v in PAIR.items() if k != "p_chosen"}, "p_chosen: Field required"),
        (PAIR | {"rejected": PAIR["chosen"] + " "}, "the same answer"),
        (PAIR | {"prompt": "O que é a coragem, afinal?"}, "of a held-out example"),
        (PAIR | {"p_chosen": float("nan")}, "NaN is not JSON"),
        ("not JSON", "not JSON"),
    ],
)
def test_a_wrong_pair_is_refused_by_line(write_rows, record: dict, line: dict | str, why: str):
    from noesis.core.errors import DataError
    from noesis.dataset.auxiliary import read_pairs

    file = write_rows(PAIR | {"id": "first"}, line if isinstance(line, dict) else line.encode())
    with pytest.raises(DataError, match=rf"rows.jsonl:2: .*{why}"):
        read_pairs(file, [Example.from_json(record)])


def test_replayed_rows_are_the_share_that_was_asked_for(write_rows):
    from noesis.core.errors import DataError
    from noesis.dataset.auxiliary import read_replay, sample_replay

    short = [{"prompt": f"Say {i}.", "response": str(i)} for i in range(30)]
    chat = {
        "messages": [
            {"role": "system", "content": "Brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
        ]
    }
    rows = read_replay(write_rows(*short, chat))
    assert rows[-1].to_json() == chat and rows[0].messages[1].content == "0"
    assert len(sample_replay(rows, 90, 0.1, 0)) == 10 and sample_replay(rows, 90, 0.1, 0) == sample_replay(
        rows[::-1], 90, 0.1, 0
    ) != sample_replay(rows, 90, 0.1, 1)
    assert len(sample_replay(rows, 90, 0.5, 0)) == 31
    with pytest.raises(DataError, match=r"rows.jsonl:1: .*must alternate"):
        read_replay(
            write_rows({"messages": [{"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Hi"}]})
        )
