"""Streaming moments are those of all activations at once, however they come."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitfrost.methods.low_rank import moments
from vitfrost.methods.low_rank.moments import InputMoments


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(1, 7), st.booleans(), st.integers(1, 6), st.integers(0, 99))
def test_any_batches_give_the_moments_of_all_tokens(counts, channels, channels_first, chunk, seed) -> None:
    batches = [2 + drawn(seed + index, count, 2, 3, channels) for index, count in enumerate(counts)]
    seen = InputMoments(channels, channels_first)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "CHUNK", chunk)
        for batch in batches:
            seen.add(batch.movedim(-1, 1) if channels_first else batch)
    rows = torch.cat(batches).reshape(-1, channels)
    assert seen.count == len(rows)
    if not len(rows):
        return
    assert torch.allclose(seen.second_moment, rows.T @ rows / len(rows), rtol=1e-10, atol=1e-10)
    assert torch.allclose(seen.mean, rows.mean(0), rtol=1e-10, atol=1e-10)
    assert torch.equal(seen.second_moment, seen.second_moment.T)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_large_mean_does_not_drown_the_covariance(autocast: bool) -> None:
    data = (drawn(1, 20000, 5) * torch.logspace(0, -3, 5) + 1000).float()
    seen = InputMoments(5)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for batch in data.split(7000):
            seen.add(batch)
    covariance = seen.second_moment - torch.outer(seen.mean, seen.mean)
    expected = torch.cov(data.double().T, correction=0)
    assert torch.allclose(covariance.diag(), expected.diag(), rtol=1e-4, atol=1e-9)
    assert seen.second_moment.dtype == seen.mean.dtype == torch.float64


def test_low_precision_activations_are_multiplied_in_float32() -> None:
    data = drawn(1, 3000, 4).bfloat16()
    seen = InputMoments(4)
    seen.add(data)
    assert torch.allclose(seen.second_moment, data.double().T @ data.double() / 3000, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    seen = InputMoments(3)
    with pytest.raises(ValueError, match="no activations were added"):
        _ = seen.second_moment
    with pytest.raises(ValueError, match="no activations were added"):
        _ = seen.mean
    with pytest.raises(ValueError, match="activations of 4 channels do not fit moments of 3"):
        seen.add(torch.zeros(2, 4))
