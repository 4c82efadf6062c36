"""Ridge regression from sums: what it must equal, and what must not change it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vitfrost.methods.repair.ridge import RidgeSums


def rows(count: int = 200, inputs: int = 6, outputs: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(count, inputs, generator=generator, dtype=torch.float64) + 3
    return a, torch.randn(count, outputs, generator=generator, dtype=torch.float64)


def summed(a: Tensor, r: Tensor, weights: Tensor | None = None) -> RidgeSums:
    sums = RidgeSums(a.shape[1], r.shape[1])
    sums.add(a, r, weights)
    return sums


@pytest.mark.parametrize("weighted", [False, True])
def test_without_a_penalty_it_is_least_squares(weighted: bool) -> None:
    a, r = rows()
    weights = torch.linspace(0, 2, len(a), dtype=torch.float64) if weighted else None
    root = (torch.ones(len(a), dtype=torch.float64) if weights is None else weights).sqrt()[:, None]
    design = torch.cat([a, torch.ones(len(a), 1, dtype=torch.float64)], 1)
    expected = np.linalg.lstsq((root * design).numpy(), (root * r).numpy(), rcond=None)[0].T
    found = summed(a, r, weights).solve(0.0)
    assert np.abs(found.weight.numpy() - expected[:, :-1]).max() < 1e-10
    assert np.abs(found.bias.numpy() - expected[:, -1]).max() < 1e-10
    left = (root * (r - design @ torch.from_numpy(expected).T)).square().sum() / root.square().sum()
    assert abs(found.after - float(left)) < 1e-10
    assert abs(found.before - float((root * r).square().sum() / root.square().sum())) < 1e-10


def test_an_exact_map_is_recovered() -> None:
    a, _ = rows()
    weight, bias = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    found = summed(a, a @ weight.T + bias).solve(0.0)
    assert torch.allclose(found.weight, weight, atol=1e-10)
    assert torch.allclose(found.bias, bias, atol=1e-10)
    assert found.after < 1e-12 < found.before


def test_sums_are_exact_where_layers_are_computed_in_fewer_bits() -> None:
    a, r = (part.float() for part in rows())
    with torch.autocast("cpu", torch.bfloat16):
        found = summed(a, r)
    assert torch.equal(found.products, summed(a, r).products)
    assert torch.equal(found.crossed, summed(a, r).crossed)


@pytest.mark.parametrize("penalty", [1e-3, 0.5, 20.0])
def test_the_optimum_of_the_penalized_problem(penalty: float) -> None:
    """The gradient of E |D a + d - r|^2 + lambda |D|^2 is zero there."""
    a, r = rows()
    found = summed(a, r).solve(penalty)
    ridge = penalty * float(a.var(0, correction=0).mean())
    weight, bias = found.weight.clone().requires_grad_(), found.bias.clone().requires_grad_()
    loss = (a @ weight.T + bias - r).square().sum(1).mean() + ridge * weight.square().sum()
    gradients = torch.autograd.grad(loss, (weight, bias))
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-10
    assert abs(found.after - float((a @ found.weight.T + found.bias - r).square().sum(1).mean())) < 1e-10


def test_a_huge_penalty_leaves_the_weights_and_an_infinite_one_moves_the_bias_alone() -> None:
    a, r = rows()
    assert float(summed(a, r).solve(1e12).weight.abs().max()) < 1e-10
    bias_only = summed(a, r).solve(float("inf"))
    assert not bias_only.weight.any()
    assert torch.allclose(bias_only.bias, r.mean(0))
    assert bias_only.after < bias_only.before


def test_parts_merge_to_the_whole() -> None:
    a, r = rows(20_000)
    whole, merged = summed(a, r), RidgeSums(6, 4)
    for part_a, part_r in zip(a.split(7_001), r.split(7_001), strict=True):
        merged.merge(summed(part_a, part_r))
    merged.merge(RidgeSums(6, 4))  # of nothing
    for name in ("input_mean", "residual_mean", "products", "crossed", "energy"):
        assert torch.allclose(getattr(merged, name), getattr(whole, name), rtol=1e-11, atol=1e-9)
    assert merged.weight == whole.weight == len(a)


def test_a_row_of_weight_two_is_a_row_that_comes_twice() -> None:
    a, r = rows(30)
    weights = torch.ones(30, dtype=torch.float64)
    weights[:5] = 2
    one, other = summed(a, r, weights).solve(0.1), summed(torch.cat([a, a[:5]]), torch.cat([r, r[:5]])).solve(0.1)
    assert torch.allclose(one.weight, other.weight, atol=1e-12)
    assert torch.allclose(one.bias, other.bias, atol=1e-12)


def test_a_large_mean_in_float32_does_not_drown_the_rest() -> None:
    a, _ = rows(5_000)
    weight = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    shifted = (a + 1000).float()
    found = summed(shifted, (shifted.double() @ weight.T).float()).solve(0.0)
    assert torch.allclose(found.weight, weight, atol=1e-2)


def test_fewer_rows_than_inputs_and_what_is_refused() -> None:
    a, r = rows(4)
    found = summed(a, r).solve(0.0)
    assert torch.isfinite(found.weight).all()
    assert found.after < 1e-12
    with pytest.raises(ValueError, match="negative"):
        summed(a, r).solve(-1.0)
    with pytest.raises(ValueError, match="no rows"):
        RidgeSums(6, 4).solve(1.0)
