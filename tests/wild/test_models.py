"""Models, tokenizers and adapters as other tools leave them: read as transformers reads them, or refused with a remedy."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.project import SHAPE
from noesis.core.config import Quantization
from noesis.core.errors import ModelError, TrainingError
from noesis.core.files import new_folder
from noesis.llm.chat_template import encode
from noesis.llm.tokenizer import load_tokenizer

PLAIN = Quantization(load_in_4bit=False)
Change = Callable[[dict[str, Any]], dict[str, Any] | None]


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


def edit(file: Path, **changes: Any) -> None:
    """Other values of a JSON file's keys; `...` takes a key out."""
    raw = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    raw = {key: value for key, value in (raw | changes).items() if value is not ...}
    file.write_text(json.dumps(raw), encoding="utf-8")


def change_weights(folder: Path, change: Change, metadata: dict[str, str] | None = None) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors) or tensors, folder / "model.safetensors", metadata=metadata)


# --- special tokens


def token(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False} | flags


NO_NAMES: dict[str, Any] = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), ...)
# file → what is written into it
TOKENS: dict[str, dict[str, dict[str, Any]]] = {
    "in special_tokens_map.json alone": {
        "tokenizer_config.json": NO_NAMES,
        "special_tokens_map.json": {"bos_token": "<|im_start|>", "eos_token": token("<|zz|>"), "additional_special_tokens": ["<|yy|>"]},
    },
    "in both, differently": {"special_tokens_map.json": {"eos_token": "<|zz|>"}},
    "in added_tokens_decoder alone": {
        "tokenizer_config.json": {
            "eos_token": "<|zz|>",
            "added_tokens_decoder": {"513": token("<|yy|>", normalized=True), "512": token("<|zz|>", special=True, rstrip=True)},
        },
        "special_tokens_map.json": {"eos_token": "<|ww|>"},
    },
    "in added_tokens.json": {"tokenizer_config.json": {"eos_token": "<|zz|>"}, "added_tokens.json": {"<|yy|>": 513, "<|zz|>": 512}},
    "in a list of others": {"tokenizer_config.json": {"additional_special_tokens": ["<|yy|>", "<|zz|>"]}},
    "under names of their own": {"tokenizer_config.json": {"extra_special_tokens": {"image_token": "<|yy|>"}}},
    "in the vocabulary proper": {"tokenizer_config.json": {"eos_token": "de"}},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("place", TOKENS)
def test_special_tokens_are_found_where_transformers_finds_them(
    tiny_tokenizer_folder: Path, tmp_path: Path, place: str
):
    from transformers import AutoTokenizer

    folder = shutil.copytree(tiny_tokenizer_folder, tmp_path / "t")
    for name, content in TOKENS[place].items():
        edit(folder / name, **content)
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in ("a <|zz|> b<|yy|> c", "<|im_start|>user\n<|zz|>", " <|yy|>x<|ww|>", "de<|im_end|> de"):
        assert ours(text)["input_ids"] == theirs(text, add_special_tokens=False)["input_ids"]
    names = {role: getattr(theirs, role) for role in ("bos_token", "eos_token", "unk_token", "pad_token")}
    assert ours.special == {role: name for role, name in names.items() if name}
    assert {theirs.convert_tokens_to_ids(name) for name in theirs.all_special_tokens} <= ours.control_ids


@pytest.mark.parametrize(
    "content",
    [{"eos_token": 5}, {"eos_token": {"content": 5}}, {"additional_special_tokens": "abc"}, {"extra_special_tokens": [[]]},
     {"added_tokens_decoder": {"x": {}}}, {"added_tokens_decoder": [1]}],
)  # fmt: skip
def test_special_tokens_that_are_none_are_one_message(tiny_tokenizer_folder: Path, tmp_path: Path, content: Any):
    folder = shutil.copytree(tiny_tokenizer_folder, tmp_path / "t")
    edit(folder / "tokenizer_config.json", **content)
    with pytest.raises(ModelError, match="its special tokens can't be read") as caught:
        load_tokenizer(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["<| tool call |>", "§"])
def test_a_control_token_with_a_space_or_of_one_letter_is_refused_in_a_row(
    tiny_tokenizer_folder: Path, tmp_path: Path, name: str
):
    """A space can't break these up, so the pattern that breaks tokens leaves them out; a row must not hold them."""
    folder = shutil.copytree(tiny_tokenizer_folder, tmp_path / "t")
    edit(folder / "tokenizer_config.json", additional_special_tokens=[name])
    tokenizer = load_tokenizer(folder)
    with pytest.raises(TrainingError, match="a control token of this model"):
        encode(tokenizer, [{"role": "user", "content": f"a{name}b"}], "c", name="x")


def test_a_tokenizer_of_the_older_kind_is_refused_with_the_way_to_convert_it(tmp_path: Path):
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(ModelError, match="save_pretrained"):
        load_tokenizer(tmp_path)


# --- weights


def with_buffers(tensors: dict[str, Any]) -> None:
    import torch

    for i in range(SHAPE["num_hidden_layers"]):
        tensors[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    tensors["model.layers.0.attn.masked_bias"] = torch.tensor(-1e4)
    tensors["model.position_ids"] = torch.arange(5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "metadata"),
    [
        pytest.param(with_buffers, {"format": "pt"}, id="with buffers that no loader reads"),
        pytest.param(lambda tensors: tensors, None, id="without metadata"),
        pytest.param(
            lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()},
            {"format": "pt"},
            id="with the tied output layer written out",
        ),
    ],
)
def test_a_checkpoint_with_more_or_less_in_it_is_the_same_model(
    model: Path, tiny_adapter: Path, tmp_path: Path, change: Change, metadata: dict[str, str] | None
):
    import torch

    from noesis.llm.causal_model import load_causal_model
    from noesis.release.gguf.writer import write_gguf
    from noesis.release.merge_weights import merge
    from noesis.release.parity.llama_logits import LlamaModel

    before = load_causal_model(model).state_dict()
    change_weights(model, change, metadata)
    after = load_causal_model(model).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    merge(model, tiny_adapter, tmp_path / "m", quantization=PLAIN, dtype="bfloat16", card="")
    write_gguf(tmp_path / "m", tmp_path / "m.gguf", "f16", name="x", licence="")
    with LlamaModel(tmp_path / "m.gguf") as loaded:
        assert loaded.logits([1, 2]).shape == (2, 512)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        pytest.param({"dtype": ..., "torch_dtype": "bfloat16"}, id="torch_dtype for dtype"),
        pytest.param(
            {"rope_parameters": ..., "rope_theta": 10000.0, "rope_scaling": None},
            id="the older spelling of the rotary base",
        ),
        pytest.param({"eos_token_id": [2, 0]}, id="several tokens that end an answer"),
        pytest.param({"time_step_limit": [0.0, float("inf")], "x": float("nan")}, id="infinity and NaN, as Mamba has"),
    ],
)
def test_older_and_newer_spellings_of_a_config_are_the_same_model(model: Path, config: dict[str, Any]):
    from noesis.llm.causal_model import load_causal_model
    from noesis.llm.gguf.families import read_config

    before, dtype = read_config(model), load_causal_model(model, dtype="auto").dtype
    edit(model / "config.json", **config)
    assert read_config(model) == before
    assert load_causal_model(model, dtype="auto").dtype == dtype


