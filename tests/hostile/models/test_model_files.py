"""Attacks by the small files of models and adapters, and by YAML: numbers that no model has, depth, size, aliases."""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.project import ROOT
from noesis.cli import run_command
from noesis.core.errors import ConfigError, ModelError
from noesis.core.yaml_file import read_yaml
from noesis.llm.gguf.families import read_config
from noesis.llm.hub import find_model
from noesis.llm.model_config import check_adapter_settings, check_model_folder
from noesis.llm.weights.tensors import UNSUPPORTED, read_adapter, weight_files
from noesis.planning.model_shapes import read_shape

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "num_hidden_layers": 2,
    "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
}  # fmt: skip
ADAPTER: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
NOT_WHOLE = {
    "0": 0, "a negative number": -1, "2⁶³": 1 << 63, "a fraction": 0.5, "a text": "x", "a list": [1], "an object": {"a": 1},
    "a truth value": True,
}  # fmt: skip
WHOLE = [
    "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size",
    "max_position_embeddings",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return folder


def one_message(work: Callable[[], object], kind: type[Exception] = ModelError) -> str:
    with pytest.raises(kind) as caught:
        work()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def test_a_sound_folder_passes(folder: Path):
    assert find_model(str(folder)).path == folder
    assert read_shape(folder).layers == 2
    assert read_config(folder).shape.heads == 4


@pytest.mark.parametrize(
    ("key", "value"),
    [pytest.param(key, value, id=f"{key} that is {name}") for key in WHOLE for name, value in NOT_WHOLE.items()],
)
def test_a_config_with_such_a_number_is_one_message(folder: Path, key: str, value: object):
    (folder / "config.json").write_text(json.dumps(CONFIG | {key: value}), encoding="utf-8")
    for read in (lambda: find_model(str(folder)), lambda: read_config(folder)):
        words = one_message(read)
        assert key in words
        assert str(folder / "config.json") in words
    if key != "max_position_embeddings" and not (key == "num_key_value_heads" and not value):
        assert key in one_message(lambda: read_shape(folder))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"num_attention_heads": 3}, id="heads that are no multiple of the shared ones"),
        pytest.param({"head_dim": 0}, id="heads of no width"),
        pytest.param({"rms_norm_eps": 0}, id="an epsilon of 0"),
        pytest.param({"rms_norm_eps": "x"}, id="an epsilon that is a text"),
        pytest.param({"rope_theta": -1}, id="a negative theta"),
        pytest.param({"rope_scaling": {"rope_type": "llama3", "factor": 0}}, id="a rotary factor of 0"),
        pytest.param({"rope_scaling": {"rope_type": "llama3", "factor": [1]}}, id="a rotary factor that is a list"),
        pytest.param({"architectures": "LlamaForCausalLM"}, id="architectures that are a text"),
        pytest.param({"architectures": [{"a": 1}]}, id="architectures of objects"),
        pytest.param({"num_hidden_layers": 2000, "hidden_size": 65536}, id="a config of trillions of weights beside a small file"),
        pytest.param({"vocab_size": 4_000_000, "hidden_size": 8192}, id="a vocabulary of gigabytes beside a small file"),
    ],
)  # fmt: skip
def test_a_config_that_contradicts_itself_or_its_weights_is_one_message(folder: Path, change: dict[str, Any]):
    (folder / "config.json").write_text(json.dumps(CONFIG | change), encoding="utf-8")
    assert str(folder / "config.json") in one_message(lambda: find_model(str(folder)))


