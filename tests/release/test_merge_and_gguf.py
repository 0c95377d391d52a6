"""Merge and GGUF on a tiny Llama, against peft, bitsandbytes and llama.cpp; and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from helpers.project import ROOT
from noesis.core.config import Quantization
from noesis.core.errors import ModelError, NoesisError
from noesis.release.provenance import Provenance

pytestmark = pytest.mark.slow
PLAIN = Quantization(load_in_4bit=False)
NF4 = Quantization()
TEXTS = [
    line for line in (ROOT / "data" / "constitution.yaml").read_text(encoding="utf-8").splitlines() if len(line) > 90
][:12]


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 500000.0},
        {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ],
    ids=["default", "llama3"],
)
def test_programs_that_know_the_older_keys_find_the_rotary_base(
    tiny_model: Path, tiny_adapter: Path, tmp_path: Path, rope: dict
):
    """MLX's Llama took 10,000 for SmolLM2's 100,000, without a word, and answered something else."""
    from transformers import AutoConfig

    from noesis.release.merge_weights import merge

    base = shutil.copytree(tiny_model, tmp_path / "base")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps(config | {"rope_parameters": rope}), encoding="utf-8")
    merge(base, tiny_adapter, tmp_path / "m", quantization=PLAIN, dtype="bfloat16", card="# card")
    merged = json.loads((tmp_path / "m" / "config.json").read_text(encoding="utf-8"))
    assert merged["rope_theta"] == 500000.0 and merged["rope_parameters"] == rope
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    assert merged.get("rope_scaling") == (None if rope["rope_type"] == "default" else scaling)
    assert (
        AutoConfig.from_pretrained(tmp_path / "m").rope_parameters == AutoConfig.from_pretrained(base).rope_parameters
    )


@pytest.mark.parametrize("quantization", [PLAIN, NF4], ids=["plain", "nf4"])
def test_a_model_is_switched_between_base_and_tuned_bit_for_bit(
    tiny_model: Path, tiny_adapter: Path, quantization: Quantization
):
    import torch

    from noesis.llm.causal_model import load_merged_model, switch_adapter

    how = {"quantization": quantization, "dtype": "bfloat16"}
    anew = {on: load_merged_model(tiny_model, tiny_adapter if on else None, **how) for on in (False, True)}
    model = load_merged_model(tiny_model, None, **how)
    for on in (True, False, True):
        switch_adapter(model, tiny_model, tiny_adapter, on=on, **how)
        expected, found = anew[on].state_dict(), model.state_dict()
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    assert any(not torch.equal(a, b) for a, b in zip(anew[True].parameters(), anew[False].parameters(), strict=True))


def test_merge_equals_peft(tiny_model: Path, tiny_adapter: Path, tmp_path: Path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from noesis.release.merge_weights import MergeResult, merge

    result = merge(
        tiny_model,
        tiny_adapter,
        tmp_path / "m",
        quantization=PLAIN,
        dtype="bfloat16",
        card="# card",
        provenance=Provenance(base="x"),
    )
    assert (result.merged_tensors, result.into, result.verified) == (14, "the original weights", result.tensors)
    assert MergeResult.from_json(result.to_json()) == result
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), tiny_adapter
    ).merge_and_unload()
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.bfloat16)
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(a, b.to(torch.bfloat16)), name
    assert (tmp_path / "m" / "README.md").read_text() == "# card"
    assert json.loads((tmp_path / "m" / "noesis.json").read_text()) == {"base": "x"}


def test_the_round_trip_is_what_bitsandbytes_trains_against(tiny_model: Path):
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from safetensors import safe_open

    from noesis.core.config import load_config
    from noesis.core.device import detect
    from noesis.core.project import Project
    from noesis.llm.weights.tensors import round_trip
    from noesis.training.base_model import load_base

    config = load_config(Project(ROOT), {"lora.quantization": {"bnb_4bit_compute_dtype": "bfloat16"}})
    base = load_base(tiny_model, config, detect(), longest=500)
    weight = base.model.layers[1].mlp.down_proj.weight
    used = dequantize_4bit(weight.data, weight.quant_state)
    with safe_open(tiny_model / "model.safetensors", framework="pt") as f:
        original = f.get_tensor("model.layers.1.mlp.down_proj.weight")
    assert torch.equal(round_trip(original, NF4, str(used.dtype).removeprefix("torch.")), used)
    assert not torch.equal(used, original)


def test_a_merge_on_a_quantised_base_says_so_and_how_far_the_original_is(
    tiny_model: Path, tiny_adapter: Path, tiny_merged: Path, tmp_path: Path
):
    import torch
    from safetensors.torch import load_file

    from noesis.llm.weights.tensors import round_trip
    from noesis.release.merge_weights import MergeResult, merge

    result = merge(tiny_model, tiny_adapter, tmp_path / "m", quantization=NF4, dtype="bfloat16", card="")
    assert result.into == "dequantised nf4 weights, as trained against"
    assert (tmp_path / "m" / "model.safetensors").read_bytes() != (tiny_merged / "model.safetensors").read_bytes()
    squares = torch.zeros(2, dtype=torch.float64)
    for name, weight in load_file(tiny_model / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            away = round_trip(weight, NF4, "bfloat16").double() - weight.double()
            squares += torch.stack([away.square().sum(), weight.double().square().sum()])
    expected = float((squares[0] / squares[1]).sqrt())
    assert 0.05 < expected < 0.15  # what 4 bits cost a normal distribution
    assert result.originals is not None
    assert result.originals.relative_difference == pytest.approx(expected, rel=1e-4)
    assert MergeResult.from_json(result.to_json()) == result


def test_a_model_in_several_files_merges_alike(tiny_model: Path, tiny_adapter: Path, tiny_merged: Path, tmp_path: Path):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from noesis.release.merge_weights import merge

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.save_pretrained(tmp_path / "split", max_shard_size="60KB")
    files = sorted(p.name for p in (tmp_path / "split").glob("*.safetensors"))
    assert len(files) > 2
    merge(tmp_path / "split", tiny_adapter, tmp_path / "m", quantization=PLAIN, dtype="bfloat16", card="")
    assert sorted(p.name for p in (tmp_path / "m").glob("*.safetensors")) == files
    one = load_file(tiny_merged / "model.safetensors")
    many = {n: t for name in files for n, t in load_file(tmp_path / "m" / name).items()}
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)
    AutoModelForCausalLM.from_pretrained(tmp_path / "m")

    (tmp_path / "split" / files[1]).unlink()
    with pytest.raises(ModelError, match=f"{files[1]} is missing, though model.safetensors.index.json names it"):
        merge(tmp_path / "split", tiny_adapter, tmp_path / "n", quantization=PLAIN, dtype="bfloat16", card="")
    (tmp_path / "split" / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelError, match="is missing, though the other files' names imply it"):
        merge(tmp_path / "split", tiny_adapter, tmp_path / "n", quantization=PLAIN, dtype="bfloat16", card="")


def spoil(adapter: Path, folder: Path, change) -> Path:
    """A copy of the adapter with its tensors changed."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapter, folder)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return folder


