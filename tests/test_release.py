"""Merge, GGUF and parity on a tiny Llama, against peft, bitsandbytes and llama.cpp; and the controls that must fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from conftest import ROOT
from noesis.config import Quantization
from noesis.constitution.tokenizer import load_tokenizer
from noesis.errors import ModelError, ParityError
from noesis.release.parity import check_parity, require

pytestmark = pytest.mark.slow
PLAIN = Quantization(load_in_4bit=False)
NF4 = Quantization()
TEXTS = [line for line in (ROOT / "data" / "constitution.yaml").read_text(encoding="utf-8").splitlines() if len(line) > 90][:12]


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter with weights far from zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(r=4, lora_alpha=8, target_modules=modules, task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def merged(tiny_model: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from noesis.release.merge import merge

    target = tmp_path_factory.mktemp("merged") / "m"
    result = merge(tiny_model, adapter, target, quantization=PLAIN, dtype="bfloat16", card="# card")
    assert (result["merged_tensors"], result["into"]) == (14, "the original weights")
    return target


def test_merge_equals_peft(tiny_model: Path, adapter: Path, merged: Path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), adapter).merge_and_unload()
    ours = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.bfloat16)
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(a, b.to(torch.bfloat16)), name
    assert (merged / "README.md").read_text() == "# card"


def test_the_round_trip_is_what_bitsandbytes_trains_against(tiny_model: Path):
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from safetensors import safe_open

    from noesis.config import Project, load_config
    from noesis.device import detect
    from noesis.release.weights import round_trip
    from noesis.train.base import load_base

    config = load_config(Project(ROOT), {"lora.quantization": {"bnb_4bit_compute_dtype": "bfloat16"}})
    base = load_base(tiny_model, config, detect(), longest=500)
    weight = base.model.layers[1].mlp.down_proj.weight
    used = dequantize_4bit(weight.data, weight.quant_state)
    with safe_open(tiny_model / "model.safetensors", framework="pt") as f:
        original = f.get_tensor("model.layers.1.mlp.down_proj.weight")
    assert torch.equal(round_trip(original, NF4, str(used.dtype).removeprefix("torch.")), used)
    assert not torch.equal(used, original)


def test_a_merge_on_a_quantised_base_says_so_and_differs(tiny_model: Path, adapter: Path, merged: Path, tmp_path: Path):
    from noesis.release.merge import merge

    result = merge(tiny_model, adapter, tmp_path / "m", quantization=NF4, dtype="bfloat16", card="")
    assert result["into"] == "dequantised nf4 weights, as trained against"
    assert (tmp_path / "m" / "model.safetensors").read_bytes() != (merged / "model.safetensors").read_bytes()


def spoil(adapter: Path, folder: Path, change) -> Path:
    """A copy of the adapter with its tensors changed."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapter, folder)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return folder


