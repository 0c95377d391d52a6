"""SmolLM2's certificate: an adapter on the quantised base, merged, F32, Q4_K_M and the adapter's GGUF, within the tolerances. The demo has F16
and Q8_0 certified."""

from __future__ import annotations

from pathlib import Path

import pytest

from noesis.core.config import Quantization
from noesis.llm.chat_template import render
from noesis.llm.tokenizer import load_tokenizer

pytestmark = pytest.mark.slow


def test_smollm2_is_served_as_it_was_trained(tmp_path: Path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from noesis.llm.hub import find_model
    from noesis.release.convert import QUESTIONS
    from noesis.release.gguf.writer import write_adapter_gguf, write_gguf
    from noesis.release.merge_weights import merge
    from noesis.release.parity.certify import Subject, TrainedAdapter, certify
    from noesis.release.parity.outcome import require_passed

    base, nf4 = find_model("smollm2").path, Quantization()
    torch.manual_seed(0)
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=8, lora_alpha=16, target_modules=modules, task_type="CAUSAL_LM"),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.002)  # a nudge, as training gives; noise would make another model
    model.save_pretrained(tmp_path / "adapter")
    del model
    result = merge(base, tmp_path / "adapter", tmp_path / "m", quantization=nf4, dtype="bfloat16", card="")
    assert result.merged_tensors == 210
    files = {kind: tmp_path / f"m-{kind}.gguf" for kind in ("f32", "q4_k_m")}
    for kind, file in files.items():
        write_gguf(tmp_path / "m", file, kind, name="m", licence="Apache-2.0")
    write_gguf(base, tmp_path / "base.gguf", "f16", name="base", licence="Apache-2.0", quantization=nf4)
    write_adapter_gguf(tmp_path / "adapter", base, tmp_path / "adapter.gguf")
    tokenizer = load_tokenizer(tmp_path / "m")
    texts = [
        render(tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True) for text in QUESTIONS[:4]
    ]
    own = TrainedAdapter(tmp_path / "adapter", base, nf4, "bfloat16", tmp_path / "adapter.gguf", tmp_path / "base.gguf")
    found = certify(Subject(tmp_path / "m", files, own, texts, texts[2:4], answer_tokens=8), tokenizer)
    for kind, comparison in found.comparisons():
        print(kind, comparison.divergence, comparison.answers)  # pytest -s shows them
    require_passed(found)
    assert (found.texts, found.strings) == (4, 500)
    assert 4 * found.files["q4_k_m"].file.bytes < found.files["f32"].file.bytes
