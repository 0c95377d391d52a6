"""Base models that people name and that can't be trained: refused by name, before weights are fetched or loaded."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from helpers.project import SHAPE
from noesis.cli import run_command
from noesis.core.errors import ModelError
from noesis.llm.hub import find_base, find_model
from noesis.llm.model_config import require_trainable

SOUND = SHAPE | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5}


def write_model(folder: Path, more: dict[str, Any], dtype: str = "BF16") -> Path:
    """A model folder whose weights are one tensor."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SOUND | more), encoding="utf-8")
    size = 2 if dtype in ("BF16", "F16") else 1
    header = json.dumps({"a": {"dtype": dtype, "shape": [1], "data_offsets": [0, size]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * size)
    return folder


def quantised(method: str) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": method, "bits": 4}}


REFUSED = [
    pytest.param(quantised("fp8"), "stored quantised ('quantization_config: fp8')", id="FP8"),
    pytest.param(quantised("gptq"), "gptq", id="GPTQ"),
    pytest.param(quantised("awq"), "awq", id="AWQ"),
    pytest.param(quantised("compressed-tensors"), "compressed-tensors", id="compressed-tensors"),
    pytest.param(quantised("mxfp4"), "mxfp4", id="MXFP4"),
    pytest.param(quantised("bitsandbytes"), "load_in_4bit: true", id="4 bits already"),
    pytest.param({"compression_config": {"format": "x"}}, "compression_config", id="an early compressed-tensors"),
    pytest.param({"quantization": {"group_size": 64, "bits": 4}}, "'quantization'", id="MLX"),
    pytest.param({"quantization_config": "fp8"}, "quantization_config", id="a quantisation that is a word"),
    pytest.param({"num_local_experts": 8}, "mixture of experts ('num_local_experts': 8)", id="Mixtral"),
    pytest.param({"num_experts": 128, "num_experts_per_tok": 8}, "mixture of experts", id="Qwen3-MoE"),
    pytest.param({"n_routed_experts": 64}, "mixture of experts", id="DeepSeek"),
    pytest.param({"vision_config": {"hidden_size": 8}}, "see or hear (vision_config", id="a vision tower"),
    pytest.param({"text_config": SHAPE | quantised("fp8")}, "stored quantised", id="a tower that is quantised"),
    pytest.param({"audio_config": {}}, "see or hear (audio_config", id="an audio tower"),
    pytest.param({"architectures": ["T5ForConditionalGeneration"]}, "does not continue a text", id="T5"),
    pytest.param({"is_encoder_decoder": True}, "does not continue a text", id="an encoder and a decoder"),
    pytest.param({"architectures": ["LlamaForSequenceClassification"]}, "does not continue a text", id="a classifier"),
    pytest.param({"architectures": ["BertForMaskedLM"]}, "does not continue a text", id="a masked model"),
]


@pytest.mark.parametrize(("config", "said"), REFUSED)
def test_a_base_that_cannot_be_trained_is_refused_by_its_small_files(config: dict[str, Any], said: str, tmp_path: Path):
    folder = write_model(tmp_path / "m", config)
    with pytest.raises(ModelError) as caught:
        find_base(str(folder))
    assert str(folder) in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"])
def test_a_quantisation_that_a_file_of_its_own_describes_is_seen(name: str, tmp_path: Path):
    folder = write_model(tmp_path / "m", {})
    (folder / name).write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match=name):
        find_base(str(folder))


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "I8", "U8"])
def test_weights_in_a_type_that_is_not_trained_are_refused_though_config_json_is_silent(dtype: str, tmp_path: Path):
    folder = write_model(tmp_path / "m", {}, dtype)
    with pytest.raises(ModelError, match=rf"'a' is stored as {dtype}, .*: give the model that it was made of"):
        find_base(str(folder))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"quantization_config": None, "num_experts": None, "num_local_experts": 0, "num_experts_per_tok": 1},
        {"architectures": None},
        {"architectures": ["GPT2LMHeadModel"]},
        {"is_encoder_decoder": False},
    ],
)
def test_a_base_that_can_be_trained_passes(config: dict[str, Any], tmp_path: Path):
    folder = write_model(tmp_path / "m", config)
    assert find_base(str(folder)).path == folder


def test_a_quantised_model_may_still_judge(tmp_path: Path):
    folder = write_model(tmp_path / "m", quantised("fp8"))
    assert find_model(str(folder)).path == folder


def test_a_plan_refuses_too(tiny_shape: Path, project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = shutil.copytree(tiny_shape, tmp_path / "m")
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(raw | quantised("gptq")), encoding="utf-8")
    assert run_command(["plan", "--model", str(folder), "--project", str(project)]) == 1
    assert "stored quantised ('quantization_config: gptq')" in capsys.readouterr().err


def test_what_is_to_be_fetched_is_refused_before_its_weights_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    fetched: list[list[str]] = []

    def snapshot_download(*, allow_patterns: list[str], **_: Any) -> str:
        fetched.append(allow_patterns)
        return str(write_model(tmp_path / "m", quantised("fp8")))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(ModelError, match="fp8"):
        find_base("someone/a-model-FP8")
    assert [any("safetensors" in pattern for pattern in patterns) for patterns in fetched] == [False]


def test_a_model_with_experts_of_no_name_is_shown_safely(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(SOUND | {"experts\n✓ done": 8}), encoding="utf-8")
    with pytest.raises(ModelError) as caught:
        require_trainable(tmp_path)
    assert "\n" not in str(caught.value)