REFUSED = {
    "another base": "trained on another base",
    "no partner": "has no",
    "unknown": "would be lost",
    "wrong shape": "trained on another base",
    "not finite": "not finite",
    "empty": "nothing would be merged",
    "dora": "use_dora",
    "pickle": "only safetensors are read",
    "torn": "is damaged",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_adapter_that_does_not_fit_is_refused(tiny_model: Path, tiny_adapter: Path, tmp_path: Path, kind: str):
    import torch

    from noesis.release.merge_weights import merge

    folder = tmp_path / "a"
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    if kind == "another base":

        def move(t: dict) -> None:
            for part in ("A", "B"):
                t[name.replace("layers.0", "layers.9").replace("lora_A", f"lora_{part}")] = t[
                    name.replace("lora_A", f"lora_{part}")
                ].clone()

        spoil(tiny_adapter, folder, move)
    elif kind == "no partner":
        spoil(tiny_adapter, folder, lambda t: t.pop(name.replace("lora_A", "lora_B")))
    elif kind == "unknown":
        spoil(tiny_adapter, folder, lambda t: t.update(surprise=torch.ones(1)))
    elif kind == "wrong shape":
        spoil(tiny_adapter, folder, lambda t: t.update({name: torch.ones(4, 65)}))
    elif kind == "not finite":
        spoil(tiny_adapter, folder, lambda t: t.update({name: torch.full((4, 64), float("nan"))}))
    elif kind == "empty":
        spoil(tiny_adapter, folder, lambda t: t.clear())
    else:
        shutil.copytree(tiny_adapter, folder)
        if kind == "dora":
            settings = json.loads((folder / "adapter_config.json").read_text())
            (folder / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
        elif kind == "pickle":
            (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
        else:
            data = (folder / "adapter_model.safetensors").read_bytes()
            (folder / "adapter_model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=REFUSED[kind]):
        merge(tiny_model, folder, tmp_path / "m", quantization=PLAIN, dtype="bfloat16", card="")
    assert not (tmp_path / "m").exists()


def test_what_does_not_read_back_as_it_was_written_is_no_result(
    tiny_model: Path, tiny_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A disk that loses a byte, stood in for by one changed between writing and reading."""
    import noesis.release.merge_weights as module

    write_other_files = module._write_other_files

    def lose_a_byte(base: Path, part: Path, card: str, provenance: Provenance | None) -> None:
        write_other_files(base, part, card, provenance)
        file = part / "model.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)

    monkeypatch.setattr(module, "_write_other_files", lose_a_byte)
    with pytest.raises(ModelError, match="does not read back as it was written"):
        module.merge(tiny_model, tiny_adapter, tmp_path / "m", quantization=PLAIN, dtype="bfloat16", card="")
    assert not (tmp_path / "m").exists()


def test_no_disk_for_the_result_is_said_before_anything_is_written(
    tiny_model: Path, tiny_adapter: Path, tiny_merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from collections import namedtuple

    from noesis.release.gguf.writer import write_adapter_gguf, write_gguf
    from noesis.release.merge_weights import merge

    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: namedtuple("Usage", "total used free")(10**12, 10**12 - 1000, 1000)
    )
    for work in (
        lambda: merge(tiny_model, tiny_adapter, tmp_path / "out" / "m", quantization=PLAIN, dtype="bfloat16", card=""),
        lambda: write_gguf(tiny_merged, tmp_path / "out" / "x.gguf", "f16", name="x", licence="x"),
        lambda: write_adapter_gguf(tiny_adapter, tiny_model, tmp_path / "out" / "a.gguf"),
    ):
        with pytest.raises(NoesisError, match=r"needs .* free"):
            work()
    assert list((tmp_path / "out").iterdir()) == []


def test_an_adapter_in_llama_cpp_answers_like_the_merged_model(
    tiny_model: Path, tiny_adapter: Path, tiny_merged: Path, tmp_path: Path
):
    from noesis.core.console import Progress
    from noesis.llm.llama_cpp import LlamaEngine
    from noesis.release.gguf.writer import write_adapter_gguf, write_gguf

    write_gguf(tiny_model, tmp_path / "base.gguf", "f32", name="base", licence="none")
    write_gguf(tiny_merged, tmp_path / "merged.gguf", "f32", name="merged", licence="none")
    write_adapter_gguf(tiny_adapter, tiny_model, tmp_path / "adapter.gguf")
    conversations = [[{"role": "user", "content": text}] for text in TEXTS[:4]]

    def ask(engine: LlamaEngine, on: bool) -> list[str]:
        return engine.answer_all(
            conversations, max_tokens=4, adapter=on, progress=Progress("answer", len(conversations), "prompts")
        )

    both = LlamaEngine(tmp_path / "base.gguf", adapter=tmp_path / "adapter.gguf", parallel=2, context=512)
    tuned, base = ask(both, True), ask(both, False)
    assert tuned == ask(LlamaEngine(tmp_path / "merged.gguf", context=512), True)
    assert base == ask(LlamaEngine(tmp_path / "base.gguf", context=512), True)
    assert tuned != base


def test_other_architectures_are_refused_by_name(tiny_model: Path, tmp_path: Path):
    from noesis.release.gguf.writer import write_gguf

    model = tmp_path / "other"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text())
    for change, words in (
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM can't be converted here .*convert_hf_to_gguf.py"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "'yarn'"),
        ({"num_hidden_layers": 3}, "layer 2 of 3 is missing"),
    ):
        (model / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ModelError, match=words):
            write_gguf(model, tmp_path / "x.gguf", "f16", name="x", licence="x")
    assert list(tmp_path.glob("*.gguf*")) == []


def test_a_torn_or_foreign_gguf_is_one_message(tiny_merged: Path, tmp_path: Path):
    from noesis.llm.gguf.header import read_header
    from noesis.llm.llama_cpp import LlamaEngine
    from noesis.release.gguf.writer import write_gguf
    from noesis.release.parity.audit import open_gguf
    from noesis.release.parity.llama_logits import LlamaModel

    file = tmp_path / "x.gguf"
    write_gguf(tiny_merged, file, "f32", name="x", licence="x")
    whole = file.read_bytes()
    for length in (20000, 100, len(whole) - 4096):
        file.write_bytes(whole[:length])
        with pytest.raises(ModelError, match="can't load"):
            open_gguf(file)
        with pytest.raises(ModelError, match="can't load"):
            LlamaModel(file)
        with pytest.raises(ModelError, match="can't load"):
            LlamaEngine(file)
    file.write_bytes(b"PK\x03\x04" + whole[4:])
    with pytest.raises(ModelError, match="is not a GGUF file"):
        read_header(file)
    with pytest.raises(ModelError, match="does not exist"):
        read_header(tmp_path / "y.gguf")


def test_a_gguf_says_what_it_is_made_of(tiny_merged: Path, tiny_model: Path, tiny_adapter: Path, tmp_path: Path):
    from noesis.release.gguf.vocabulary import chat_template
    from noesis.release.gguf.writer import write_adapter_gguf, write_gguf
    from noesis.release.parity.audit import open_gguf

    made_from = Provenance(
        base="someone/a-base",
        base_revision="abc",
        licence="Apache-2.0",
        adapter_sha256="0f",
        system_prompt="Diga a verdade.",
    )
    write_gguf(tiny_merged, tmp_path / "m.gguf", "f16", name="tiny", licence="unknown", provenance=made_from)
    write_adapter_gguf(tiny_adapter, tiny_model, tmp_path / "a.gguf", provenance=made_from)
    for file in ("m.gguf", "a.gguf"):
        fields = {
            name: field.contents()
            for name, field in open_gguf(tmp_path / file).fields.items()
            if name.startswith(("general.", "noesis.", "tokenizer.chat"))
        }
        assert fields["general.license"] == "Apache-2.0"
        assert (fields["general.base_model.0.name"], fields["general.base_model.0.version"]) == (
            "someone/a-base",
            "abc",
        )
        assert fields["general.base_model.0.repo_url"] == "https://huggingface.co/someone/a-base"
        assert (fields["noesis.system_prompt"], fields["noesis.adapter_sha256"]) == ("Diga a verdade.", "0f")
    assert open_gguf(tmp_path / "m.gguf").fields["tokenizer.chat_template"].contents() == chat_template(tiny_merged)
