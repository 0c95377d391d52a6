"""Plans in use: settings, a run that continues elsewhere, `noesis plan`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.planning import CPU, LLAMA, SMOL, WORK, settings
from helpers.project import ROOT
from noesis.constitution.document import load_constitution
from noesis.core.config import load_config
from noesis.core.console import duration, size
from noesis.core.device import Device
from noesis.core.errors import ConfigError
from noesis.core.project import Project
from noesis.dataset.schema import Dataset, Example
from noesis.llm.embedded import Model
from noesis.pipeline.session import RunSession
from noesis.pipeline.stages.plan import run_plan
from noesis.pipeline.stages.train import run_train
from noesis.planning.draft import draft_plan
from noesis.planning.gpus import rented_gpu
from noesis.planning.model_shapes import read_shape
from noesis.planning.plan import stored_plan, with_planned_storage
from noesis.run.directory import load_run, open_run
from noesis.run.manifest import Identity

# --- settings


def edited(project: Path, **files: tuple[str, str]) -> Project:
    for name, (old, new) in files.items():
        path = project / "data" / "training" / f"{name}_config.yaml"
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")
    return Project(project)


@pytest.mark.parametrize(
    ("lora", "training"),
    [
        (("load_in_4bit: true", "load_in_4bit: false"), ("precision: auto", "precision: nf4")),
        (("r: 64 ", "r: 64 "), ("precision: auto", "precision: bf16")),
        (("bnb_4bit_quant_type: nf4", "bnb_4bit_quant_type: fp4"), ("precision: auto", "precision: nf4")),
    ],
)
def test_files_that_contradict_each_other_are_both_named(
    project: Path, lora: tuple[str, str], training: tuple[str, str]
):
    with pytest.raises(ConfigError) as caught:
        load_config(edited(project, lora=lora, training=training))
    assert "training_config.yaml says precision:" in str(caught.value)
    assert "lora_config.yaml says" in str(caught.value)


def test_one_word_is_enough_and_an_option_wins(project: Path):
    assert not settings(**{"training.precision": "bf16"}).lora.quantization.load_in_4bit
    silent = edited(
        project, lora=("  load_in_4bit: true", "  # load_in_4bit: true"), training=("precision: auto", "precision: fp8")
    )
    assert not load_config(silent).lora.quantization.load_in_4bit
    assert load_config(silent, {"training.precision": "auto"}).lora.quantization.load_in_4bit


def test_how_a_run_computes_leaves_its_identity_alone_and_its_precision_does_not():
    before = settings().digest()
    same = {
        "training.compile": True,
        "training.packing": False,
        "training.gradient_checkpointing": "full",
        "training.engine": "unsloth",
    }
    assert settings(**same).digest() == before
    assert settings(**{"training.precision": "bf16"}).digest() != before


@pytest.mark.parametrize("key", ["compile", "packing", "gradient_checkpointing", "precision", "engine"])
def test_a_wrong_switch_is_named(key: str):
    with pytest.raises(ConfigError, match=f"training.{key} = 'maybe'"):
        settings(**{f"training.{key}": "maybe"})


# --- a run


def session(path: Path, folder: Path, device: Device, record: dict) -> RunSession:
    config = settings()
    run = open_run(path, Identity("", "", "", "tiny", "0"), config)
    rows = [record | {"id": f"x_{i:03}", "prompt": f"Pergunta {i}: o que é a coragem?"} for i in range(20)]
    dataset = Dataset(tuple(Example.from_json(row) for row in rows))
    constitution = load_constitution(Project(ROOT).constitution)
    return RunSession(run, config, constitution, Model("tiny", folder, "0", "none"), device, dataset)


def test_a_run_that_goes_on_on_another_card_is_planned_anew_on_the_base_it_began_on(
    tmp_path: Path, tiny_shape: Path, record: dict
):
    a100, h100 = (
        replace(rented_gpu("A100-80GB"), name="NVIDIA A100-SXM4-80GB"),
        replace(rented_gpu("H100"), name="NVIDIA H100 80GB HBM3"),
    )
    lora = {"lora.quantization": {"load_in_4bit": False}}
    first = session(tmp_path / "run", tiny_shape, a100, record)
    first = replace(first, config=settings(**lora))
    begun = run_plan(first)
    assert begun is not None and begun.setup.precision == "bf16"
    assert (stored := run_plan(first)) is not None and stored.reasons == begun.reasons  # stored, not made again
    moved = replace(first, device=h100)
    (first.run.checkpoints / "resume").mkdir(parents=True)
    again = run_plan(moved)
    assert again is not None and again.device.name == h100.name
    assert again.setup.precision == "bf16"
    assert moved.arithmetic == "bfloat16"
    assert not moved.as_trained.lora.quantization.load_in_4bit


@pytest.mark.slow
def test_a_run_that_went_on_with_a_smaller_plan_stores_it_and_the_report_compares_with_it(
    tmp_path: Path, tiny_shape: Path, record: dict, monkeypatch: pytest.MonkeyPatch
):
    """Merging read the first plan's precision, which was not what had been trained."""
    from noesis.pipeline.stages.report import compared
    from noesis.pipeline.verify.check_run import verify
    from noesis.training import trainer
    from noesis.training.job import TrainJob, TrainResult

    h100 = replace(rented_gpu("H100"), name="NVIDIA H100 80GB HBM3")
    s = session(tmp_path / "run", tiny_shape, h100, record)
    first = run_plan(s)
    lower = draft_plan(settings(**{"training.precision": "nf4"}), "tiny", read_shape(tiny_shape), WORK, h100)
    assert (first.setup.precision, lower.setup.precision) == ("bf16", "nf4")
    figures = TrainResult(
        steps=9,
        epochs=3,
        tokens=43209,
        seconds=12.5,
        tokens_per_s=3456.7,
        first_loss=3.0,
        final_loss=2.0,
        peak_memory_bytes=7 * 10**9,
        smaller_plan=lower,
    )

    def trained(job: TrainJob) -> TrainResult:
        adapter = job.checkpoints / "epoch_0" / "adapter_model.safetensors"
        adapter.parent.mkdir(parents=True)
        adapter.write_bytes(b"")
        job.metrics.write_text("", encoding="utf-8")
        return figures

    monkeypatch.setattr(trainer, "train", trained)
    result = run_train(s)
    assert result.out_of_memory_once and result.smaller_plan == lower
    again = load_run(s.run.path)
    assert stored_plan(again.executed_plan()) == lower
    assert again.result("plan") == first.to_json()  # what was planned stays what it was
    assert again.is_done("train")
    checked = {found.what: found.wrong for found in verify(again)}
    # it was the plan that it replaced; this run was made without an export, which is all that is wrong with it
    assert checked["train: what it read"] == "it does not say which export it read"
    assert replace(s, run=again).as_trained.lora.quantization.load_in_4bit
    rows = {label: (expected, happened) for label, expected, happened in compared(again, lower)}
    assert rows["training time"] == (f"{duration(lower.seconds)} with start", duration(12.5))
    assert rows["tokens a second"] == (f"{lower.tokens_per_s:,.0f}", "3,457")
    assert rows["peak memory"] == (size(lower.memory_bytes), "7.0 GB")
    assert rows["stage train"][0] == duration(lower.seconds)
    assert rows["stage judge"][1] == rows["stage gguf"][1] == "–"
    assert rows["USD"] == ("0.00", "0.00")


