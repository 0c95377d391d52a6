"""What the planner chooses, and what it says when nothing fits."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from helpers.planning import CPU, LENGTHS, LLAMA, SMOL, WORK, settings, shape_of
from helpers.project import ROOT
from noesis.core.console import duration
from noesis.core.device import Device
from noesis.core.errors import TrainingError
from noesis.planning import search
from noesis.planning.by_method import plan_of
from noesis.planning.draft import draft_plan, make_plan
from noesis.planning.gpus import GIB, rented_gpu
from noesis.planning.plan import Plan, next_smaller_plan, stored_plan, with_planned_storage
from noesis.planning.workload import PairWorkload, Workloads

# --- what is chosen


@pytest.mark.parametrize("name", ["smollm2", "Qwen/Qwen2.5-7B", "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B"])
@pytest.mark.parametrize("card", ["H100", "L40S", "A100-80GB", "T4"])
@pytest.mark.parametrize("epochs", [1, 40])
def test_more_memory_never_gives_a_slower_plan(name: str, card: str, epochs: int):
    task = search.PlanningTask(
        settings(**{"training.num_train_epochs": epochs}), shape_of(name), WORK, rented_gpu(card), rented=True
    )
    found = search.enumerate_setups(task)
    times = []
    for gib in (4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 141, 180, 500):
        choice = search.fastest_fit([replace(o, fits=o.memory.fits(gib * GIB, on_gpu=True)) for o in found])
        times += [choice.seconds] if choice.fits else []
        if gib == 24:  # memory decides what fits and nothing else
            assert choice == search.fastest_fit(
                search.enumerate_setups(replace(task, device=replace(task.device, memory_bytes=gib * GIB)))
            )
    assert times == sorted(times, reverse=True)
    assert times or name.endswith("70B")


@pytest.mark.parametrize(
    ("card", "epochs", "installed", "chosen"),
    [
        ("H100", 400, True, "flash4"),
        ("H100", 1, True, "flash2"),  # compiling its kernels takes longer than they save
        ("H100", 400, False, "flash2"),
        ("A100-80GB", 400, True, "flash2"),
    ],
)
def test_flash_attention_4_is_chosen_where_it_is_there_and_pays(
    card: str, epochs: int, installed: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(search, "has_flash4", lambda: installed)
    config = settings(**{"training.num_train_epochs": epochs})
    plan = draft_plan(config, "llama", shape_of("meta-llama/Llama-3.1-8B"), WORK, rented_gpu(card))
    assert plan.setup.attention == chosen
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))).setup == plan.setup
    assert ("attention" in plan.setup.to_json()) == (chosen == "flash4")
    rented = draft_plan(config, "llama", shape_of("meta-llama/Llama-3.1-8B"), WORK, rented_gpu(card), rented=True)
    assert rented.setup.attention == "flash2"


@pytest.mark.parametrize(
    "device",
    [CPU, rented_gpu("H100"), rented_gpu("A10"), rented_gpu("T4"), rented_gpu("L40S", 4)],
    ids=lambda d: f"{d.gpus}x{d.name}",
)
@pytest.mark.parametrize(("batch", "accumulate"), [(2, 4), (1, 8), (8, 1), (3, 2)])
@pytest.mark.parametrize("packing", ["auto", True, False])
def test_every_setup_holds_the_same_sequences_and_smaller_ones_need_less(
    device: Device, batch: int, accumulate: int, packing: object
):
    config = settings(
        **{
            "training.per_device_train_batch_size": batch,
            "training.gradient_accumulation_steps": accumulate,
            "training.packing": packing,
        }
    )
    shape = SMOL if device.kind == "cpu" else LLAMA
    for option in search.enumerate_setups(search.PlanningTask(config, shape, WORK, device, cpu_flops=1e11)):
        s = option.setup
        assert s.sequences_per_step == batch * accumulate
        assert s.sequences_per_step % max(s.gpus, 1) == 0
        assert s.sequences_per_step // max(s.gpus, 1) % s.micro_batch == 0
        assert s.pack_length >= WORK.longest if s.packing else s.pack_length == 0
    plan = draft_plan(config, "m", shape, WORK, device)
    steps, seen = plan.steps, 0
    assert plan.micro_batch * plan.accumulation * max(plan.setup.gpus, 1) == batch * accumulate
    while (lower := next_smaller_plan(plan)) is not None:
        assert lower.memory_bytes < plan.memory_bytes
        assert lower.stages[0].seconds == lower.seconds
        assert (lower.steps, lower.setup.sequences_per_step, lower.rows) == (steps, batch * accumulate, plan.rows)
        assert lower == Plan.from_json(json.loads(json.dumps(lower.to_json())))
        plan, seen = lower, seen + 1
    assert seen or packing is False


def test_smaller_keeps_the_precision_while_it_can():
    plan = draft_plan(settings(), "m", LLAMA, WORK, rented_gpu("H100"), rented=True)
    names = [plan.setup.precision, *(fallback.setup.precision for fallback in plan.fallbacks)]
    assert names[0] == "bf16"
    assert names[-1] == "nf4"
    assert names.index("nf4") >= 3
    assert len(set(names)) == sum(a != b for a, b in pairwise(names)) + 1  # never back


def test_compile_is_accepted_in_the_settings_and_changes_nothing():
    plain, asked = (
        draft_plan(settings(**{"training.compile": c}), "m", LLAMA, WORK, rented_gpu("L40S"), rented=True)
        for c in ("auto", True)
    )
    assert asked == plain
    assert asked.to_json()["setup"]["compile"] is False  # the key stays in the JSON, which is hashed


def test_a_stored_plan_is_written_as_it_was_read():
    """`train` records the hash of the plan's JSON: one changed byte makes every finished run look stale."""
    manifest = json.loads((ROOT / "tests" / "helpers" / "golden_run" / "manifest.json").read_text(encoding="utf-8"))
    stored = manifest["stages"]["plan"]["result"]
    plan = Plan.from_json(stored)
    assert json.dumps(plan.to_json()) == json.dumps(stored)
    assert plan.setup.precision == plan.fallbacks[0].setup.precision == "nf4"
    assert stored_plan(None) is stored_plan({"seconds": 1.0}) is None