@pytest.mark.parametrize("kind", ["another base", "no partner", "unknown", "wrong shape", "dora", "pickle", "torn"])
def test_an_adapter_that_does_not_fit_is_refused(tiny_model: Path, adapter: Path, tmp_path: Path, kind: str):
    import torch

    from noesis.release.merge import merge

    folder = tmp_path / "a"
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    if kind == "another base":

        def move(t: dict) -> None:
            for part in ("A", "B"):
                t[name.replace("layers.0", "layers.9").replace("lora_A", f"lora_{part}")] = t[name.replace("lora_A", f"lora_{part}")].clone()

        spoil(adapter, folder, move)
    elif kind == "no partner":
        spoil(adapter, folder, lambda t: t.pop(name.replace("lora_A", "lora_B")))
    elif kind == "unknown":
        spoil(adapter, folder, lambda t: t.update(surprise=torch.ones(1)))
    elif kind == "wrong shape":
        spoil(adapter, folder, lambda t: t.update({name: torch.ones(4, 65)}))
    else:
        shutil.copytree(adapter, folder)
        if kind == "dora":
            settings = json.loads((folder / "adapter_config.json").read_text())
            (folder / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
        elif kind == "pickle":
            (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
        else:
            data = (folder / "adapter_model.safetensors").read_bytes()
            (folder / "adapter_model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError):
        merge(tiny_model, folder, tmp_path / "m", quantization=PLAIN, dtype="bfloat16", card="")
    assert not (tmp_path / "m").exists()


def certificate(merged: Path, tmp_path: Path, kinds: tuple[str, ...]) -> dict:
    from noesis.release.gguf import write_gguf

    files = {kind: tmp_path / f"m-{kind}.gguf" for kind in kinds}
    for kind, file in files.items():
        write_gguf(merged, file, kind, name="tiny", licence="none")
    return check_parity(merged, files, TEXTS, load_tokenizer(merged))


def test_every_kind_behaves_like_the_merged_model(merged: Path, tmp_path: Path):
    parity = certificate(merged, tmp_path, ("f32", "f16"))
    require(parity)
    assert parity["files"]["f16"]["different_ids"] == 0
    assert parity["positions"] > 500


def test_rows_of_query_and_key_left_as_they_are_must_fail(merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import noesis.release.gguf as gguf

    monkeypatch.setattr(gguf, "_permuted", lambda name, array, config: array)
    broken = certificate(merged, tmp_path, ("f32",))
    assert not broken["files"]["f32"]["passed"]
    with pytest.raises(ParityError, match="must not be used"):
        require(broken)


def test_another_pre_tokenizer_must_fail(merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A tokenizer that joins digits, said to split them: only the token ids can show it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    import noesis.release.gguf as gguf
    from noesis.release.parity import HARD_STRINGS

    model = tmp_path / "joined"
    shutil.copytree(merged, model)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(["2024 1936 000123"] * 50 + HARD_STRINGS, trainer)
    tokenizer.save(str(model / "tokenizer.json"))
    require(certificate(model, tmp_path / "a", ("f32",)))
    monkeypatch.setattr(gguf, "pre_tokenizer", lambda raw: "smollm")
    broken = certificate(model, tmp_path / "b", ("f32",))["files"]["f32"]
    assert not broken["passed"]
    assert broken["different_ids"] > 0


def test_llama3_rope_factors_reach_llama_cpp(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A model with Llama-3.1's frequency scaling; leaving the factors out must show."""
    import noesis.release.gguf as gguf

    model = tmp_path / "scaled"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text())
    config["rope_parameters"] = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
    }  # fmt: skip
    (model / "config.json").write_text(json.dumps(config))
    require(certificate(model, tmp_path / "a", ("f32",)))
    with monkeypatch.context() as m:
        m.setattr(gguf, "_rope_factors", lambda config: None)
        assert not certificate(model, tmp_path / "b", ("f32",))["files"]["f32"]["passed"]


def test_an_adapter_in_llama_cpp_answers_like_the_merged_model(tiny_model: Path, adapter: Path, merged: Path, tmp_path: Path):
    from noesis.console import Progress
    from noesis.release.gguf import write_adapter_gguf, write_gguf
    from noesis.serve.engine import Engine

    write_gguf(tiny_model, tmp_path / "base.gguf", "f32", name="base", licence="none")
    write_gguf(merged, tmp_path / "merged.gguf", "f32", name="merged", licence="none")
    write_adapter_gguf(adapter, tiny_model, tmp_path / "adapter.gguf")
    conversations = [[{"role": "user", "content": text}] for text in TEXTS[:4]]

    def ask(engine: Engine, on: bool) -> list[str]:
        return engine.answer_all(conversations, max_tokens=4, adapter=on, progress=Progress("answer", len(conversations), "prompts"))

    both = Engine(tmp_path / "base.gguf", adapter=tmp_path / "adapter.gguf", parallel=2, context=512)
    tuned, base = ask(both, True), ask(both, False)
    assert tuned == ask(Engine(tmp_path / "merged.gguf", context=512), True)
    assert base == ask(Engine(tmp_path / "base.gguf", context=512), True)
    assert tuned != base


def test_other_architectures_are_refused_by_name(tiny_model: Path, tmp_path: Path):
    from noesis.release.gguf import write_gguf

    model = tmp_path / "other"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["MambaForCausalLM"]}))
    with pytest.raises(ModelError, match="MambaForCausalLM"):
        write_gguf(model, tmp_path / "x.gguf", "f16", name="x", licence="x")
    assert list(tmp_path.glob("*.gguf*")) == []


def test_a_torn_gguf_is_one_message(merged: Path, tmp_path: Path):
    from noesis.release.gguf import write_gguf
    from noesis.release.llama import LlamaModel
    from noesis.serve.engine import Engine

    file = tmp_path / "x.gguf"
    write_gguf(merged, file, "f32", name="x", licence="x")
    file.write_bytes(file.read_bytes()[:20000])
    with pytest.raises(ModelError, match="can't load"):
        LlamaModel(file)
    with pytest.raises(ModelError, match="can't load"):
        Engine(file)
