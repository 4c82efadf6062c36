"""Factorization is the best product of its rank for the inputs it was given, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitfrost.methods.low_rank.factorize import factorize

OUTPUTS, INPUTS, SAMPLES = 6, 15, 40


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hidden(seed: int, rank: int = INPUTS, shift: float = 1.0) -> Tensor:
    """Correlated inputs [samples, inputs] of unequal scale around a mean; they span `rank` directions."""
    spread = torch.logspace(0, -2, rank, dtype=torch.float64)
    return (drawn(seed, SAMPLES, rank) * spread) @ drawn(seed + 1, rank, INPUTS) + shift * drawn(seed + 2, 1, rank) @ drawn(
        seed + 1, rank, INPUTS
    )


def loss(difference: Tensor, data: Tensor) -> float:
    """Root of the mean squared change of the output."""
    return float((data @ difference.T).square().sum(1).mean().sqrt())


@given(st.integers(0, 999), st.integers(1, OUTPUTS - 1), st.sampled_from([3, 8, INPUTS]))
def test_no_other_product_is_better_on_the_data(seed: int, rank: int, data_rank: int) -> None:
    weight, data = drawn(seed, OUTPUTS, INPUTS), hidden(seed + 1, data_rank)
    moments = data.T @ data / SAMPLES
    factors = factorize(weight, None, rank, moments)
    ours = loss(weight - factors.up @ factors.down, data)
    scale = loss(weight, data)
    plain = factorize(weight, None, rank)
    assert ours <= loss(weight - plain.up @ plain.down, data) + 1e-7 * scale
    for step in (1e-3, 1e-1, 1.0):
        up, down = factors.up + step * drawn(seed + 3, OUTPUTS, rank), factors.down + step * drawn(seed + 4, rank, INPUTS)
        assert ours <= loss(weight - up @ down, data) + 1e-7 * scale
    assert ours == pytest.approx(factors.error, abs=1e-7 * scale)
    assert factors.relative_error == pytest.approx(ours / scale, abs=1e-7)
    tail = torch.linalg.svdvals(data @ weight.T / SAMPLES**0.5)[rank:].norm()
    assert ours == pytest.approx(float(tail), abs=1e-7 * scale)


@given(st.integers(0, 999), st.integers(1, OUTPUTS))
def test_without_data_it_is_the_truncated_svd_in_equal_halves(seed: int, rank: int) -> None:
    weight = drawn(seed, OUTPUTS, INPUTS)
    factors = factorize(weight, None, rank)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    assert torch.allclose(factors.up @ factors.down, left[:, :rank] * values[:rank] @ right[:rank], atol=1e-12)
    assert torch.allclose(factors.up.T @ factors.up, values[:rank].diag(), atol=1e-12)
    assert torch.allclose(factors.down @ factors.down.T, values[:rank].diag(), atol=1e-12)
    assert factors.error == pytest.approx(float(values[rank:].norm()), abs=1e-12)


@given(st.integers(0, 999), st.integers(0, 8))
def test_full_rank_is_exact_even_where_the_data_are_degenerate(seed: int, data_rank: int) -> None:
    weight, bias, data = drawn(seed, OUTPUTS, INPUTS), drawn(seed + 1, OUTPUTS), hidden(seed + 2, max(data_rank, 1)) * (data_rank > 0)
    factors = factorize(weight, bias, OUTPUTS, data.T @ data / SAMPLES, data.mean(0))
    assert torch.allclose(factors.up @ factors.down, weight, atol=1e-11)
    assert torch.allclose(factors.bias, bias, atol=1e-11)
    assert factors.error == 0


@given(st.integers(0, 999), st.integers(1, OUTPUTS - 1))
def test_the_bias_takes_over_the_mean(seed: int, rank: int) -> None:
    weight, bias, data = drawn(seed, OUTPUTS, INPUTS), drawn(seed + 1, OUTPUTS), hidden(seed + 2, shift=3.0)
    moments, mean = data.T @ data / SAMPLES, data.mean(0)
    original = data @ weight.T + bias

    def change(**given: Tensor) -> Tensor:
        factors = factorize(weight, bias, rank, **given)
        return data @ (factors.up @ factors.down).T + factors.bias - original

    corrected = change(second_moment=moments, mean=mean)
    assert torch.allclose(corrected.mean(0), torch.zeros(OUTPUTS, dtype=torch.float64), atol=1e-10)
    assert corrected.norm() <= change(second_moment=moments).norm() * (1 + 1e-9)
    assert corrected.norm() <= change(mean=mean).norm() * (1 + 1e-9)
    factors = factorize(weight, bias, rank, moments, mean)
    assert factors.error == pytest.approx(float(corrected.square().sum(1).mean().sqrt()), rel=1e-6)


def test_ranks_that_do_not_exist() -> None:
    for rank in (0, OUTPUTS + 1):
        with pytest.raises(ValueError, match=f"no factors of rank {rank}"):
            factorize(drawn(1, OUTPUTS, INPUTS), None, rank)


def test_the_factors_of_a_large_weight_meet_their_error() -> None:
    weight, data = drawn(1, 96, 384), drawn(2, 500, 384) * torch.logspace(0, -3, 384) + drawn(3, 384)
    moments, mean = data.T @ data / len(data), data.mean(0)
    factors = factorize(weight.float(), None, 48, moments, mean)
    change = data @ (factors.up @ factors.down).T + factors.bias - data @ weight.float().double().T
    assert factors.error == pytest.approx(float(change.square().sum(1).mean().sqrt()), rel=1e-6)
    assert torch.allclose(factors.up.norm(dim=0), factors.down.norm(dim=1), rtol=1e-9)
