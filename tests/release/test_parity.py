"""The certificate on tiny models: sound exports pass, and each known way of breaking one is caught and named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from helpers.project import ROOT
from noesis.core.config import Quantization
from noesis.core.errors import ParityError
from noesis.llm.tokenizer import load_tokenizer
from noesis.release.parity.certificate import Certificate, TemplateCheck

pytestmark = pytest.mark.slow
PLAIN = Quantization(load_in_4bit=False)
TEXTS = [
    line for line in (ROOT / "data" / "constitution.yaml").read_text(encoding="utf-8").splitlines() if len(line) > 90
][:12]


def certificate(
    model: Path, folder: Path, kinds: tuple[str, ...] = ("f32",), adapter=None, prompts: int = 2
) -> Certificate:
    from noesis.release.gguf.writer import write_gguf
    from noesis.release.parity.certify import Subject, certify

    files = {kind: folder / f"m-{kind}.gguf" for kind in kinds}
    for kind, file in files.items():
        write_gguf(model, file, kind, name="tiny", licence="none")
    return certify(Subject(model, files, adapter, TEXTS, TEXTS[:prompts], answer_tokens=6), load_tokenizer(model))


def own_adapter(base: Path, folder: Path, place: Path | None = None, quantization: Quantization = PLAIN):
    from noesis.release.gguf.writer import write_adapter_gguf, write_gguf
    from noesis.release.parity.certify import TrainedAdapter

    if place is None:
        return TrainedAdapter(folder, base, quantization, "bfloat16")
    write_gguf(base, place / "base.gguf", "f16", name="base", licence="none", quantization=quantization)
    write_adapter_gguf(folder, base, place / "adapter.gguf")
    return TrainedAdapter(folder, base, quantization, "bfloat16", place / "adapter.gguf", place / "base.gguf")


def blame(found: Certificate, kind: str = "f32") -> tuple[str, str]:
    """(stage, why) of a file that must have failed."""
    from noesis.release.parity.outcome import require_passed

    comparison = found.files[kind]
    assert not comparison.passed
    with pytest.raises(ParityError, match="must not be used: broken by the stage"):
        require_passed(found)
    return comparison.broken_by, comparison.why


def test_sound_exports_pass_from_the_adapter_to_every_file(
    tiny_model: Path, tiny_adapter: Path, tiny_merged: Path, tmp_path: Path
):
    from noesis.release.parity.outcome import require_passed

    found = certificate(tiny_merged, tmp_path, ("f32", "f16", "q8_0"), own_adapter(tiny_model, tiny_adapter, tmp_path))
    require_passed(found)
    assert found.positions > 500
    assert found.files["f16"].tokenizer.strings == 512
    assert [found.files[k].tokenizer.different for k in ("f32", "f16", "q8_0")] == [0, 0, 0]
    assert found.files["f32"].templates == TemplateCheck(conversations=5, different=0, examples=())
    assert found.files["f32"].divergence.kl_mean < found.files["q8_0"].divergence.kl_mean < 0.02
    assert found.merge.divergence.kl_mean < 1e-3
    assert found.adapter.divergence.kl_mean < 1e-4
    assert Certificate.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found


def test_a_quantised_base_is_compared_as_it_was_trained_against(tiny_model: Path, tiny_adapter: Path, tmp_path: Path):
    from noesis.release.merge_weights import merge
    from noesis.release.parity.outcome import require_passed

    for kind, quantization in (("nf4", Quantization()), ("plain", PLAIN)):
        merge(tiny_model, tiny_adapter, tmp_path / kind, quantization=quantization, dtype="bfloat16", card="")
    require_passed(
        certificate(
            tmp_path / "nf4", tmp_path, adapter=own_adapter(tiny_model, tiny_adapter, quantization=Quantization())
        )
    )
    other = certificate(
        tmp_path / "plain", tmp_path, adapter=own_adapter(tiny_model, tiny_adapter, quantization=Quantization())
    )
    assert other.merge.broken_by == "merge"
    from noesis.release.parity.certify import Subject, certify

    subject = Subject(
        tmp_path / "nf4",
        {},
        own_adapter(tiny_model, tiny_adapter, quantization=Quantization()),
        TEXTS,
        [],
        originals=True,
    )
    elsewhere = certify(subject, load_tokenizer(tiny_model)).merge.on_original_weights
    assert elsewhere.kl_mean == pytest.approx(other.merge.divergence.kl_mean, rel=0.1)  # but for the merge's rounding
    assert other.files["f32"].passed


def test_rows_of_query_and_key_left_as_they_are(tiny_merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import noesis.release.gguf.writer as gguf

    monkeypatch.setattr(gguf, "permuted", lambda name, array, config: array)
    broken = certificate(tiny_merged, tmp_path)
    assert blame(broken) == (
        "conversion",
        "the rows of query and key are not in llama.cpp's order (blk.0.attn_q.weight)",
    )
    assert broken.files["f32"].divergence.kl_mean > 0.01


def test_rotary_factors_left_out(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A model with Llama-3.1's frequency scaling: with the factors it passes."""
    import noesis.release.gguf.writer as gguf
    from noesis.release.parity.outcome import require_passed

    model = tmp_path / "scaled"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text())
    config["rope_parameters"] = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
    }  # fmt: skip
    (model / "config.json").write_text(json.dumps(config))
    require_passed(certificate(model, tmp_path))
    monkeypatch.setattr(gguf, "rope_tensors", lambda rope: {})
    broken = certificate(model, tmp_path)
    assert blame(broken) == ("conversion", "the rotary factors (rope_freqs.weight) of the model's scaling are missing")
    assert broken.files["f32"].divergence.kl_mean > 1e-3