@pytest.mark.slow
def test_an_embedding_of_another_size_than_config_json_says_is_refused_before_it_is_converted(
    model: Path, tmp_path: Path
):
    from noesis.release.gguf.writer import write_gguf

    edit(model / "config.json", vocab_size=520)
    with pytest.raises(ModelError, match="vocab_size of 520, and the embedding has 512 rows"):
        write_gguf(model, tmp_path / "x.gguf", "f16", name="x", licence="")
    edit(model / "config.json", vocab_size=512)
    edit(model / "added_tokens.json", **{"<|tool|>": 512})
    edit(model / "special_tokens_map.json", additional_special_tokens=["<|tool|>"])
    with pytest.raises(ModelError, match=r"'<\|tool\|>' is not among the model's 512"):
        write_gguf(model, tmp_path / "x.gguf", "f16", name="x", licence="")
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.slow
@pytest.mark.parametrize("written", [True, False], ids=["written as EOT", "left out"])
def test_a_turn_that_ends_with_another_token_than_eos_ends_in_llama_cpp(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bool
):
    """Its name is none that llama.cpp knows, so the file must say it, and the certificate must see that it does."""
    from gguf import GGUFWriter

    from noesis.release.gguf.writer import write_gguf
    from noesis.release.parity.audit import audit_controls
    from noesis.release.parity.llama_logits import LlamaModel

    raw = (model / "tokenizer.json").read_text(encoding="utf-8").replace("<|im_end|>", "<|basta|>")
    (model / "tokenizer.json").write_text(raw, encoding="utf-8")
    template = (model / "chat_template.jinja").read_text(encoding="utf-8").replace("<|im_end|>", "<|basta|>")
    (model / "chat_template.jinja").write_text(template, encoding="utf-8")
    edit(model / "tokenizer_config.json", eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    if not written:
        monkeypatch.setattr(GGUFWriter, "add_eot_token_id", lambda *_: None)
    write_gguf(model, tmp_path / "x.gguf", "f32", name="x", licence="")
    with LlamaModel(tmp_path / "x.gguf") as loaded:
        found = [finding.what for finding in audit_controls(loaded, load_tokenizer(model))]
    assert found == ([] if written else ["llama.cpp would not stop at '<|basta|>', which ends an answer"])


@pytest.mark.slow
def test_an_index_of_an_earlier_save_is_not_what_is_merged(model: Path, tiny_adapter: Path, tmp_path: Path):
    """transformers trains on model.safetensors where there is one; a merge must start from the same file."""
    from safetensors.torch import load_file, save_file

    from noesis.release.merge_weights import merge

    old = {name: tensor * 0 for name, tensor in load_file(model / "model.safetensors").items()}
    save_file(old, model / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(old, "model-00001-of-00001.safetensors")}
    (model / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    merge(model, tiny_adapter, tmp_path / "m", quantization=PLAIN, dtype="bfloat16", card="")
    assert load_file(tmp_path / "m" / "model.safetensors")["model.embed_tokens.weight"].any()
    assert not (tmp_path / "m" / "model.safetensors.index.json").exists()


@pytest.mark.slow
def test_a_base_that_llama_cpp_cannot_load_is_not_kept_in_the_cache(
    tiny_model: Path, tmp_path: Path, quiet_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    import noesis.release.gguf.writer as writer
    from noesis.pipeline.gguf_files import base_gguf

    model = SimpleNamespace(path=tiny_model, revision="r", licence="none")
    session: Any = SimpleNamespace(
        model=model, arithmetic="bfloat16", as_trained=SimpleNamespace(lora=SimpleNamespace(quantization=PLAIN))
    )
    with monkeypatch.context() as patch:
        plan = writer.plan_gguf
        patch.setattr(writer, "plan_gguf", lambda *arguments: plan(*arguments)[:-1])
        with pytest.raises(ModelError, match=r"llama\.cpp can't load"):
            base_gguf(session)
    assert not list(quiet_cache.rglob("*.gguf"))
    assert base_gguf(session).is_file()


# --- adapters


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "why"),
    [
        pytest.param({"use_rslora": True}, None, id="rsLoRA"),
        pytest.param({"base_model_name_or_path": "/home/someone/else/model"}, None, id="a base that moved"),
        pytest.param({"eva_config": None, "corda_config": None, "of_a_later_version": {"a": 1}}, None, id="keys of a later PEFT"),
        pytest.param({"use_dora": True}, "merge_and_unload", id="DoRA"),
        pytest.param({"rank_pattern": {"q_proj": 8}}, "merge_and_unload", id="ranks that differ"),
        pytest.param({"modules_to_save": ["lm_head"]}, "merge_and_unload", id="whole modules beside it"),
        pytest.param({"target_modules": "all-linear"}, "write out the list", id="a pattern of modules"),
        pytest.param(None, "save_pretrained", id="a pickle"),
    ],
)  # fmt: skip
def test_an_adapter_of_another_tool_is_merged_or_refused_with_a_remedy(
    model: Path, tiny_adapter: Path, tmp_path: Path, settings: dict[str, Any] | None, why: str | None
):
    from noesis.llm.causal_model import load_causal_model, put_adapter
    from noesis.llm.weights.tensors import read_adapter

    folder = shutil.copytree(tiny_adapter, tmp_path / "a")
    if settings is None:
        (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    else:
        raw = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        (folder / "adapter_config.json").write_text(json.dumps(raw | settings), encoding="utf-8")
    if why is None:
        assert len(read_adapter(folder).targets) == 14
        assert put_adapter(load_causal_model(model), folder).peft_config["default"].r == 4
        return
    with pytest.raises(ModelError, match=why):
        read_adapter(folder)


# --- what is written


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_what_a_library_wrote_for_its_owner_alone_obeys_the_umask(tmp_path: Path, umask: int, mode: int):
    before = os.umask(umask)
    try:
        with new_folder(tmp_path / "m") as part:
            os.close(os.open(part / "model.safetensors", os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "m" / "model.safetensors").stat().st_mode) == mode