def test_later_stages_read_the_base_that_the_plan_settled_on():
    plan = draft_plan(settings(), "m", LLAMA, WORK, rented_gpu("H100"), rented=True)
    assert plan.setup.precision == "bf16"
    assert settings().lora.quantization.load_in_4bit
    assert not with_planned_storage(settings(), plan).lora.quantization.load_in_4bit
    assert with_planned_storage(settings(), None) == settings()
    assert with_planned_storage(settings(), draft_plan(settings(), "m", SMOL, WORK, CPU)).lora == settings().lora


# --- the command


def plan_command(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    code = f"import sys; from noesis.cli import run_command; c = run_command({['plan', *arguments]!r}); print('LOADED', *sorted({{'torch', 'transformers', 'huggingface_hub', 'datasets', 'modal'}} & set(sys.modules)), file=sys.stderr); sys.exit(c)"
    environment = {**__import__("os").environ, "HF_HOME": str(home)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)


def test_the_command_plans_a_gated_model_for_a_card_that_is_not_here(tmp_path: Path):
    done = plan_command("--model", "meta-llama/Llama-3.1-8B-Instruct", "--gpu", "L40S", "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "LOADED"
    plan = json.loads(done.stdout)
    assert (plan["device"]["name"], plan["rows"], plan["fits"], plan["rented"]) == ("L40S", 111, True, True)


def test_the_command_says_what_does_not_fit_and_exits_1(tmp_path: Path):
    done = plan_command("--model", "meta-llama/Llama-3.1-70B-Instruct", "--gpu", "A10", "--gpus", "2", home=tmp_path)
    assert done.returncode == 1
    assert "DOES NOT FIT" in done.stdout
    assert "not enough memory: the plan needs" in done.stderr
    assert plan_command("--gpus", "4", home=tmp_path).returncode == 2
