"""Rotations: orthogonal, flat where there is a Hadamard matrix, and with the mean of the channels left alone."""

from __future__ import annotations

import math

import pytest
import torch

from vitfrost.methods.quantize.hadamard import hadamard, rotation, rotation_of_stream

WIDTHS = [1, 2, 3, 4, 10, 12, 16, 24, 32, 36, 64, 192]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("order", [1, 2, 4, 8, 12, 20, 24, 32, 48, 64, 192, 384, 768])
def test_hadamard_matrices(order: int) -> None:
    made = hadamard(order)
    assert torch.equal(made.T @ made, order * torch.eye(order, dtype=torch.float64))
    assert bool((made.abs() == 1).all() and (made[:, 0] == 1).all())


def test_orders_without_one() -> None:
    assert hadamard(3) is hadamard(10) is hadamard(36) is None


@pytest.mark.parametrize("width", WIDTHS)
def test_rotations_are_orthogonal_and_that_of_the_stream_keeps_the_mean(width: int) -> None:
    ones = torch.ones(width, dtype=torch.float64)
    for made in (rotation(width, generator()), rotation_of_stream(width, generator())):
        assert torch.allclose(made.T @ made, torch.eye(width, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(made @ ones, ones)
    assert torch.allclose(ones @ made, ones)


def test_one_channel_is_spread_over_all() -> None:
    assert torch.allclose(rotation(64, generator()).abs(), torch.full((64, 64), 1 / 8, dtype=torch.float64))
    assert rotation_of_stream(192, generator()).abs().max() < 0.4
    assert rotation_of_stream(192, generator()).square().sum(1).max() == pytest.approx(1)
    assert math.isclose(float(rotation_of_stream(192, generator()).abs().mean()), math.sqrt(2 / math.pi / 192), rel_tol=0.1)
