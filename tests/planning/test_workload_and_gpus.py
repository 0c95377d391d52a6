"""What a plan is made from: tokens, GPUs and their prices."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.planning import CPU, LLAMA, SMOL, WORK, settings
from helpers.project import ROOT
from noesis.constitution.document import load_constitution
from noesis.core.device import Device, parse_nvidia_smi, usable_cpus, usable_threads
from noesis.core.errors import ModelError, UsageError
from noesis.core.project import Project
from noesis.dataset.schema import Dataset, Example
from noesis.llm.hub import find_description, find_tokenizer
from noesis.pipeline.stages.plan import plan_without_run
from noesis.pipeline.start_run import from_sources
from noesis.pipeline.training_set import estimate_workload
from noesis.planning.display import plan_lines
from noesis.planning.draft import draft_plan
from noesis.planning.gpus import gpu_of, prices, rented_gpu
from noesis.planning.model_shapes import known_model
from noesis.planning.workload import Workload, first_fit

# --- tokens


def test_packing_and_padding_by_hand():
    assert sorted(first_fit([5, 4, 3, 3, 2, 1], 6)) == [6, 6, 6]
    assert Workload((100,) * 24, 0).packed_rows(400, 8) == 2
    assert Workload((100,) * 3, 0).packed_rows(400, 8) == 1  # fewer rows than a step holds
    pair = Workload((1, 3), 0)
    assert (pair.padded(1), pair.padded(2)) == (4, 5)  # with replacement: the longer one in three of four draws
    assert pair.step_tokens(1) == 3


@pytest.mark.slow
@pytest.mark.parametrize("language", ["pt", "en"])
def test_the_ratio_of_smollm2_is_that_of_its_tokenizer(language: str):
    from noesis.llm.hub import find_model
    from noesis.llm.row_encoder import open_encoder
    from noesis.pipeline.training_set import build_training_set

    config, constitution = (
        settings(**{"training.data.language": language}),
        load_constitution(Project(ROOT).constitution),
    )
    dataset = from_sources(Project(ROOT), config)
    exact = build_training_set(config, dataset, open_encoder(find_model("smollm2").path), constitution).rows
    ratio = known_model("smollm2").ratio
    guess = estimate_workload(dataset.train, constitution, ratio, include_critique=False)
    assert guess.tokens == pytest.approx(sum(len(r.input_ids) for r in exact), rel=ratio.plus_minus)
    assert guess.trained == pytest.approx(sum(r.trained for r in exact), rel=ratio.plus_minus)


def test_tokens_of_a_gated_model_are_an_estimate_and_its_own_tokenizer_replaces_it(
    tiny_shape: Path, record: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    name = "meta-llama/Llama-3.1-8B-Instruct"
    config, constitution = settings(**{"training.model": name}), load_constitution(Project(ROOT).constitution)
    dataset = Dataset(tuple(Example.from_json(record | {"id": f"x_{i}"}) for i in range(20)))
    with pytest.raises(ModelError, match="meta-llama"):
        plan_without_run(config, dataset, constitution, gpu="H100", exactly=True)  # no network, and nothing is guessed
    plan, _ = plan_without_run(config, dataset, constitution, gpu="H100")
    assert plan.relative_error == 0.15
    assert "± 15%" in "\n".join(plan_lines(plan, everything=True))
    snapshot = tmp_path / "hub" / "models--meta-llama--Llama-3.1-8B-Instruct" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(tiny_shape)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    assert find_tokenizer(name) == snapshot
    assert plan_without_run(config, dataset, constitution, gpu="H100")[0].relative_error == 0


def test_an_unknown_model_without_network_is_one_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert find_tokenizer("some-org/some-model") is None
    with pytest.raises(ModelError):
        find_description("some-org/some-model")


# --- machines and prices


def test_openmps_variable_binds_every_model(monkeypatch: pytest.MonkeyPatch):
    """llama.cpp took all CPUs where torch was told to take one, and two programs side by side stood in each other's way."""
    monkeypatch.setattr("noesis.core.device.usable_cpus", lambda: 4)
    for said, threads in {"1": 1, "3,2": 3, "16": 4, "0": 1, "": 4, "all": 4}.items():
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        assert usable_threads() == threads, said
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert usable_threads() == 4
    assert usable_cpus() >= 1


def test_cards_are_read_from_the_driver_and_chosen_by_the_environment():
    lines = "0, GPU-aaaa, NVIDIA H100 80GB HBM3, 80000, 9.0\n1, GPU-bbbb, NVIDIA H100 80GB HBM3, 70000, 9.0\n2, GPU-cccc, NVIDIA A100-SXM4-80GB, 81000, 8.0\nnoise\n"
    both = parse_nvidia_smi(lines, None, 8)
    assert both == Device("cuda", "NVIDIA H100 80GB HBM3", 70000 * 2**20, 8, True, True, 2)
    assert parse_nvidia_smi(lines, "2", 8) == Device("cuda", "NVIDIA A100-SXM4-80GB", 81000 * 2**20, 8, True, False, 1)
    assert parse_nvidia_smi(lines, "GPU-b", 8).gpus == 1
    assert parse_nvidia_smi(lines, "MIG-x", 8).gpus == 1
    assert parse_nvidia_smi("", None, 8) is None
    assert parse_nvidia_smi("0, GPU-a, Tesla T4, [N/A], 7.5", None, 8) is None


@pytest.mark.parametrize(
    ("driver", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-40GB"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA A10", "A10"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("NVIDIA Something New", "NVIDIA Something New"),
    ],
)
def test_a_driver_name_finds_its_card(driver: str, card: str):
    assert gpu_of(Device("cuda", driver, 10**10, 1, True, gpus=1)).name == card


def test_a_card_that_is_not_known_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="L40S"):
        rented_gpu("H1000")
    assert rented_gpu("a10g").name == "A10"


def test_usd_is_seconds_times_the_dated_price():
    plan = draft_plan(settings(), "m", LLAMA, WORK, rented_gpu("H100", 2), rented=True)
    train = plan.stages[0]
    # the price list of 2026-08: card, core and GiB a second; 2 cores and 32 GiB beside each card
    assert train.usd == pytest.approx(train.seconds * 2 * (0.001097 + 2 * 0.0000131 + 32 * 0.00000222), rel=1e-9)
    assert plan.usd == pytest.approx(sum(stage.usd for stage in plan.stages), abs=1e-3)
    assert plan.prices.date == prices().date == "2026-08"
    assert draft_plan(settings(), "m", SMOL, WORK, CPU).usd == 0
    assert [option.device for option in plan.alternatives] == ["this CPU", "A10", "L40S", "A100-80GB", "H100"]
