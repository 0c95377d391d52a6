"""GGUF files given as base models that are none, or that a conversion would change: each refused in one message, nothing written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from helpers.gguf.changed import changed
from helpers.tiny_gguf import write_reciter
from noesis.core.errors import ModelError, NoesisError
from noesis.llm.hub import find_description, find_local_model, find_model, find_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reciter(tmp_path_factory.mktemp("base") / "base.gguf", ["one", "two"])


REFUSED = {
    "an adapter": ({"general.type": "adapter"}, "is a LoRA adapter; give the model"),
    "a vision tower": ({"general.type": "mmproj"}, r"\(mmproj\); give the file of the text model"),
    "a vision tower of the older kind": ({"general.architecture": "clip"}, "mmproj"),
    "a file of another type": ({"general.type": "imatrix"}, "of the type 'imatrix'"),
    "a part of a split file by its metadata": ({"split.count": 3}, "one of 3 parts, x-00001-of-00003.gguf to x-00003-of-00003"),
    "a number of parts that is none": ({"split.count": "many"}, "split.count is 'many'"),
    "an architecture that is not read here": ({"general.architecture": "granite"}, "architecture is 'granite'; here llama, qwen2"),
    "a base model without chat template": ({"tokenizer.chat_template": None}, "no chat template; take the instruct"),
    "a file without tokens": ({"tokenizer.ggml.tokens": None}, "no list of tokens"),
    "an unknown kind of tokenizer": ({"tokenizer.ggml.model": "bert"}, "of the kind 'bert'"),
    "scaled positions that would be lost": ({"llama.rope.scaling.type": "yarn"}, "rotary embedding is scaled .'yarn'"),
    "a key that a conversion would lose": ({"llama.logit_scale": 0.5}, "llama.logit_scale is 0.5, which"),
    "experts": ({"llama.expert_count": 8}, "llama.expert_count is 8"),
    "a width that is not the heads'": ({"llama.attention.value_length": 16}, "attention.value_length is 16"),
    "a part of each head rotated": ({"llama.attention.key_length": 64}, "rope.dimension_count is 32"),
    "layers of different widths": ({"llama.feed_forward_length": [32]}, "feed_forward_length differs from layer to layer"),
    "a rotary base of infinity": ({"llama.rope.freq_base": float("inf")}, "rope.freq_base is inf; it is damaged"),
    "an epsilon that is no number": ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "rms_epsilon is nan"),
    "a text for a number": ({"llama.rope.freq_base": "many"}, "lacks what a conversion needs"),
    "no architecture": ({"general.architecture": ""}, "architecture is None"),
    "no width at all": ({"llama.feed_forward_length": None}, "llama.feed_forward_length is missing"),
}  # fmt: skip


def refusal(file: Path, cache: Path) -> str:
    """The message, alike by every way that leads to the file; nothing is left in the cache."""
    messages = set()
    for find in (find_model, find_local_model, find_description, find_tokenizer):
        with pytest.raises(NoesisError) as error:
            find(str(file))
        messages.add(str(error.value))
    assert len(messages) == 1
    assert "\n" not in min(messages)
    assert not [place for place in cache.rglob("*") if place.is_file() and place.suffix != ".lock"]
    return messages.pop()


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_base_model_is_refused_by_its_head(case: str, base: Path, tmp_path: Path, quiet_cache: Path):
    import re

    metadata, why = REFUSED[case]
    file = changed(base, tmp_path / "x.gguf", metadata)
    assert re.search(why, refusal(file, quiet_cache))


def test_a_part_of_a_split_file_is_refused_by_its_name(base: Path, tmp_path: Path, quiet_cache: Path):
    part = tmp_path / "Big-00002-of-00003.gguf"
    shutil.copy(base, part)
    said = refusal(part, quiet_cache)
    assert "llama-gguf-split --merge Big-00001-of-00003.gguf Big.gguf" in said
    assert "Big-00003-of-00003.gguf" in said


def test_a_type_that_cannot_be_dequantised_is_refused_by_name(base: Path, tmp_path: Path, quiet_cache: Path):
    raw = bytearray(base.read_bytes())
    at = raw.index(b"output_norm.weight") + len("output_norm.weight") + 4 + 8  # one dimension, then the type
    raw[at : at + 4] = (26).to_bytes(4, "little")  # I32, as long as F32
    (tmp_path / "x.gguf").write_bytes(raw)
    assert "tensors of the type I32" in refusal(tmp_path / "x.gguf", quiet_cache)


@pytest.mark.parametrize("length", [3, 100, -40], ids=["its first bytes", "its head cut", "its weights cut"])
def test_a_truncated_file_says_to_fetch_it_again(length: int, base: Path, tmp_path: Path, quiet_cache: Path):
    (tmp_path / "x.gguf").write_bytes(base.read_bytes()[:length])
    assert refusal(tmp_path / "x.gguf", quiet_cache).endswith("fetch the file again, or choose another")


def test_a_file_that_is_not_there_and_a_folder_of_gguf_files(base: Path, tmp_path: Path, quiet_cache: Path):
    for name in ("models/x.gguf", str(tmp_path / "x.gguf"), "X.GGUF"):  # the first looks like a name on the Hub
        with pytest.raises(ModelError, match="there is no file"):
            find_model(name)
    shutil.copy(base, tmp_path / "a.gguf")
    with pytest.raises(ModelError, match=r"name the file itself:  --model .*a\.gguf"):
        find_model(str(tmp_path))


@pytest.mark.parametrize(
    ("drop", "extra", "why"),
    [
        pytest.param(
            "output_norm.weight", "", "lacks the tensor output_norm.weight; it is damaged", id="a lost tensor"
        ),
        pytest.param("", "blk.0.attn_q.bias", "the tensor 'blk.0.attn_q.bias', which", id="a bias without a place"),
        pytest.param("", "rope_freqs.weight", "rope_freqs.weight, up to 1", id="rotary factors of no Llama"),
    ],
)
def test_tensors_that_would_be_made_up_or_left_out(
    drop: str, extra: str, why: str, base: Path, tmp_path: Path, quiet_cache: Path
):
    assert why in refusal(changed(base, tmp_path / "x.gguf", {}, drop=drop, extra=extra), quiet_cache)


@pytest.mark.slow
def test_a_tokenizer_that_differs_from_llama_cpps_is_refused_by_the_first_text(
    tiny_model: Path, tmp_path: Path, quiet_cache: Path
):
    from noesis.release.gguf.writer import write_gguf

    write_gguf(tiny_model, tmp_path / "tiny.gguf", "f16", name="tiny", licence="")
    file = changed(tmp_path / "tiny.gguf", tmp_path / "x.gguf", {"tokenizer.ggml.pre": "starcoder"})
    assert "transformers' tokenizer makes" in refusal(file, quiet_cache)
    merges = changed(tmp_path / "tiny.gguf", tmp_path / "y.gguf", {"tokenizer.ggml.merges": ["neither there"]})
    assert "transformers can't read its tokenizer" in refusal(merges, quiet_cache)


def test_the_memory_and_the_disk_are_asked_before(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import noesis.llm.from_gguf.base_file as base_file
    from noesis.core.device import Device

    monkeypatch.setattr(base_file, "detect", lambda: Device("cpu", "small", 1_000_000, 1, bf16=False))
    with pytest.raises(ModelError, match=r"takes about 1\.5 GB of memory, and 1\.0 MB are free"):
        base_file._require_memory(base_file.open_base_file(base), 1000)
