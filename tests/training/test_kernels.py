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

from noesis.training.engine import attention, frozen, ops, reference  # noqa: E402
from noesis.training.engine.ops import Dropout  # noqa: E402

T, H, WIDE, R = 704, 4096, 14336, 64
NONE, DROP = Dropout(0), Dropout(77, 123456789)


def random(*shape: int):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


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
    assert error(got, rstd) < 1e-6 and error(x.dropped, DROP.apply(y)) < 1e-6
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
        and error(got.dropped, DROP.apply(x)) < 1e-6
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
            y.float() + drop.apply(low) + residual.float(),
        )
        < 3e-3
    )


def test_rotation_and_back():
    q, k, d = 32, 8, 128
    qkv, u, b, angle = (
        random(T, (q + 2 * k) * d),
        random(T, 3 * R),
        random((q + 2 * k) * d, R),
        torch.randn(T, d // 2, device="cuda"),
    )
    cos, sin = angle.cos(), angle.sin()
    low = torch.cat(
        [u[:, i * R : i * R + R].float() @ part.float().T for i, part in enumerate(b.split([q * d, k * d, k * d]))],
        dim=1,
    )
    y = (qkv.float() + low).view(T, -1, d)
    wanted = torch.cat([reference.rotate(y[:, : q + k], cos, sin), y[:, q + k :]], dim=1).reshape(T, -1)
    assert error(ops.rotate(qkv.clone(), u, b, cos, sin, (q, k)), wanted) < 3e-3
    parts = random(T, q, d), random(T, k, d), random(T, k, d)
    back = [reference.rotate(parts[0], cos, sin, back=True), reference.rotate(parts[1], cos, sin, back=True), parts[2]]
    assert error(ops.rotate_backward(*parts, cos, sin), torch.cat([p.reshape(T, -1) for p in back], dim=1)) < 1e-4


@pytest.mark.parametrize("drop", [NONE, DROP])
def test_swiglu_forward_and_backward(drop: Dropout):
    gu, u, b, d, du, a = (
        random(T, 2 * WIDE),
        0.1 * random(T, 2 * R),
        random(2 * WIDE, R),
        random(T, WIDE),
        0.1 * random(T, R),
        random(WIDE, R),
    )
    assert error(ops.swiglu(gu, u, b), reference.swiglu_forward(gu.float(), u.float(), b.float())) < 3e-3
    wanted = reference.swiglu_backward(
        gu.float(), u.float(), b.float(), d.float() + drop.apply(du.float() @ a.float().T)
    )
    assert error(ops.swiglu_backward(gu.clone(), u, b, d, du, a, drop), wanted) < 3e-3


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


def test_attention_keeps_sequences_apart():
    lengths = [300, 64, 700, 37, 523]
    n, d = sum(lengths), 128
    q, k, v, dout = random(n, 32, d), random(n, 8, d), random(n, 8, d), random(n, 32, d)
    segments = attention.Segments.of(lengths, "cuda")
    exact = attention.forward(q.float(), k.float(), v.float(), segments, d**-0.5, "torch")
    wanted = attention.backward(dout.float(), q.float(), k.float(), v.float(), exact, segments, d**-0.5, "torch")
    got = attention.forward(q, k, v, segments, d**-0.5, "flash")
    assert error(got.out, exact.out) < 5e-3
    for x, y in zip(attention.backward(dout, q, k, v, got, segments, d**-0.5, "flash"), wanted, strict=True):
        assert error(x, y) < 5e-3