def test_a_plan_of_two_parts_survives_json():
    pairs = PairWorkload(LENGTHS, WORK.trained, held_out_tokens=5000)
    plan = plan_of(settings(**{"training.method": "sft+dpo"}), "m", SMOL, Workloads(WORK, pairs), CPU)
    assert plan.sft is not None
    assert plan.seconds > plan.sft.seconds
    assert plan.stages[0].seconds == pytest.approx(plan.seconds, abs=0.2)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    with pytest.raises(ValueError, match="neither was given"):
        Workloads()


def test_fp8_is_taken_only_when_asked_for_and_the_plan_says_what_it_would_save():
    """Its gradients missed the limit that was set for them (docs/decisions/0013)."""
    config = {"training.num_train_epochs": 50}
    for name in ("H100", "H200", "L40S", "RTX-4090"):
        found = search.enumerate_setups(
            search.PlanningTask(settings(**config), LLAMA, WORK, rented_gpu(name), rented=True)
        )
        assert {o.setup.precision for o in found} == {"bf16", "nf4"}
    plan = draft_plan(settings(**config), "m", LLAMA, WORK, rented_gpu("H100"), rented=True)
    fast = draft_plan(
        settings(**config, **{"training.precision": "fp8"}), "m", LLAMA, WORK, rented_gpu("H100"), rented=True
    )
    assert (plan.setup.precision, fast.setup.precision) == ("bf16", "fp8")
    best = [
        search.fastest_fit(
            search.enumerate_setups(
                search.PlanningTask(settings(**config, **wish), LLAMA, WORK, rented_gpu("H100"), rented=True)
            )
        ).seconds
        for wish in ({}, {"training.precision": "fp8"})
    ]
    saved = duration(best[0] - best[1])
    assert any(r.startswith("fp8: not chosen") and r.endswith(f"would save {saved}") for r in plan.reasons)
    assert any(r.startswith("fp8: its gradients are 0.16 from float32's") for r in fast.reasons)


