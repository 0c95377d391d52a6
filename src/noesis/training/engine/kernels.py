"""Triton kernels of the decoder layer: the steps between its matrix products, each tensor read and written once.

`ops` calls them on a GPU; `reference` defines in plain torch what each computes, and the tests compare the two. Rows
are tokens. Names: T tokens, H hidden width, I intermediate width, D head width, R rank of the adapter. Numbers are
float32 inside a kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

FP8_MAX = tl.constexpr(448.0)  # largest float8 e4m3


@triton.jit
def _keep(index, seed, threshold):
    """Dropout: true where this element's random byte, a hash of its index, is not below `threshold`."""
    word = (index >> 2).to(tl.uint32) * 0x9E3779B1 + seed.to(tl.uint32)
    word = (word ^ (word >> 16)) * 0x85EBCA6B
    word = (word ^ (word >> 13)) * 0xC2B2AE35
    word = word ^ (word >> 16)
    byte = (word >> ((index & 3) * 8).to(tl.uint32)) & 255
    return byte.to(tl.int32) >= threshold


@triton.jit
def _store_fp8(value, q, scale, row, columns, mask, width):
    """Quantise one row with its own scale."""
    s = tl.maximum(tl.max(tl.abs(value)), 1e-12) / FP8_MAX
    tl.store(scale + row, s)
    tl.store(q + row * width + columns, (value / s).to(tl.float8e4nv), mask=mask)


