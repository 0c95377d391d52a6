"""`--model file.gguf`: what is read back is the model that the file was written from, weights, tokens, template and all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.gguf.changed import changed
from helpers.gguf.families import FAMILIES, build
from helpers.tiny_runs import run_all
from noesis.core.errors import ModelError
from noesis.core.files import sha256_file
from noesis.core.project import Project
from noesis.llm.gguf.families import WINDOW_PERIODS, read_config
from noesis.llm.gguf.hard_strings import hard_strings
from noesis.llm.gguf.rope import LongRope
from noesis.llm.hub import find_description, find_model, find_tokenizer, identify_model
from noesis.llm.tokenizer import load_tokenizer
from noesis.llm.weights.tensors import list_tensors, read_tensor
from noesis.pipeline.session import reopen_run
from noesis.pipeline.verify.check_run import verify
from noesis.release.provenance import read_provenance
from noesis.run.directory import load_run

pytestmark = pytest.mark.slow
LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
READ = {name: case for name, case in FAMILIES.items() if case[1] not in ("SmolLM3", "Granite")} | {
    "Llama 3.2": ("llama-3.1", "Llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA_3}),
}


@pytest.fixture
def written(tmp_path: Path, quiet_cache: Path):
    """Writes a family's tiny model and its GGUF file."""
    from noesis.release.gguf.writer import write_gguf

    def write(family: str, kind: str = "f32") -> tuple[Path, Path]:
        standin, name, settings = READ[family]
        model, file = build(tmp_path / "model", standin, name, **settings), tmp_path / "x.gguf"
        write_gguf(model, file, kind, name="Tiny", licence="apache-2.0")
        return model, file

    return write


def logits(folder: Path):
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits


@pytest.mark.parametrize("family", READ)
def test_a_family_comes_back_as_it_was(family: str, written, capfd: pytest.CaptureFixture[str]):
    import torch

    original, file = written(family)
    model = find_model(str(file))
    before, after = list_tensors(original), list_tensors(model.path)
    assert after.keys() == before.keys()
    assert all(torch.equal(read_tensor(after[name]), read_tensor(before[name])) for name in before)
    assert float((logits(model.path) - logits(original)).abs().max()) < 1e-4
    ours, theirs = load_tokenizer(model.path), load_tokenizer(original)
    # a space before the first word of a text only is no word of llama.cpp's; no rendered conversation begins with one
    start = theirs.special["bos_token"] if family.endswith("only") else ""
    for text in hard_strings():
        assert ours(start + text) == theirs(start + text), text
    assert ours(start + "a", add_special_tokens=True) == theirs(start + "a", add_special_tokens=True)
    assert (ours.eos_token_id, ours.control_ids) == (theirs.eos_token_id, theirs.control_ids)
    talk = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    assert ours.apply_chat_template(talk) == theirs.apply_chat_template(talk)
    found, expected = read_config(model.path), read_config(original)
    if expected.family.arch not in WINDOW_PERIODS:  # the file's context ends where a window would begin to matter
        plain = replace(expected.described, windows=(None,) * expected.shape.layers)
        expected = replace(expected, described=plain, family=found.family)  # llama.cpp calls Mistral llama
    if isinstance(scaling := expected.rope.scaling, LongRope):  # the file has float32
        assert found.rope.scaling.attention_factor == pytest.approx(scaling.attention_factor)
        found = replace(found, rope=expected.rope)
    assert found == expected
    assert "Converting and de-quantizing" not in capfd.readouterr().err  # transformers' own bar


def test_a_quantised_file_comes_back_to_its_quantisation(written):
    original, file = written("Qwen2", "q8_0")
    found, expected = logits(find_model(str(file)).path), logits(original)
    assert 0 < float((found - expected).abs().max()) < 0.2 * float(expected.abs().max())


def test_what_a_file_says_of_itself_is_kept(written, tmp_path: Path):
    _, file = written("Qwen2")
    told = {
        "general.name": "A Name", "general.license": "mit", "general.license.link": "https://x.org/LICENSE",
        "general.base_model.count": 1, "general.base_model.0.name": "Llama 3.1 8B", "general.base_model.0.repo_url": "https://x.org/y",
    }  # fmt: skip
    model = find_model(str(changed(file, tmp_path / "y.gguf", told)))
    assert (model.title, model.licence) == ("A Name", "mit https://x.org/LICENSE")
    assert model.lineage.startswith(f"dequantised from y.gguf (F32, sha256 {model.revision}")
    assert model.lineage.endswith("); made from Llama 3.1 8B https://x.org/y")


