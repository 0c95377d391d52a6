"""Which tensor is stored how, against llama.cpp's own files; the strings and figures of the certificate; no model is loaded."""

from __future__ import annotations

import math

import numpy as np
import pytest

from noesis.core.errors import ModelError
from noesis.llm.gguf.hard_strings import HARD_STRINGS, hard_strings
from noesis.release.gguf.quantize import KINDS, quantise, row_bytes, storage_type


def kinds_of(kind: str, width: int, hidden: int, layers: int, *, has_output: bool) -> dict[str, str]:
    shapes = {"token_embd.weight": (1000, width), "output_norm.weight": (width,)} | (
        {"output.weight": (1000, width)} if has_output else {}
    )
    for i in range(layers):
        shapes |= {
            f"blk.{i}.attn_q.weight": (width, width),
            f"blk.{i}.attn_v.weight": (64, width),
            f"blk.{i}.ffn_down.weight": (width, hidden),
            f"blk.{i}.attn_norm.weight": (width,),
        }
    return {
        name: storage_type(kind, name, shape, layers=layers, has_output=has_output).name
        for name, shape in shapes.items()
    }


def test_llama_31_8b_as_q4_k_m_has_llama_cpps_mix():
    found = kinds_of("q4_k_m", 4096, 14336, 32, has_output=True)
    more = [i for i in range(32) if found[f"blk.{i}.ffn_down.weight"] == "Q6_K"]
    # as in llama.cpp's own file of the 8B: the first and last four layers, and every third between
    assert more == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert [i for i in range(32) if found[f"blk.{i}.attn_v.weight"] == "Q6_K"] == more
    assert (found["output.weight"], found["token_embd.weight"], found["blk.5.attn_q.weight"]) == (
        "Q6_K",
        "Q4_K",
        "Q4_K",
    )
    assert found["blk.5.attn_norm.weight"] == found["output_norm.weight"] == "F32"


def test_smollm2s_width_falls_back_as_in_llama_cpp():
    found = kinds_of("q4_k_m", 576, 1536, 30, has_output=False)
    assert (found["token_embd.weight"], found["blk.0.attn_v.weight"], found["blk.5.attn_q.weight"]) == (
        "Q8_0",
        "Q8_0",
        "Q5_0",
    )
    assert (found["blk.0.ffn_down.weight"], found["blk.4.ffn_down.weight"]) == ("Q6_K", "Q4_K")


def test_rows_that_divide_by_nothing_stay_halves():
    assert kinds_of("q8_0", 40, 72, 1, has_output=False)["blk.0.attn_q.weight"] == "F16"
    assert kinds_of("q4_k_m", 40, 72, 1, has_output=False)["blk.0.ffn_down.weight"] == "F16"


@pytest.mark.parametrize(("kind", "largest"), [("Q8_0", 0.006), ("Q5_0", 0.05), ("Q4_K", 0.09), ("Q6_K", 0.02)])
def test_rounding_is_that_of_the_gguf_package_read_back(kind: str, largest: float):
    import gguf

    stored = gguf.GGMLQuantizationType[kind]
    weights = np.random.default_rng(0).normal(size=(3, 512)).astype(np.float32)
    raw = quantise(weights, stored)
    assert raw.nbytes == 3 * row_bytes(stored, 512)
    back = gguf.quants.dequantize(raw, stored)
    assert math.sqrt(((back - weights) ** 2).sum() / (weights**2).sum()) < largest
    if kind in ("Q8_0", "Q5_0"):
        assert np.array_equal(raw, gguf.quants.quantize(weights, stored))


def test_a_weight_that_does_not_fit_is_said():
    import gguf

    with pytest.raises(ModelError, match="does not fit F16"):
        quantise(np.array([[70000.0]], dtype=np.float32), gguf.GGMLQuantizationType.F16)
    with pytest.raises(ModelError, match="not a finite number"):
        quantise(np.full((1, 32), np.nan, dtype=np.float32), gguf.GGMLQuantizationType.Q8_0)


def test_the_strings_are_500_different_ones_and_always_the_same():
    strings = hard_strings()
    assert len(set(strings)) == len(strings) == 500
    assert strings[: len(HARD_STRINGS)] == HARD_STRINGS
    assert strings == hard_strings()
    text = "".join(strings)
    assert all(
        any(c in text for c in group)
        for group in ("0123456789", "áéíóúãõç", "😀👍🏽🇧🇷", "{}();", "λόγ", "真理", "\u200d", "\r")
    )


@pytest.mark.slow
def test_figures_are_the_textbooks():
    import torch

    from noesis.release.parity.certificate import Tolerance
    from noesis.release.parity.figures import DivergenceMeter, answer_agreement, within_tolerance

    draw = np.random.default_rng(0)
    ours = draw.normal(size=(20, 300)).astype(np.float32) * 8
    for scale in (1e-3, 0.3, 40.0):
        theirs = ours + draw.normal(size=ours.shape).astype(np.float32) * scale
        figures = DivergenceMeter()
        figures.add(ours, theirs)
        p, q = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in (ours, theirs))
        assert figures.result().kl_mean == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=2e-3, abs=1e-12)
        assert figures.result().top1 == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    broken = DivergenceMeter()
    broken.add(ours, ours * np.nan)
    assert not within_tolerance(broken.result(), Tolerance(1e9, 0.0))
    assert answer_agreement([[1, 2, 3, 4], [5], []], [[1, 2, 9, 4], [5], []]).to_json() == {
        "prompts": 3,
        "tokens": 5,
        "identical": 2,
        "shared": 0.8333,
    }
    assert KINDS == ("f32", "f16", "q8_0", "q4_k_m")