@triton.jit(do_not_specialize=["seed", "threshold"])
def norm_forward(
    h, weight, x, dropped, q, scale, rstd, seed, threshold, keep_scale, width, eps,
    BLOCK: tl.constexpr, PLAIN: tl.constexpr, DROP: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """RMSNorm of one row; written plain, with dropout, and in FP8, as the flags say."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    v = tl.load(h + row * width + columns, mask=mask, other=0.0).to(tl.float32)
    r = 1.0 / tl.sqrt(tl.sum(v * v) / width + eps)
    tl.store(rstd + row, r)
    w = tl.load(weight + columns, mask=mask, other=0.0)
    y = ((v * r).to(w.dtype) * w).to(w.dtype)
    if PLAIN:
        tl.store(x + row * width + columns, y, mask=mask)
    y = y.to(tl.float32)
    if DROP:
        kept = tl.where(_keep(row * width + columns, seed, threshold), y * keep_scale, 0.0)
        tl.store(dropped + row * width + columns, kept.to(w.dtype), mask=mask)
    if FP8:
        _store_fp8(y, q, scale, row, columns, mask, width)


@triton.jit
def norm_backward(dx, h, rstd, weight, residual, dh, q, scale, width, BLOCK: tl.constexpr, FP8: tl.constexpr):
    """Gradient through RMSNorm added to that of the residual stream; also in FP8 for the product that comes next."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    at = row * width + columns
    g = tl.load(dx + at, mask=mask, other=0.0).to(tl.float32) * tl.load(weight + columns, mask=mask, other=0.0).to(
        tl.float32
    )
    r = tl.load(rstd + row)
    normed = tl.load(h + at, mask=mask, other=0.0).to(tl.float32) * r
    mean = tl.sum(g * normed) / width
    out = tl.load(residual + at, mask=mask, other=0.0).to(tl.float32) + (g - normed * mean) * r
    out = out.to(dh.dtype.element_ty)
    tl.store(dh + at, out, mask=mask)
    if FP8:
        _store_fp8(out.to(tl.float32), q, scale, row, columns, mask, width)


@triton.jit(do_not_specialize=["seed", "threshold"])
def quantise(
    x, dropped, q, scale, seed, threshold, keep_scale, width, BLOCK: tl.constexpr, DROP: tl.constexpr, FP8: tl.constexpr
):  # fmt: skip
    """One row in FP8 with its scale, and with dropout; two passes, the second of which reads the row from cache."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    s = 1.0
    if FP8:
        largest = tl.zeros((BLOCK,), dtype=tl.float32)
        for start in range(0, width, BLOCK):
            mask = start + columns < width
            v = tl.load(x + row * width + start + columns, mask=mask, other=0.0).to(tl.float32)
            largest = tl.maximum(largest, tl.abs(v))
        s = tl.maximum(tl.max(largest), 1e-12) / FP8_MAX
        tl.store(scale + row, s)
    for start in range(0, width, BLOCK):
        mask = start + columns < width
        at = row * width + start + columns
        v = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        if FP8:
            tl.store(q + at, (v / s).to(tl.float8e4nv), mask=mask)
        if DROP:
            kept = tl.where(_keep(at, seed, threshold), v * keep_scale, 0.0)
            tl.store(dropped + at, kept.to(x.dtype.element_ty), mask=mask)


@triton.jit
def _low_rank(u, b, rows, columns, row_mask, column_mask, u_stride, R: tl.constexpr, RP: tl.constexpr):
    """Tile of u · bᵀ; u: (T, R) at row stride `u_stride`, b: (N, R) contiguous. RP: R rounded up to a power of two."""
    k = tl.arange(0, RP)
    a = tl.load(
        u + rows[:, None].to(tl.int64) * u_stride + k[None, :], mask=row_mask[:, None] & (k[None, :] < R), other=0.0
    )
    c = tl.load(b + columns[None, :] * R + k[:, None], mask=column_mask[None, :] & (k[:, None] < R), other=0.0)
    return tl.dot(a, c, input_precision="ieee")


@triton.jit(do_not_specialize=["seed", "threshold"])
def add_low_rank(
    y, u, b, residual, out, seed, threshold, keep_scale, tokens, width, u_stride,
    G: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    DROP: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """out = y + dropout(Σ_g u_g · b_gᵀ) (+ residual); u: (T, G·R), b: (G, width, R)."""
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    row_mask, column_mask = rows < tokens, columns < width
    low = tl.zeros((BM, BN), dtype=tl.float32)
    for g in tl.static_range(G):
        low += _low_rank(u + g * R, b + g * width * R, rows, columns, row_mask, column_mask, u_stride, R, RP)
    at = rows[:, None].to(tl.int64) * width + columns[None, :]
    mask = row_mask[:, None] & column_mask[None, :]
    if DROP:
        low = tl.where(_keep(at, seed, threshold), low * keep_scale, 0.0)
    value = tl.load(y + at, mask=mask, other=0.0).to(tl.float32) + low
    if RESIDUAL:
        value += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _pair(half, D2: tl.constexpr, TURNED: tl.constexpr):
    """Where in a head the two numbers of each pair are: `TURNED` pairs at its beginning, then those that stay."""
    if TURNED == D2:
        one = half
        two = half + D2
    else:
        one = tl.where(half < TURNED, half, half + TURNED)
        two = tl.where(half < TURNED, half + TURNED, half + D2)
    return one, two


@triton.jit
def _head_rstd(first, second, eps, D2: tl.constexpr):
    """1/root-mean-square of a head, for each row: (BM, 1)."""
    return (1.0 / tl.sqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / (2 * D2) + eps))[:, None]


@triton.jit
def rotate_forward(
    qkv, u, b, cos, sin, raw, norm, tokens, width, u_stride, QH, KH, eps,
    D2: tl.constexpr, HALF: tl.constexpr, TURNED: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, BM: tl.constexpr,
    NORM: tl.constexpr,
):  # fmt: skip
    """Adds the adapters' part to q, k and v and rotates q and k, in place, one head of a block of rows.

    cos, sin: (T, D/2). HALF: D/2 rounded up to a power of two
    NORM: each head of q and k is normed before; norm: (2, D), raw: (T, (Q + K)·D) receives q and k as they were
    """
    head = tl.program_id(0)
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    half = tl.arange(0, HALF)
    row_mask = rows < tokens
    inside = half < D2
    kind = (head >= QH).to(tl.int32) + (head >= QH + KH).to(tl.int32)
    mask = row_mask[:, None] & inside[None, :]
    one, two = _pair(half, D2, TURNED)
    at = rows[:, None].to(tl.int64) * width + head * 2 * D2
    first = tl.load(qkv + at + one[None, :], mask=mask, other=0.0).to(tl.float32)
    second = tl.load(qkv + at + two[None, :], mask=mask, other=0.0).to(tl.float32)
    columns = head * 2 * D2
    first += _low_rank(u + kind * R, b, rows, columns + one, row_mask, inside, u_stride, R, RP)
    second += _low_rank(u + kind * R, b, rows, columns + two, row_mask, inside, u_stride, R, RP)
    if NORM:
        kept = mask & (kind < 2)
        raw_at = rows[:, None].to(tl.int64) * ((QH + KH) * 2 * D2) + columns
        tl.store(raw + raw_at + one[None, :], first.to(raw.dtype.element_ty), mask=kept)
        tl.store(raw + raw_at + two[None, :], second.to(raw.dtype.element_ty), mask=kept)
        rstd = tl.where(kind == 2, 1.0, _head_rstd(first, second, eps, D2))
        weight = norm + kind * 2 * D2
        known = inside & (kind < 2)
        w1 = tl.load(weight + one, mask=known, other=1.0)
        w2 = tl.load(weight + two, mask=known, other=1.0)
        first = ((first * rstd).to(w1.dtype) * w1[None, :]).to(tl.float32)
        second = ((second * rstd).to(w2.dtype) * w2[None, :]).to(tl.float32)
    c = tl.load(cos + rows[:, None] * D2 + half[None, :], mask=mask, other=0.0)
    n = tl.load(sin + rows[:, None] * D2 + half[None, :], mask=mask, other=0.0)
    c = tl.where(kind == 2, 1.0, c)
    n = tl.where(kind == 2, 0.0, n)
    tl.store(qkv + at + one[None, :], (first * c - second * n).to(qkv.dtype.element_ty), mask=mask)
    tl.store(qkv + at + two[None, :], (second * c + first * n).to(qkv.dtype.element_ty), mask=mask)


@triton.jit
def rotate_backward(
    dq, dk, dv, dqkv, cos, sin, raw, norm, tokens, width, QH, KH, eps,
    D2: tl.constexpr, HALF: tl.constexpr, TURNED: tl.constexpr, BM: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Gathers dq, dk, dv (each contiguous) into one tensor, rotated back and, with NORM, through the heads' norms."""
    head = tl.program_id(0)
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    half = tl.arange(0, HALF)
    inside = half < D2
    mask = (rows[:, None] < tokens) & inside[None, :]
    wide = rows[:, None].to(tl.int64)
    one, two = _pair(half, D2, TURNED)
    if head < QH:
        source = dq + wide * (QH * 2 * D2) + head * 2 * D2
        first = tl.load(source + one[None, :], mask=mask, other=0.0).to(tl.float32)
        second = tl.load(source + two[None, :], mask=mask, other=0.0).to(tl.float32)
    elif head < QH + KH:
        source = dk + wide * (KH * 2 * D2) + (head - QH) * 2 * D2
        first = tl.load(source + one[None, :], mask=mask, other=0.0).to(tl.float32)
        second = tl.load(source + two[None, :], mask=mask, other=0.0).to(tl.float32)
    else:
        source = dv + wide * (KH * 2 * D2) + (head - QH - KH) * 2 * D2
        first = tl.load(source + one[None, :], mask=mask, other=0.0).to(tl.float32)
        second = tl.load(source + two[None, :], mask=mask, other=0.0).to(tl.float32)
    c = tl.load(cos + rows[:, None] * D2 + half[None, :], mask=mask, other=0.0)
    n = tl.load(sin + rows[:, None] * D2 + half[None, :], mask=mask, other=0.0)
    c = tl.where(head >= QH + KH, 1.0, c)
    n = tl.where(head >= QH + KH, 0.0, n)
    back1 = first * c + second * n
    back2 = second * c - first * n
    if NORM:
        is_value = head >= QH + KH
        raw_at = wide * ((QH + KH) * 2 * D2) + head * 2 * D2
        raw1 = tl.load(raw + raw_at + one[None, :], mask=mask & (head < QH + KH), other=0.0).to(tl.float32)
        raw2 = tl.load(raw + raw_at + two[None, :], mask=mask & (head < QH + KH), other=0.0).to(tl.float32)
        rstd = _head_rstd(raw1, raw2, eps, D2)
        weight = norm + (head >= QH).to(tl.int32) * 2 * D2
        known = inside & (head < QH + KH)
        g1 = back1 * tl.load(weight + one, mask=known, other=0.0).to(tl.float32)[None, :]
        g2 = back2 * tl.load(weight + two, mask=known, other=0.0).to(tl.float32)[None, :]
        raw1, raw2 = raw1 * rstd, raw2 * rstd
        mean = ((tl.sum(g1 * raw1, 1) + tl.sum(g2 * raw2, 1)) / (2 * D2))[:, None]
        back1 = tl.where(is_value, back1, (g1 - raw1 * mean) * rstd)
        back2 = tl.where(is_value, back2, (g2 - raw2 * mean) * rstd)
    at = wide * width + head * 2 * D2
    tl.store(dqkv + at + one[None, :], back1.to(dqkv.dtype.element_ty), mask=mask)
    tl.store(dqkv + at + two[None, :], back2.to(dqkv.dtype.element_ty), mask=mask)


@triton.jit
def _gate(gate, GELU: tl.constexpr):
    """(s, slope): the activation is gate · s, and its derivative s · (1 + gate · (1 - s) · slope)."""
    if GELU:  # by tanh, which is a sigmoid of twice the argument
        square = gate * gate
        sigmoid = tl.sigmoid(1.5957691216057308 * gate * (1.0 + 0.044715 * square))
        slope = 1.5957691216057308 * (1.0 + 0.134145 * square)
    else:
        sigmoid = tl.sigmoid(gate)
        slope = 1.0
    return sigmoid, slope


@triton.jit
def glu_forward(
    gu, u, b, act, tokens, width, u_stride,
    R: tl.constexpr, RP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, GELU: tl.constexpr,
):  # fmt: skip
    """act = activation(gate) · up, with their adapters' part. gu: (T, 2I), u: (T, 2R), b: (2I, R), act: (T, I)."""
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    row_mask, column_mask = rows < tokens, columns < width
    mask = row_mask[:, None] & column_mask[None, :]
    at = rows[:, None].to(tl.int64) * (2 * width) + columns[None, :]
    gate = tl.load(gu + at, mask=mask, other=0.0).to(tl.float32)
    gate += _low_rank(u, b, rows, columns, row_mask, column_mask, u_stride, R, RP)
    up = tl.load(gu + at + width, mask=mask, other=0.0).to(tl.float32)
    up += _low_rank(u + R, b + width * R, rows, columns, row_mask, column_mask, u_stride, R, RP)
    sigmoid, _ = _gate(gate, GELU)
    value = gate * sigmoid * up
    tl.store(act + rows[:, None].to(tl.int64) * width + columns[None, :], value.to(act.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["seed", "threshold"])
def glu_backward(
    gu, u, b, dact, du, a, dgu, seed, threshold, keep_scale, tokens, width, u_stride,
    R: tl.constexpr, RP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, DROP: tl.constexpr, GELU: tl.constexpr,
):  # fmt: skip
    """Gradients of gate and up; dgu may be gu itself.

    dact: (T, I) without the adapter's part, which is du · a; du: (T, R), a: (I, R)
    """
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    row_mask, column_mask = rows < tokens, columns < width
    mask = row_mask[:, None] & column_mask[None, :]
    flat = rows[:, None].to(tl.int64) * width + columns[None, :]
    d = _low_rank(du, a, rows, columns, row_mask, column_mask, R, R, RP)
    if DROP:
        d = tl.where(_keep(flat, seed, threshold), d * keep_scale, 0.0)
    d += tl.load(dact + flat, mask=mask, other=0.0).to(tl.float32)
    at = rows[:, None].to(tl.int64) * (2 * width) + columns[None, :]
    gate = tl.load(gu + at, mask=mask, other=0.0).to(tl.float32)
    gate += _low_rank(u, b, rows, columns, row_mask, column_mask, u_stride, R, RP)
    up = tl.load(gu + at + width, mask=mask, other=0.0).to(tl.float32)
    up += _low_rank(u + R, b + width * R, rows, columns, row_mask, column_mask, u_stride, R, RP)
    sigmoid, slope = _gate(gate, GELU)
    dgate = d * up * sigmoid * (1.0 + gate * (1.0 - sigmoid) * slope)
    dup = d * gate * sigmoid
    tl.debug_barrier()  # everything is read before it is overwritten
    tl.store(dgu + at, dgate.to(dgu.dtype.element_ty), mask=mask)
    tl.store(dgu + at + width, dup.to(dgu.dtype.element_ty), mask=mask)


@triton.jit
def cross_entropy(logits, labels, loss, factor, vocabulary, BLOCK: tl.constexpr):
    """Loss of one row of logits, which are replaced by their gradient times `factor`."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    start_of_row = logits + row * vocabulary
    columns = tl.arange(0, BLOCK)
    largest = tl.full((BLOCK,), -float("inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, vocabulary, BLOCK):
        v = tl.load(start_of_row + start + columns, mask=start + columns < vocabulary, other=-float("inf")).to(
            tl.float32
        )
        new = tl.maximum(largest, v)
        shift = tl.where(new == -float("inf"), 0.0, new)
        total = total * tl.exp(largest - shift) + tl.exp(v - shift)
        largest = new
    peak = tl.max(largest)
    normaliser = peak + tl.log(tl.sum(total * tl.exp(largest - peak)))
    tl.store(loss + row, normaliser - tl.load(start_of_row + label).to(tl.float32))
    f = tl.load(factor)
    tl.debug_barrier()  # the label's logit is read before it is overwritten
    for start in range(0, vocabulary, BLOCK):
        mask = start + columns < vocabulary
        v = tl.load(start_of_row + start + columns, mask=mask, other=-float("inf")).to(tl.float32)
        gradient = (tl.exp(v - normaliser) - (start + columns == label).to(tl.float32)) * f
        tl.store(start_of_row + start + columns, gradient.to(logits.dtype.element_ty), mask=mask)


@triton.jit
def nf4_dequantise(
    packed, absmax, code, absmax_code, absmax_scale, offset, out, elements, NESTED: tl.constexpr, BLOCK: tl.constexpr
):
    """bitsandbytes' NF4 to the output's dtype: two weights a byte (high half first), a scale for 64 weights.

    NESTED: the scales are 8 bits themselves
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # bytes
    mask = i < elements // 2
    byte = tl.load(packed + i, mask=mask, other=0).to(tl.int32)
    block = i // 32
    if NESTED:
        level = tl.load(absmax + block, mask=mask, other=0).to(tl.int32)
        scale = tl.load(absmax_code + level) * tl.load(absmax_scale + block // 256, mask=mask, other=0.0) + tl.load(
            offset
        )
    else:
        scale = tl.load(absmax + block, mask=mask, other=0.0)
    high = (tl.load(code + (byte >> 4)) * scale).to(out.dtype.element_ty)
    low = (tl.load(code + (byte & 15)) * scale).to(out.dtype.element_ty)
    both = tl.interleave(high, low)
    j = tl.program_id(0).to(tl.int64) * (2 * BLOCK) + tl.arange(0, 2 * BLOCK)
    tl.store(out + j, both, mask=j < elements)
