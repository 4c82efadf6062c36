"""Rounding with propagation of the error, and the penalty by halves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitfrost.methods.quantize.halves import penalty_by_halves
from vitfrost.methods.quantize.quantizers import uniform_codes, uniform_values
from vitfrost.methods.quantize.rounding import Rounding
from vitfrost.methods.quantize.search import weight_parameters
from vitfrost.methods.repair.ridge import RidgeSums


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def losses(weight: torch.Tensor, inputs: torch.Tensor, bits: int) -> tuple[float, float]:
    """Squared error at the outputs with propagation, and with nearest levels."""
    scale, zero_point = weight_parameters(weight, bits)
    codes = Rounding(inputs.T @ inputs, bits).propagated(weight, scale, zero_point)
    assert bool(((codes >= 0) & (codes <= 2**bits - 1) & (codes == codes.round())).all())
    nearest = uniform_codes(weight, scale[:, None], zero_point[:, None], bits)
    made = [uniform_values(each, scale[:, None], zero_point[:, None]) - weight for each in (codes, nearest)]
    return tuple(float((inputs @ each.T).square().mean()) for each in made)  # type: ignore[return-value]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("width", [70, 12])
def test_correlated_inputs_lose_less(bits: int, width: int) -> None:
    inputs = drawn(500, 5, seed=1) @ drawn(5, width, seed=2) + 0.1 * drawn(500, width, seed=3)
    propagated, nearest = losses(drawn(8, width), inputs, bits)
    assert propagated < 0.6 * nearest


@given(st.integers(1, 9), st.integers(1, 150), st.sampled_from([2, 3, 4, 8]), st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_codes_and_scales_improved_in_turn_lose_no_more(outputs: int, width: int, bits: int, seed: int) -> None:
    weight, inputs = drawn(outputs, width, seed=seed), drawn(40, 3, seed=seed + 1) @ drawn(3, width, seed=seed + 2)
    scale, zero_point = weight_parameters(weight, bits)
    rounding = Rounding(inputs.T @ inputs, bits)
    codes, scales, zeros = rounding.best(weight, scale, zero_point)
    assert bool(((codes >= 0) & (codes <= 2**bits - 1) & (codes == codes.round())).all())
    assert bool((scales > 0).all())
    plain = uniform_values(rounding.propagated(weight, scale, zero_point), scale[:, None], zero_point[:, None])
    made = uniform_values(codes, scales[:, None], zeros[:, None])
    assert bool((rounding.error(weight, made) <= rounding.error(weight, plain) * (1 + 1e-5) + 1e-9).all())


def test_dead_inputs_and_no_inputs_at_all() -> None:
    inputs = drawn(50, 6)
    inputs[:, 2] = 0
    assert losses(drawn(4, 6, seed=1), inputs, 4)[0] >= 0
    assert losses(drawn(4, 6, seed=1), torch.zeros(5, 6), 4) == (0, 0)


def sums(inputs: torch.Tensor, residuals: torch.Tensor) -> RidgeSums:
    made = RidgeSums(inputs.shape[1], residuals.shape[1])
    made.add(inputs, residuals)
    return made


def test_little_noise_takes_a_small_penalty_and_noise_alone_an_infinite_one() -> None:
    inputs, weight = drawn(200, 10), drawn(10, 3, seed=1)
    clear = inputs @ weight + 0.01 * drawn(200, 3, seed=2)
    noise = drawn(200, 3, seed=4)
    assert penalty_by_halves(sums(inputs[:100], clear[:100]), sums(inputs[100:], clear[100:])) <= 0.01
    assert penalty_by_halves(sums(inputs[:100], noise[:100]), sums(inputs[100:], noise[100:])) >= 1


def test_the_penalty_is_that_of_solve() -> None:
    inputs, residuals = drawn(60, 8), drawn(60, 2, seed=1) + drawn(60, 8)[:, :2]
    first, second = sums(inputs[:30], residuals[:30]), sums(inputs[30:], residuals[30:])
    lost = {}
    for penalty in (0.1, 1.0, 10.0):
        lost[penalty] = 0.0
        for fitted, (x, y) in ((first, (inputs[30:], residuals[30:])), (second, (inputs[:30], residuals[:30]))):
            found = fitted.solve(penalty)
            lost[penalty] += float((y.double() - x.double() @ found.weight.T - found.bias).square().sum())
    assert penalty_by_halves(first, second, penalties=tuple(lost)) == min(lost, key=lost.__getitem__)


def test_an_output_that_counts_nothing_has_no_say_in_the_penalty() -> None:
    inputs, weight = drawn(200, 10), drawn(10, 3, seed=1)
    residuals = inputs @ weight + 0.01 * drawn(200, 3, seed=2)
    residuals[:, 2] = 1e4 * drawn(200, seed=4)  # noise
    halves = sums(inputs[:100], residuals[:100]), sums(inputs[100:], residuals[100:])
    assert penalty_by_halves(*halves) >= 1
    assert penalty_by_halves(*halves, torch.tensor([1.0, 1.0, 0.0])) <= 0.01
