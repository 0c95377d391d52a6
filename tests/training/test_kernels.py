"""Each Triton kernel against its plain-torch twin, on a GPU (skipped elsewhere).

CUDA_VISIBLE_DEVICES=0 pytest tests/training/test_kernels.py
"""

from __future__ import annotations

import importlib.util

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton", allow_module_level=True)
torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)

from torch.nn.functional import pad  # noqa: E402

from noesis.core.families.architecture import Activation  # noqa: E402
from noesis.training.engine import attention, frozen, ops, reference  # noqa: E402
from noesis.training.engine.blockwise import Scores  # noqa: E402
from noesis.training.engine.ops import Dropout  # noqa: E402
from noesis.training.engine.rotary import Angles, HeadNorms  # noqa: E402

T, H, WIDE, R = 704, 4096, 14336, 64
NONE, DROP = Dropout(0), Dropout(77, 123456789)


def random(*shape: int):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def dropped(drop: Dropout, x):
    """x with the kernels' dropout."""
    if drop.threshold == 0:
        return x
    return x * reference.keep_mask(x.shape, drop.seed, drop.threshold, x.device) * drop.scale


def error(got, wanted) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_norm_forward_and_backward():
    h, w = random(T, H), 1 + 0.1 * random(H)
    y, rstd = reference.rms_norm(h, w, 1e-5)
    q, scale = reference.quantise_rows(y)
    x, got = ops.norm(h, w, 1e-5, DROP, fp8=True)
    assert error(got, rstd) < 1e-6 and error(x.dropped, dropped(DROP, y)) < 1e-6
    assert error(x.q.float(), q.float()) < 1e-6 and error(x.scale, scale) < 1e-6
    assert error(ops.norm(h, w, 1e-5, NONE, fp8=False)[0].plain, y) < 1e-6
    dx, residual = random(T, H), random(T, H)
    wanted = reference.rms_norm_backward(dx, h, rstd, w, residual)
    out = ops.norm_backward(dx, h, rstd, w, residual, fp8=True)
    assert error(out.plain, wanted) < 1e-4 and error(out.q.float(), reference.quantise_rows(wanted)[0].float()) < 1e-3


