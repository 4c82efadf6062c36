"""Parallel branches: the fixed identity, expanded weights, and starts that add up."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitfrost.errors import VitfrostError
from vitfrost.methods.low_rank.branches import ParallelLinear, mean_matrix

SIZES = st.integers(1, 17)


def test_an_identity_averages_groups_or_repeats_channels() -> None:
    assert mean_matrix(6, 2).tolist() == [pytest.approx([1 / 3] * 3 + [0] * 3), pytest.approx([0] * 3 + [1 / 3] * 3)]
    assert mean_matrix(2, 4).tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    assert torch.equal(mean_matrix(3, 3), torch.eye(3))


@given(SIZES, SIZES)
def test_an_identity_keeps_constants(inputs: int, outputs: int) -> None:
    average = mean_matrix(inputs, outputs)
    assert average.shape == (outputs, inputs)
    assert torch.allclose(average.sum(1), torch.ones(outputs))


@given(SIZES, SIZES, st.integers(1, 4), st.sampled_from(["batch", "none"]), st.booleans(), st.integers(0, 99))
def test_whatever_the_noise_the_branches_add_up_to_the_layer(inputs, outputs, count, norm, expand, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    bias = torch.randn(outputs, generator=generator, dtype=torch.float64)
    layer = ParallelLinear(inputs, outputs, count, norm, expand=expand, identity=norm == "batch").double()
    layer.initialize(weight, bias, 0.3, generator)
    merged, merged_bias = layer.merged()
    assert torch.allclose(merged, weight, atol=1e-12)
    assert torch.allclose(merged_bias, bias, atol=1e-12)
    if count > 1:
        assert not torch.allclose(layer.parts[0].matrix(), layer.parts[1].matrix(), atol=1e-6)


@pytest.mark.parametrize("branches", [0, 5])
def test_numbers_of_branches_that_are_refused(branches: int) -> None:
    with pytest.raises(VitfrostError, match=f"{branches} branches of a linear layer are not possible; give 1 to 4"):
        ParallelLinear(4, 3, branches, "batch")