DAMAGED = {
    "nothing": b"", "a list": b"[]", "a number": b"5", "null": b"null", "a beginning": b"{", "bytes that are not UTF-8": b"\xff\xfe",
    "objects 200,000 deep": b'{"a":' * 200_000, "lists 1,000,000 deep": b"[" * 1_000_000, "a number of 100,000 digits": b'{"a": ' + b"1" * 100_000 + b"}",
}  # fmt: skip
FILES = ["config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "model.safetensors.index.json"]  # fmt: skip


@pytest.mark.parametrize(
    "content", [pytest.param(content, id=f"a JSON file of {name}") for name, content in DAMAGED.items()]
)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_json_file_is_one_message_that_names_it(folder: Path, name: str, content: bytes):
    (folder / name).write_bytes(content)
    assert str(folder / name) in one_message(lambda: find_model(str(folder)))


@pytest.mark.parametrize("name", FILES)
def test_a_json_file_of_a_gigabyte_is_not_read(folder: Path, name: str):
    with open(folder / name, "wb") as f:
        f.truncate(1 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "longer than" in one_message(lambda: check_model_folder(folder))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


@pytest.mark.parametrize(
    "change",
    [
        pytest.param("{}", id="an empty config.json that is loaded"),
        pytest.param({"model_type": []}, id="a model_type that is a list"),
        pytest.param({"model_type": "x"}, id="a model_type that nobody knows"),
        pytest.param({"hidden_act": "x"}, id="an activation that nobody knows"),
        pytest.param({"pad_token_id": 10**30}, id="a padding token beyond every vocabulary"),
        pytest.param({"attention_bias": "x"}, id="a truth value that is a text"),
        pytest.param({"rope_parameters": {"rope_type": "llama3"}}, id="rotary parameters that are not all there"),
        pytest.param({"vocab_size": None}, id="a vocabulary of null"),
        pytest.param({"num_key_value_heads": 1}, id="heads that the weights contradict"),
        pytest.param({"tie_word_embeddings": False}, id="an output layer that no file holds"),
    ],
)  # fmt: skip
def test_what_transformers_trips_over_is_one_message(tiny_model: Path, tmp_path: Path, change: Any):
    from noesis.llm.causal_model import load_causal_model
    from noesis.release.parity.reference import merged_model

    folder = shutil.copytree(tiny_model, tmp_path / "m")
    file = folder / "config.json"
    text = change if isinstance(change, str) else json.dumps(json.loads(file.read_text(encoding="utf-8")) | change)
    file.write_text(text, encoding="utf-8")
    for load in (load_causal_model, merged_model):
        assert str(folder) in one_message(lambda load=load: load(folder))


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["x" * 5000], id="an index with a name of 5,000 letters"),
        pytest.param(["a\0b"], id="an index with a name of a null byte"),
        pytest.param(["../model.safetensors"], id="an index that leaves its folder"),
        pytest.param([""], id="an index with a name of no letters"),
        pytest.param([5], id="an index with a name that is a number"),
        pytest.param([f"{i}.safetensors" for i in range(20_000)], id="an index of 20,000 files"),
    ],
)
def test_an_index_with_such_names_is_one_message(folder: Path, names: list[Any]):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": {f"w{i}": name for i, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert str(folder) in one_message(lambda: weight_files(folder))


def test_a_weight_that_is_missing_is_never_made_up(tiny_model: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    from noesis.llm.causal_model import load_causal_model

    folder = shutil.copytree(tiny_model, tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.input_layernorm.weight"]
    save_file(tensors, folder / "model.safetensors")
    assert "'model.layers.1.input_layernorm.weight'" in one_message(lambda: load_causal_model(folder))


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight"]
)
def test_the_engine_takes_no_weight_of_another_shape(tiny_model: Path, tmp_path: Path, name: str):
    """Its kernels would read beyond the end of a smaller one."""
    import torch
    from safetensors.torch import load_file, save_file

    from noesis.training.engine.weights import Reader

    folder = shutil.copytree(tiny_model, tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    with Reader(folder, torch.float32, "cpu") as reader:
        reader.require(shapes)
    save_file(tensors | {name: tensors[name][:8].clone()}, folder / "model.safetensors")
    with Reader(folder, torch.float32, "cpu") as reader:
        assert name in one_message(lambda: reader.require(shapes))
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    with Reader(folder, torch.float32, "cpu") as reader:
        assert name in one_message(lambda: reader.require(shapes))


# --- adapters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        *[pytest.param({"r": value}, id=f"a rank that is {name}") for name, value in NOT_WHOLE.items()],
        pytest.param({"r": None}, id="a rank of null"),
        *[
            pytest.param({"lora_alpha": value}, id=f"an alpha that is {name}")
            for name, value in NOT_WHOLE.items()
            if name not in ("a fraction",)
        ],
        pytest.param({"lora_alpha": None}, id="an alpha of null"),
        pytest.param({"lora_alpha": float("nan")}, id="an alpha of NaN"),
        pytest.param({"lora_alpha": float("inf")}, id="an alpha of infinity"),
        pytest.param({"lora_dropout": 2}, id="a dropout of 2"),
        pytest.param({"target_modules": "(a+)+(a+)+$"}, id="target_modules that are a pattern that never ends"),
        pytest.param({"target_modules": []}, id="no target_modules"),
        pytest.param({"target_modules": [1]}, id="target_modules of numbers"),
        pytest.param({"target_modules": None}, id="target_modules of null"),
        pytest.param({"init_lora_weights": "pissa"}, id="a beginning that changes the base"),
        pytest.param({"init_lora_weights": [1]}, id="a beginning that is a list"),
    ],
)
def test_an_adapter_with_such_a_value_is_one_message(tmp_path: Path, change: dict[str, Any]):
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(ADAPTER | change), encoding="utf-8")
    words = one_message(lambda: check_adapter_settings(file))
    assert str(file) in words
    assert next(iter(change)) in words


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_with_a_pipe_in_place_of_a_file_does_not_wait(tmp_path: Path, name: str):
    (tmp_path / "adapter_config.json").write_text(json.dumps(ADAPTER), encoding="utf-8")
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    assert name in one_message(lambda: read_adapter(tmp_path))
    if name.endswith(".json"):
        assert "not a plain file" in one_message(lambda: check_adapter_settings(tmp_path / name))