def test_a_lost_pre_tokenizer(tiny_merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """transformers' round trip of SmolLM2's GGUF loses the splitting of digits in this way."""
    import noesis.release.gguf.vocabulary as vocabulary

    model = tmp_path / "joined"
    joined_digits(tiny_merged, model)
    monkeypatch.setattr(vocabulary, "pre_tokenizer", lambda raw, backend, model: "smollm")
    broken = certificate(model, tmp_path)
    stage, why = blame(broken)
    assert stage == "tokenizer"
    assert "its pre-tokenizer is smollm, the model's is gpt-2" in why
    assert "strings are tokenised differently" in why


def joined_digits(model: Path, target: Path) -> None:
    """A model whose tokenizer joins digits, as SmolLM2's does when the round trip has lost the splitting."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from noesis.llm.gguf.hard_strings import HARD_STRINGS

    shutil.copytree(model, target)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["2024 1936 000123"] * 50 + HARD_STRINGS, trainer)
    tokenizer.save(str(target / "tokenizer.json"))


def test_digits_joined_and_said_so_pass(tiny_merged: Path, tmp_path: Path):
    from noesis.release.parity.outcome import require_passed

    joined_digits(tiny_merged, tmp_path / "joined")
    found = certificate(tmp_path / "joined", tmp_path)
    require_passed(found)
    assert all(comparison.passed for comparison in found.files.values())


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            "{% for m in messages %}### {{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}",
            "not the one that the model has",
        ),
        ("", "is missing"),
    ],
)
def test_a_wrong_template(
    tiny_merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, words: str
):
    import noesis.release.gguf.vocabulary as vocabulary

    monkeypatch.setattr(vocabulary, "chat_template", lambda model: template)
    stage, why = blame(certificate(tiny_merged, tmp_path))
    assert stage == "template"
    assert words in why


def test_an_adapter_applied_twice_or_not_at_all(
    tiny_model: Path, tiny_adapter: Path, tiny_merged: Path, tmp_path: Path
):
    from noesis.release.merge_weights import merge
    from noesis.release.parity.outcome import name_files, require_passed

    merge(tiny_merged, tiny_adapter, tmp_path / "twice", quantization=PLAIN, dtype="bfloat16", card="")
    for model, words in (
        (tmp_path / "twice", "the adapter is in the merged weights 2 times"),
        (tiny_model, "the adapter is not in the merged weights"),
    ):
        broken = certificate(model, tmp_path, adapter=own_adapter(tiny_model, tiny_adapter))
        assert (broken.merge.passed, broken.merge.broken_by) == (False, "merge")
        assert words in broken.merge.why
        with pytest.raises(ParityError, match=f"merged model must not be used: broken by the stage merge: {words}"):
            require_passed(broken)
        renamed = name_files(broken, tmp_path, tmp_path)  # a sound conversion of a bad merge is no good file
        assert [p.name for p in tmp_path.glob("m-*")] == ["m-f32.rejected.gguf"]
        assert renamed.files["f32"].file.name == "m-f32.rejected.gguf"
        (tmp_path / "m-f32.rejected.gguf").unlink()


def test_a_bad_quantisation_is_told_from_a_bad_conversion(
    tiny_merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import noesis.release.gguf.writer as gguf

    real = gguf.quantise
    monkeypatch.setattr(
        gguf,
        "quantise",
        lambda rows, stored: real(rows * 0.5 if rows.ndim == 2 and stored.name == "Q8_0" else rows, stored),
    )
    broken = certificate(tiny_merged, tmp_path, ("f16", "q8_0"))
    assert broken.files["f16"].passed
    assert blame(broken, "q8_0") == ("quantisation", "it does not behave like the merged model")


def test_weights_too_large_to_hold_in_float32_are_widened_layer_by_layer(
    tiny_merged: Path, tiny_model: Path, tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch
):
    import torch

    import noesis.release.parity.reference as reference

    rows = [load_tokenizer(tiny_merged)(text)["input_ids"][:40] for text in TEXTS[:3]]

    def computed() -> list:
        adapted = reference.adapted_model(tiny_model, tiny_adapter, PLAIN, "bfloat16")
        merged = reference.merged_model(tiny_merged)
        return [*adapted.logits(rows), *merged.logits(rows), adapted.answer(rows[0], 5, set(), [])]

    held = computed()
    monkeypatch.setattr(reference, "LARGE", 0)
    widened = computed()
    assert held.pop() == widened.pop()
    for a, b in zip(held, widened, strict=True):
        assert torch.allclose(torch.from_numpy(a), torch.from_numpy(b), atol=1e-4)
    assert {p.dtype for p in reference.merged_model(tiny_merged).model.parameters()} == {torch.bfloat16}


def test_a_draft_changes_how_long_an_answer_takes_and_nothing_else(tiny_merged: Path):
    from noesis.release.parity.reference import merged_model

    model = merged_model(tiny_merged)
    ids = load_tokenizer(tiny_merged)(TEXTS[0])["input_ids"][:40]
    answer = model.answer(ids, 6, set(), [])
    assert len(answer) == 6
    wrong = [*answer[:2], (answer[2] + 1) % 100, *answer[3:]]
    for draft in (answer, answer[:3], [*answer, 1, 2], wrong, [wrong[2]]):
        assert model.answer(ids, 6, set(), draft) == answer
        assert model.answer(ids, 6, {answer[3]}, draft) == answer[: answer.index(answer[3])]
