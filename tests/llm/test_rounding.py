"""A sum in 16 bits: an update that is finer than their steps is not lost, and every other one is rounded as usual."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.slow

STEPS = {"BF16": 2.0**-7, "F16": 2.0**-10}  # of a value between 1 and 2
TORCH = {"BF16": "bfloat16", "F16": "float16"}


def base_and_direction(dtype: str):
    """40,000 weights of either sign on the type's grid, and a sign for each."""
    import torch

    draw = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (2, 200, 200), generator=draw) * 2.0 - 1
    sizes = torch.empty(200, 200).uniform_(1.1, 1.9, generator=draw)
    return (signs[0] * sizes).to(getattr(torch, TORCH[dtype])), signs[1]


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@pytest.mark.parametrize("steps", [0.02, 0.3, 0.45])
def test_a_fine_update_is_there_on_average(dtype: str, steps: float) -> None:
    import torch

    from noesis.llm.weights.rounding import rounded_sum

    base, direction = base_and_direction(dtype)
    update = direction * steps * STEPS[dtype]
    total, found = base.float() + update, rounded_sum(base, update, dtype, "a")
    assert torch.equal(total.to(found.dtype), base)  # to the nearest: nothing of it would be left
    moved = found.float() - base.float()
    assert 0.9 < float((moved * update).sum() / update.square().sum()) < 1.1
    assert set((moved * direction / STEPS[dtype]).unique().tolist()) == {0.0, 1.0}  # itself, or its neighbour
    assert torch.equal(found, rounded_sum(base, update, dtype, "a"))
    assert not torch.equal(found, rounded_sum(base, update, dtype, "b"))


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_a_coarse_update_is_rounded_to_the_nearest(dtype: str) -> None:
    import torch

    from noesis.llm.weights.rounding import rounded_sum

    base, direction = base_and_direction(dtype)
    update = direction * 3.3 * STEPS[dtype]
    assert torch.equal(rounded_sum(base, update, dtype, "a"), (base.float() + update).to(base.dtype))


def test_zero_and_what_is_not_finite_stay_and_float32_is_summed_as_it_is() -> None:
    import torch

    from noesis.llm.weights.rounding import rounded_sum

    base = torch.tensor([1.0, 1.0, 1.0, 0.0, -0.0, 3.0e38]).to(torch.bfloat16)
    update = torch.tensor([1e-4, -1e-4, 0.0, 0.0, 1e-30, 3.0e38])
    found = rounded_sum(base, update, "BF16", "a").float()
    assert found[2:4].tolist() == [1.0, 0.0] and found[4] == pytest.approx(1e-30, rel=0.01) and found[5].isinf()
    whole = torch.ones(3)
    assert torch.equal(rounded_sum(whole, update[:3], "F32", "a"), whole + update[:3])