def test_cards_without_bfloat16_are_planned_for_transformers_own_layers():
    found = search.enumerate_setups(search.PlanningTask(settings(), LLAMA, WORK, rented_gpu("T4", 4), rented=True))
    assert {(o.setup.fused, o.setup.gpus, o.sharded) for o in found} == {(False, 1, False)}
    assert "selective" not in {o.setup.gradient_checkpointing for o in found}


@pytest.mark.parametrize(
    ("wish", "device", "precision", "said"),
    [
        ("fp8", rented_gpu("A100-80GB"), "bf16", "fp8 is configured, but A100-80GB can't compute in it"),
        ("bf16", replace(CPU, bf16=False), "fp32", "bf16 is configured, but"),
        ("fp8", CPU, "bf16", "fp8 is configured, but"),
        ("bf16", rented_gpu("H100"), "bf16", "as configured"),
        ("fp32", CPU, "fp32", "as configured"),
        ("nf4", rented_gpu("H100"), "nf4", "as configured"),
        ("auto", CPU, "nf4", "nf4"),
        ("auto", rented_gpu("H100"), "bf16", "nf4 would take"),
        ("auto", rented_gpu("A100-80GB"), "bf16", "has no FP8"),
        ("auto", rented_gpu("T4"), "nf4", "fp32 would need"),
    ],
)
def test_a_wish_is_met_or_the_plan_says_why_not(wish: str, device: Device, precision: str, said: str):
    shape = SMOL if device.kind == "cpu" else LLAMA
    plan = draft_plan(settings(**{"training.precision": wish}), "m", shape, WORK, device, rented=device.kind == "cuda")
    assert plan.setup.precision == precision
    assert said in plan.reasons[0]
    if not device.bf16:
        assert plan.setup.compute_dtype != "bfloat16"


def test_without_bitsandbytes_the_next_best_is_taken_and_said(monkeypatch: pytest.MonkeyPatch):
    for module in ("precision", "search"):
        monkeypatch.setattr(f"noesis.planning.{module}.find_spec", lambda name: None)
    plan = draft_plan(settings(), "m", SMOL, WORK, CPU)
    assert plan.setup.precision == "bf16"
    assert "bitsandbytes" in plan.reasons[0]
    assert not with_planned_storage(settings(), plan).lora.quantization.load_in_4bit


def test_unsloth_trains_what_it_can_and_only_on_cards():
    wish = settings(**{"training.engine": "unsloth"})
    on_gpu = draft_plan(wish, "m", LLAMA, WORK, rented_gpu("H100", 2), rented=True).setup
    assert (on_gpu.engine, on_gpu.precision, on_gpu.gpus) == ("unsloth", "bf16", 1)
    here = draft_plan(wish, "m", SMOL, WORK, CPU)
    assert here.setup.engine == "noesis"
    assert any("unsloth is configured, but" in r for r in here.reasons)


def test_a_step_is_shared_evenly_by_as_many_cards_as_can():
    plan = draft_plan(settings(), "m", LLAMA, WORK, rented_gpu("H100", 3), rented=True)
    assert plan.setup.gpus == 2
    assert any(r.startswith("GPUs: 2 of 3") for r in plan.reasons)
    one, two = (
        draft_plan(settings(**{"training.num_train_epochs": 50}), "m", LLAMA, WORK, rented_gpu("H100", n), rented=True)
        for n in (1, 2)
    )
    assert 1.5 < two.tokens_per_s / one.tokens_per_s <= 2
    assert two.steps == one.steps


def test_a_model_too_large_for_one_card_is_spread_over_several():
    big = shape_of("meta-llama/Llama-3.1-70B-Instruct")
    assert not draft_plan(settings(), "m", big, WORK, rented_gpu("L40S"), rented=True).fits
    plan = draft_plan(settings(), "m", big, WORK, rented_gpu("L40S", 4), rented=True)
    assert plan.fits
    assert (plan.sharded, plan.setup.precision, plan.setup.gpus) == (True, "nf4", 4)


