"""Devices, shapes and settings that tests of the planner share."""

from __future__ import annotations

from helpers.project import ROOT
from noesis.core.config import Config, load_config
from noesis.core.device import Device
from noesis.core.families.shape import Shape
from noesis.core.project import Project
from noesis.planning.model_shapes import known_model
from noesis.planning.setup import Setup
from noesis.planning.workload import Workload

CPU = Device("cpu", "test", 16 * 10**9, 2, True)
LENGTHS = tuple(300 + 37 * i % 500 for i in range(111))
WORK = Workload(LENGTHS, sum(LENGTHS) * 2 // 3)
LORA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def settings(**overrides: object) -> Config:
    return load_config(Project(ROOT), overrides)


def shape_of(name: str) -> Shape:
    found = known_model(name)
    assert found is not None
    return found.shape


LLAMA = shape_of("meta-llama/Llama-3.1-8B-Instruct")
SMOL = shape_of("smollm2")


def setup(engine: str, precision: str, checkpointing: str, gpus: int = 1) -> Setup:
    eight_bit = engine == "unsloth" or (precision, checkpointing) == ("nf4", "full")
    optimizer = "adamw_8bit" if eight_bit else "adamw"
    return Setup(engine, precision, "bfloat16", checkpointing, True, 8192, 8, 1, optimizer, gpus)