@pytest.mark.parametrize("width", [576, H, WIDE, 2 * WIDE])
def test_quantising_is_exact(width: int):
    x = random(T, width)
    got, (q, scale) = ops.prepare(x, DROP, fp8=True), reference.quantise_rows(x)
    assert (
        error(got.q.float(), q.float()) < 1e-6
        and error(got.scale, scale) < 1e-6
        and error(got.dropped, dropped(DROP, x)) < 1e-6
    )


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("r", [8, R])
@pytest.mark.parametrize("drop", [NONE, DROP])
def test_the_adapters_part_is_added(groups: int, r: int, drop: Dropout):
    y, u, b, residual = random(T, H), random(T, groups * r), random(groups, H, r), random(T, H)
    low = sum(u[:, g * r : g * r + r].float() @ b[g].float().T for g in range(groups))
    assert (
        error(
            ops.add_low_rank(y.clone(), u, b, drop=drop, residual=residual),
            y.float() + dropped(drop, low) + residual.float(),
        )
        < 3e-3
    )


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("d", "turned"), [(128, 64), (128, 48), (96, 48), (256, 128)])
def test_rotation_and_back(d: int, turned: int, normed: bool):
    q, k = 32, 8
    qkv, u, b = random(T, (q + 2 * k) * d), random(T, 3 * R), random((q + 2 * k) * d, R)
    angle = torch.randn(T, turned, device="cuda")
    cos, sin = angle.cos(), angle.sin()
    rest = (0, d // 2 - turned)
    angles = Angles(pad(cos, rest, value=1.0), pad(sin, rest), turned)
    norms = HeadNorms(1 + 0.3 * torch.randn(2, d, device="cuda"), 1e-6) if normed else None
    low = torch.cat(
        [u[:, i * R : i * R + R].float() @ part.float().T for i, part in enumerate(b.split([q * d, k * d, k * d]))],
        dim=1,
    )
    y = (qkv.float() + low).view(T, -1, d)
    weight = torch.cat([w.expand(n, -1) for w, n in zip(norms.weight[:, None], (q, k), strict=True)]) if norms else None
    before = y[:, : q + k] if norms is None else reference.rms_norm(y[:, : q + k], weight, norms.eps)[0]
    wanted = torch.cat([reference.rotate(before, cos, sin), y[:, q + k :]], dim=1).reshape(T, -1)
    got, raw = ops.rotate(qkv.clone(), u, b, angles, (q, k), norms)
    assert error(got, wanted) < 4e-3
    dq, dk, dv = random(T, q, d), random(T, k, d), random(T, k, d)
    back = reference.rotate(torch.cat([dq, dk], dim=1).float(), cos, sin, back=True)
    if norms is not None:
        assert error(raw, y[:, : q + k].reshape(T, -1)) < 3e-3
        was = raw.view(T, q + k, d).float()
        rstd = reference.rms_norm(was, weight, norms.eps)[1]
        back = reference.rms_norm_backward(back, was, rstd, weight, torch.zeros_like(was))
    wanted = torch.cat([back.reshape(T, -1), dv.float().reshape(T, -1)], dim=1)
    assert error(ops.rotate_backward(dq, dk, dv, angles, raw, norms), wanted) < 3e-3


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("drop", [NONE, DROP])
def test_gated_unit_forward_and_backward(drop: Dropout, activation: Activation):
    gu, u, b, d, du, a = (
        random(T, 2 * WIDE),
        0.1 * random(T, 2 * R),
        random(2 * WIDE, R),
        random(T, WIDE),
        0.1 * random(T, R),
        random(WIDE, R),
    )
    wanted = reference.glu_forward(gu.float(), u.float(), b.float(), activation)
    assert error(ops.glu(gu, u, b, activation), wanted) < 3e-3
    wanted = reference.glu_backward(
        gu.float(), u.float(), b.float(), d.float() + dropped(drop, du.float() @ a.float().T), activation
    )
    assert error(ops.glu_backward(gu.clone(), u, b, d, du, a, drop, activation), wanted) < 3e-3


def test_cross_entropy_and_its_gradient():
    logits, labels = 3 * random(64, 128256), torch.randint(0, 128256, (64,), device="cuda")
    exact = logits.float().requires_grad_()
    loss = torch.nn.functional.cross_entropy(exact, labels, reduction="none")
    (loss.sum() * 0.25).backward()
    assert error(ops.cross_entropy(logits, labels, torch.tensor([0.25], device="cuda")), loss.detach()) < 1e-6
    assert error(logits, exact.grad) < 3e-3


@pytest.mark.parametrize("nested", [True, False])
def test_nf4_is_unpacked_as_bitsandbytes_does(nested: bool):
    functional = pytest.importorskip("bitsandbytes.functional")
    packed, state = functional.quantize_4bit(random(1024, H), quant_type="nf4", compress_statistics=nested)
    out = torch.empty(1024, H, dtype=torch.bfloat16, device="cuda")
    frozen.dequantise(packed.view(-1), state, out)
    assert torch.equal(out, functional.dequantize_4bit(packed, state))


@pytest.mark.parametrize("scores", [Scores(128**-0.5), Scores(128**-0.5, 100), Scores(128**-0.5, 100, 5.0)])
def test_attention_keeps_sequences_apart(scores: Scores):
    lengths = [300, 64, 700, 37, 523]
    n, d = sum(lengths), 128
    q, k, v, dout = random(n, 32, d), random(n, 8, d), random(n, 8, d), random(n, 32, d)
    segments = attention.Segments.of(lengths, "cuda")
    *host, back = (x.float().cpu() for x in (q, k, v, dout))
    backend = attention.choose_attention("cpu", torch.float32, scores, "flash2")
    apart = attention.Segments.of(lengths, "cpu")
    wanted = attention.forward(*host, apart, scores, backend)
    chosen = attention.choose_attention("cuda", torch.bfloat16, scores, "flash2")
    got = attention.forward(q, k, v, segments, scores, chosen)
    assert error(got.out.cpu(), wanted.out) < 5e-3
    found = attention.backward(dout, q, k, v, got, segments, scores, chosen)
    for x, y in zip(found, attention.backward(back, *host, wanted, apart, scores, backend), strict=True):
        assert error(x.cpu(), y) < (1e-2 if scores.cap else 5e-3)
