"""FlashAttention 4 beside torch's own operators (FlashAttention 2), on one packed row of 8,192 tokens.

    python benchmarks/gpu/attention.py [SHAPE ...]

For each shape: milliseconds of forward and backward, seconds of the first call (the kernels are compiled then), and the
largest error of output and gradients against float32, as a share of the largest value.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from random_llama import lengths, report

SHAPES: dict[str, tuple[int, int, int, int | None, float | None]] = {  # heads, key heads, width, window, cap
    "llama-3.1-8b": (32, 8, 128, None, None),
    "qwen2.5-1.5b": (12, 2, 128, None, None),
    "smollm2-135m": (9, 3, 64, None, None),
    "phi-3-mini": (32, 32, 96, None, None),
    "gemma-3-4b": (8, 4, 256, 1024, None),
    "gemma-2-2b": (8, 4, 256, 4096, 50.0),
    "windowed": (32, 8, 128, 512, None),
    "capped": (32, 8, 128, None, 50.0),
}


def measure(name: str) -> None:
    import torch

    from noesis.training.engine import attention
    from noesis.training.engine.attention import Segments
    from noesis.training.engine.blockwise import Scores

    heads, keys, width, window, cap = SHAPES[name]
    row: list[int] = []
    for length in lengths():
        if sum(row) + length > 8192:
            break
        row.append(length)
    scores, segments = Scores(width**-0.5, window, cap), Segments.of(row, "cuda")
    torch.manual_seed(0)
    q, dout = (torch.randn(sum(row), heads, width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    k, v = (torch.randn(sum(row), keys, width, device="cuda", dtype=torch.bfloat16) for _ in range(2))

    def once(backend: Any, cast: Any = lambda x: x, scores: Scores = scores) -> tuple[Any, ...]:
        inputs = cast(q), cast(k), cast(v)
        saved = attention.forward(*inputs, segments, scores, backend)
        return saved.out, *attention.backward(cast(dout), *inputs, saved, segments, scores, backend)

    # `blockwise` computes capped scores only: this cap changes nothing
    exact = once("blockwise", lambda x: x.float(), replace(scores, cap=cap or 1e5))
    figures: dict[str, Any] = {}
    for backend in ("flash" if cap is None else "blockwise", "flash4"):
        began = time.perf_counter()
        try:
            found = once(backend)
        except Exception as error:  # what a kernel refuses is a result here
            figures[backend] = f"{type(error).__name__}: {str(error)[:200]}"
            continue
        torch.cuda.synchronize()
        first = time.perf_counter() - began
        saved = attention.forward(q, k, v, segments, scores, backend)
        times = [
            _milliseconds(partial(attention.forward, q, k, v, segments, scores, backend)),
            _milliseconds(partial(attention.backward, dout, q, k, v, saved, segments, scores, backend)),
        ]
        errors = [
            round(float((a.float() - b).abs().max() / b.abs().max()), 5) for a, b in zip(found, exact, strict=True)
        ]
        figures[backend] = {
            "forward_ms": times[0],
            "backward_ms": times[1],
            "first_s": round(first, 2),
            "errors": errors,
        }
    report(mode=f"attention {name}", tokens=sum(row), **figures)


def _milliseconds(work: Callable[[], Any]) -> float:
    import torch

    for _ in range(3):
        work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(20):
        work()
    torch.cuda.synchronize()
    return round((time.perf_counter() - began) / 20 * 1000, 3)


if __name__ == "__main__":
    for shape in sys.argv[1:] or SHAPES:
        measure(shape)
