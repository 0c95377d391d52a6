"""Each family on a GPU, by the engine's kernels and by transformers' layers, against float32 on the CPU (skipped
elsewhere).

CUDA_VISIBLE_DEVICES=0 pytest tests/training/test_families_on_gpu.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)

from helpers.engine.models import MODELS, build_tiny  # noqa: E402
from helpers.engine.steps import FP32, engine_of, gradients, lora_of, reference_gradients, rows, toy, trained, worst  # noqa: E402
from helpers.tiny_runs import small  # noqa: E402
from noesis.core.device import detect  # noqa: E402
from noesis.core.families.registry import describe  # noqa: E402
from noesis.llm.model_config import read_model_config  # noqa: E402
from noesis.planning.model_shapes import read_shape  # noqa: E402
from noesis.training import transformers_model  # noqa: E402

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ON_GPU = replace(FP32, precision="bf16", compute_dtype="bfloat16", gpus=1)
WIDE = {"hidden_size": 256, "intermediate_size": 512, "initializer_range": 0.05}


def model_folder(name: str, folder: Path) -> Path:
    own = MODELS[name][1]
    width = 64 if "head_dim" not in own else max(own["head_dim"], 32)
    return build_tiny(folder, name, **WIDE, head_dim=width)


@pytest.mark.parametrize("path", ["engine", "transformers"])
@pytest.mark.parametrize("name", [name for name in MODELS if "two sets" not in name])
def test_a_gpu_computes_what_float32_on_a_cpu_does(name: str, path: str, tmp_path: Path, monkeypatch):
    folder, step = model_folder(name, tmp_path / "model"), toy()
    lora = lora_of(targets=read_shape(folder).parts.targets(ALL))
    reference = engine_of(folder, FP32, lora)
    expected, wanted = reference_gradients(folder, reference, step, trained(step))
    if path == "engine":
        describe(read_model_config(folder))
        model = engine_of(folder, ON_GPU, lora, "cuda")
    else:
        monkeypatch.setattr(transformers_model, "lora_config", lambda *_: lora)
        quantization = {"load_in_4bit": False, "bnb_4bit_compute_dtype": "bfloat16"}
        model = transformers_model.build(
            folder, ON_GPU, small(**{"lora.quantization": quantization}), detect(), longest=64
        )
        adapter = dict(reference.named_parameters())
        with torch.no_grad():
            for label, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(adapter[label])
    loss, got = gradients(model, rows(step), trained(step))
    print(name, path, abs(loss / expected - 1), worst(got, wanted))
    assert loss == pytest.approx(expected, rel=1e-2)
    assert worst(got, wanted) < 0.1
