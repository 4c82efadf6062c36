"""Ranges by the error at the outputs."""

from __future__ import annotations

import torch

from vitfrost.methods.quantize.quantizers import fake_log, fake_uniform
from vitfrost.methods.quantize.search import input_range, integer_parameters, search_range, search_step, weight_parameters


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_range_is_found_per_group_and_not_beyond_the_whole_one() -> None:
    values = drawn(3, 500) * torch.tensor([[1.0], [5.0], [0.1]])
    values[0, 0] = 40.0

    def error(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        scale, zero_point = integer_parameters(low, high, 4)
        return (fake_uniform(values, scale[:, None], zero_point[:, None], 4) - values).abs().mean(1)

    low, high = search_range(values.amin(1), values.amax(1), error)
    assert bool((error(low, high) <= error(values.amin(1), values.amax(1))).all())
    assert float(high[0]) < 20
    assert bool((low >= values.amin(1)).all() and (high <= values.amax(1)).all())


def test_zero_points_are_levels() -> None:
    for low, high in ((0.5, 2.0), (-3.0, -1.0), (-1.0, 7.0), (0.0, 0.0)):
        scale, zero_point = integer_parameters(torch.tensor(low), torch.tensor(high), 4)
        assert float(zero_point) == round(float(zero_point))
        assert 0 <= float(zero_point) <= 15
        assert float(scale) > 0


def test_the_error_at_the_outputs_decides() -> None:
    """A huge channel that no output reads does not widen the range."""
    rows = drawn(400, 4)
    rows[:, 3] *= 100
    weight = drawn(6, 4, seed=1)
    weight[:, 3] = 0
    _low, high = input_range(rows, weight, 4)
    assert float(high) < 10 < float(rows.max())
    tall = input_range(rows, weight[:2], 4)  # fewer outputs than inputs go another way
    assert float(tall[1]) < 10


def test_inputs_that_never_vary() -> None:
    for value in (0.0, 2.5, -1.0):
        low, high = input_range(torch.full((10, 3), value), torch.ones(2, 3), 4)
        scale, zero_point = integer_parameters(low, high, 4)
        assert torch.allclose(fake_uniform(torch.full((1,), value), scale, zero_point, 4), torch.full((1,), value), atol=0.05)


def test_weights_dead_and_huge() -> None:
    weight = drawn(4, 32)
    weight[0], weight[1, 5] = 0, 1e6
    scale, zero_point = weight_parameters(weight, 4)
    assert bool(scale.isfinite().all() and (scale > 0).all())
    lost = (fake_uniform(weight, scale[:, None], zero_point[:, None], 4) - weight).square().sum(1)
    assert float(lost[0]) == 0
    assert float(lost[2]) < 0.2 * float(weight[2].square().sum())


def test_a_step_for_each_head() -> None:
    maps = torch.softmax(drawn(2, 3, 8, 8) * torch.tensor([1.0, 4.0, 0.0]).view(1, 3, 1, 1), -1)

    def error(step: torch.Tensor) -> torch.Tensor:
        return (fake_log(maps, step, 4, "strict") - maps).square().mean(dim=(0, 2, 3)).view(-1, 1, 1)

    step, lost = search_step(error, 3)
    assert torch.equal(lost, error(step))
    assert step.shape == (3, 1, 1)
    assert float(step[1]) > float(step[0])
    assert bool((error(step) <= error(torch.ones(3, 1, 1))).all())
    for head in range(3):
        one = fake_log(maps[:, head], step[head, 0, 0], 4, "strict")
        assert torch.allclose(fake_log(maps, step, 4, "strict")[:, head], one)
        assert len(one.unique()) <= 16
