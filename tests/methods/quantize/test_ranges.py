"""Quantiles and the range search against torch.quantile and an exhaustive search."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitfrost.methods.quantize.quantizers import fake_log, fake_uniform, uniform_parameters
from vitfrost.methods.quantize.ranges import PERCENTILES, log_step, tail_quantiles, uniform_range


@given(st.integers(0, 9999), st.integers(1, 5), st.integers(1, 4000))
def test_tail_quantiles_equal_numpy(seed: int, groups: int, count: int) -> None:
    x = torch.randn(groups, count, generator=torch.Generator().manual_seed(seed))
    low, high = tail_quantiles(x)
    reference = x.double().numpy()
    for index, p in enumerate(PERCENTILES):
        assert np.allclose(low[index], np.quantile(reference, 1 - p, axis=1), atol=1e-5)
        assert np.allclose(high[index], np.quantile(reference, p, axis=1), atol=1e-5)


@given(st.integers(0, 9999), st.integers(2, 8))
def test_the_range_has_the_smallest_error_of_the_candidates(seed: int, bits: int) -> None:
    x = torch.randn(3, 3000, generator=torch.Generator().manual_seed(seed)) ** 3
    low, high = uniform_range(x, bits)
    lows, highs = tail_quantiles(x)
    for group in range(3):

        def error(lo: torch.Tensor, hi: torch.Tensor, row: torch.Tensor = x[group]) -> float:
            return float((fake_uniform(row, *uniform_parameters(lo, hi, bits), bits) - row).square().mean())

        best = min(error(lo, hi) for lo, hi in zip(lows[:, group], highs[:, group], strict=True))
        assert abs(error(low[group], high[group]) - best) <= 1e-6 * (best + 1e-12)


def test_groups_are_independent() -> None:
    x = torch.randn(4, 500)
    low, high = uniform_range(x, 4)
    for group in range(4):
        alone = uniform_range(x[group : group + 1], 4)
        assert torch.equal(low[group], alone[0][0])
        assert torch.equal(high[group], alone[1][0])


def test_log_step_is_the_best_candidate_and_lives_with_all_zero_maps() -> None:
    maps = torch.softmax(4 * torch.randn(2, 3, 40, 40), dim=-1)
    step = log_step(maps, 4, "published")
    candidates = tail_quantiles(maps.reshape(1, -1))[1][:, 0]
    errors = [float((fake_log(maps, d, 4, "published") - maps).square().mean()) for d in candidates]
    assert float(step) == float(candidates[int(np.argmin(errors))])
    assert float(log_step(torch.zeros(2, 2), 4, "published")) == 1.0