def test_it_is_converted_once_and_planned_without_its_weights(written, monkeypatch: pytest.MonkeyPatch):
    import noesis.llm.from_gguf.base_file as base_file

    _, file = written("Qwen2")
    folder = find_description(str(file))
    assert (folder / "config.json").is_file()
    assert not list(folder.glob("*.safetensors"))
    assert find_tokenizer(str(file)) == folder
    model = find_model(str(file))
    monkeypatch.setattr(base_file, "load_dequantised", None)
    assert find_model(str(file.rename(file.with_name("elsewhere.gguf")))).path == model.path
    elsewhere = str(file.with_name("elsewhere.gguf"))
    assert find_tokenizer(elsewhere) == model.path
    assert identify_model(elsewhere) == replace(find_model(elsewhere), name=elsewhere)
    assert not list(model.path.parent.glob(".*.part"))


def test_the_turns_end_that_is_not_the_files_eos_is_kept(written, tmp_path: Path):
    from noesis.llm.chat_template import end_of_turn

    original, file = written("Gemma-3")
    tokenizer = load_tokenizer(find_model(str(file)).path)
    assert end_of_turn(tokenizer) == load_tokenizer(original).token_id("<end_of_turn>") != tokenizer.eos_token_id
    stops = json.loads((find_model(str(file)).path / "generation_config.json").read_text(encoding="utf-8"))
    assert stops["eos_token_id"] == [tokenizer.eos_token_id, end_of_turn(tokenizer)]


def test_settings_beside_the_file_are_another_models(written):
    _, file = written("Qwen2")
    for name in ("adapter_config.json", "config.json", "tokenizer_config.json", "generation_config.json"):
        (file.parent / name).write_text('{"model_type": "gpt2", "peft_type": "LORA", "eos_token": "!"}')
    assert load_tokenizer(find_model(str(file)).path).special["eos_token"] == "<|im_end|>"


def test_a_run_on_a_gguf_file_is_certified_and_says_what_it_was_made_of(
    written, small_project: Project, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    _, made = written("Qwen2", "q8_0")
    said = {"general.license": "mit", "general.name": "Tiny Qwen"}
    file = changed(made, tmp_path / "named.gguf", said)
    s = run_all(small_project, file, tmp_path / "run")
    assert s.run.result("gguf")["files"]["f16"]["passed"]
    assert s.run.identity.base_model == str(file)
    assert s.run.identity.revision == sha256_file(file)[:12]
    card = (s.run.merged / "README.md").read_text(encoding="utf-8")
    assert "license: mit" in card
    assert "Licence of the base: mit." in card
    assert "A fine-tune of Tiny Qwen by" in card
    assert f"| base weights | dequantised from named.gguf (Q8_0, sha256 {sha256_file(file)[:16]}) |" in card
    told = read_provenance(s.run.merged)
    assert (told.base, told.licence) == ("Tiny Qwen", "mit")
    assert told.base_lineage.startswith("dequantised from named.gguf")
    assert [f"{f.what}: {f.wrong}" for f in verify(s.run) if f.wrong] == []
    forged = replace(s.run.manifest, base_file={**s.run.manifest.base_file, "licence": "Apache-2.0"})
    (s.run.path / "manifest.json").write_text(json.dumps(forged.to_json()), encoding="utf-8")
    assert any("of the base are others" in str(f.wrong) for f in verify(load_run(s.run.path)))
    (s.run.path / "manifest.json").write_text(json.dumps(s.run.manifest.to_json()), encoding="utf-8")
    file.unlink()  # what verify needs of the base is then not checked, and the message says what is missing
    assert [f"{f.what}: {f.wrong}" for f in verify(s.run) if f.wrong] == []
    with pytest.raises(ModelError, match="there is no file .*named.gguf"):
        reopen_run(s.run.path)