def test_a_sound_adapter_passes(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(ADAPTER | {"lora_alpha": 0.5, "lora_dropout": 0}))
    assert check_adapter_settings(tmp_path / "adapter_config.json")["r"] == 4


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"r": 0}, id="merging an adapter of rank 0"),
        pytest.param({"lora_alpha": "x"}, id="merging an adapter whose alpha is a text"),
        pytest.param({"layer_replication": [[0, 2], [0, 2]] * 1000}, id="merging an adapter that copies layers"),
        pytest.param({"exclude_modules": "(a+)+$"}, id="merging an adapter with a pattern of what to leave out"),
        pytest.param({"peft_type": ["LORA"]}, id="merging an adapter whose kind is a list"),
        pytest.param({"rank_pattern": {"(a+)+$": 4}}, id="merging an adapter whose ranks go by a pattern"),
        pytest.param({"layers_pattern": "(a+)+$"}, id="merging an adapter whose layers go by a pattern"),
        pytest.param({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, id="merging an adapter that has a module imported"),
    ],
)  # fmt: skip
def test_a_hostile_adapter_is_refused_wherever_it_is_loaded(tiny_adapter: Path, tmp_path: Path, change: dict[str, Any]):
    from noesis.training.base_model import with_adapter

    shutil.copytree(tiny_adapter, tmp_path / "a")
    raw = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(raw | change))
    assert str(tmp_path / "a") in one_message(lambda: read_adapter(tmp_path / "a"))
    assert str(tmp_path / "a") in one_message(lambda: with_adapter(None, tmp_path / "a"))


CHECKED = {"peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "init_lora_weights"}
WITHOUT_HARM = {  # not read when an adapter is loaded, or of no effect on one whose other settings passed
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "bias",
    "use_rslora", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size",
    "runtime_config", "ensure_weight_tying",
}  # fmt: skip


def test_each_setting_of_peft_is_checked_refused_or_known_to_be_without_harm():
    """So that one of a later PEFT is looked at before it is let in."""
    from dataclasses import fields

    from peft import LoraConfig

    assert {field.name for field in fields(LoraConfig)} - CHECKED - WITHOUT_HARM == set(UNSUPPORTED)


# --- YAML -----------------------------------------------------------------------------------------------------------

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
YAML = {
    "a billion laughs": BOMB,
    "an alias to itself": "a: &a [*a]",
    "a merge of aliases": "a: &a {b: 1}\nc: {<<: *a}",
    "an alias as a key": "a: &a b\n*a : c",
    "lists 100,000 deep": "[" * 100_000,
    "closed lists 20,000 deep": "[" * 20_000 + "]" * 20_000,
    "mappings 20,000 deep": "{a: " * 20_000,
    "blocks 3,000 deep": "".join(" " * i + "a:\n" for i in range(3_000)),
    "a key that is there twice": "a: 1\na: 2",
    "a key that is there twice further down": "a:\n  b: 1\n  b: 2",
    "a key that is a list": "? [a, b]\n: c",
    "a key that is a mapping": "{a: b}: c",
    "a tag that runs code": "!!python/object/apply:os.system ['true']",
    "a tag that imports": "a: !!python/name:os.system",
    "a date that is none": "a: 2024-99-99",
    "a number of 100,000 digits": "a: " + "1" * 100_000,
    "a number in base 60 without end": "a: " + ":".join(["59"] * 10_000),
    "half a pair": 'a: "\\ud800',
    "a null byte": "a: \x00",
    "a tab in place of spaces": "a:\n\tb: 1",
    "five megabytes": "a: " + "b" * 5_000_000,
}


@pytest.mark.parametrize("content", [pytest.param(content, id=f"YAML with {name}") for name, content in YAML.items()])
def test_hostile_yaml_is_one_message_of_the_configuration(project: Path, content: str):
    file = project / "data" / "training_config.yaml"
    file = file if file.is_file() else next((project).rglob("training_config.yaml"))
    file.write_text(content, encoding="utf-8")
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    from noesis.core.config import load_config
    from noesis.core.project import Project

    words = one_message(lambda: load_config(Project(project)), ConfigError)
    assert file.name in words
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000
    assert time.process_time() - start < 20


def test_hostile_yaml_ends_a_command_with_code_2(project: Path, capsys: pytest.CaptureFixture[str]):
    file = next(project.rglob("constitution.yaml"))
    file.write_text(BOMB, encoding="utf-8")
    assert run_command(["data", "validate", "--project", str(project)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_all_yaml_of_the_project_is_read(tmp_path: Path):
    for file in (ROOT / "data").rglob("*.yaml"):
        assert read_yaml(file)