# --- too little memory


def test_too_little_memory_names_the_nearest_plan_that_fits():
    wish = settings(
        **{"training.gradient_checkpointing": "none", "training.packing": False, "training.precision": "bf16"}
    )
    with pytest.raises(TrainingError) as caught:
        make_plan(wish, "m", LLAMA, WORK, rented_gpu("A10"), rented=True)
    message = str(caught.value)
    for part in (
        "the plan needs",
        "A10 has",
        "nearest plan that fits",
        "load_in_4bit: true",
        "per_device_train_batch_size: 1",
        "gradient_accumulation_steps: 8",
    ):
        assert part in message, message
    with pytest.raises(TrainingError, match=r"smaller --model; or --gpu \S+: \S+, .* USD"):
        make_plan(settings(), "m", LLAMA, WORK, Device("cpu", "small", 3 * 10**9, 2, True))


def test_the_nearest_plan_does_fit():
    """The settings that the message names are tried."""
    bare = {
        "training.per_device_train_batch_size": 1,
        "training.gradient_accumulation_steps": 8,
        "training.gradient_checkpointing": "full",
    }
    assert make_plan(settings(**bare), "m", LLAMA, WORK, rented_gpu("T4"), rented=True).fits


@pytest.mark.parametrize(
    ("method", "work"),
    [
        ("sft", Workloads(replace(WORK, anchored=WORK.tokens, own_answers=40))),
        ("distill", Workloads(replace(WORK, anchored=2 * WORK.tokens, sampled=len(WORK.lengths)))),
        ("dpo", Workloads(pairs=PairWorkload(LENGTHS, WORK.trained, held_out_tokens=50_000))),
        ("sft+dpo", Workloads(WORK, PairWorkload(LENGTHS, WORK.trained, held_out_tokens=50_000))),
    ],
)
def test_what_a_method_adds_is_counted_elsewhere_as_it_is_here(method: str, work: Workloads):
    device = rented_gpu("H100")
    plan = plan_of(settings(**{"training.method": method}), "m", LLAMA, work, device, rented=True)
    elsewhere = {option.device: option for option in plan.alternatives}
    assert elsewhere["H100"].seconds == pytest.approx(plan.stages[0].seconds, rel=0.01)
    assert elsewhere["H100"].usd == pytest.approx(plan.stages[0].usd, rel=0.01)
    assert elsewhere["A10"].seconds > elsewhere["H100"].seconds


def test_seeds_share_their_start_where_they_share_their_passes():
    def planned(method: str, seeds: int, device: Device, rented: bool) -> Plan:
        pairs = PairWorkload(LENGTHS, WORK.trained)
        work = Workloads(WORK) if method == "sft" else Workloads(pairs=pairs)
        chosen = settings(**{"training.method": method, "training.seeds": seeds})
        return plan_of(chosen, "m", SMOL, work, device, rented=rented)

    for method, device, rented in (
        ("sft", rented_gpu("H100"), True),
        ("dpo", rented_gpu("H100"), True),
        ("sft", CPU, False),
    ):
        one, three = (planned(method, seeds, device, rented) for seeds in (1, 3))
        shared = method == "sft" and rented
        expected = 3 * one.stages[0].seconds - (2 * one.start_seconds if shared else 0)
        assert three.stages[0].seconds == pytest.approx(expected, abs=0.5)
        assert three.steps == one.steps and three.seeds == 3
        assert any(reason.startswith("seeds: 3 adapters") for reason in three.reasons)
        assert (three.memory.adapter > one.memory.adapter) == shared
        where = "H100" if rented else "this CPU"
        seconds = next(option.seconds for option in three.alternatives if option.device == where)
        assert seconds == pytest.approx(three.stages[0].seconds, rel=0.01)
        assert Plan.from_json(json.loads(json.dumps(three.to_json()))) == three
