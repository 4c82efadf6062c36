"""The distance of outputs: its values, and the factor of its curvature against second derivatives."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from vitfrost.methods.output_distance import curvature_factor, distances
from vitfrost.outputs import OutputKind, distance_text


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_of_classes_it_is_the_divergence() -> None:
    one, two = drawn(5, 7), drawn(5, 7, seed=1)
    wanted = torch.nn.functional.kl_div(two.log_softmax(1), one.log_softmax(1), log_target=True, reduction="none").sum(1)
    assert torch.allclose(distances("classes", one, two), wanted)


def test_of_features_it_is_relative_and_twice_the_cosine_distance_of_equal_lengths() -> None:
    one, two = drawn(5, 7), drawn(5, 7, seed=1)
    assert torch.allclose(distances("embedding", 3 * one, 3 * two), distances("embedding", one, two))
    unit, other = (torch.nn.functional.normalize(each, dim=1) for each in (one, two))
    assert torch.allclose(distances("embedding", unit, other), 2 - 2 * (unit * other).sum(1))
    assert distances("tokens", one.view(5, 7, 1), one.view(5, 7, 1)).tolist() == [0.0] * 5
    assert torch.isfinite(distances("embedding", torch.zeros(1, 4), torch.ones(1, 4))).all()


@pytest.mark.parametrize(("kind", "shape"), [("classes", (5,)), ("embedding", (5,)), ("tokens", (3, 2))])
def test_the_factor_of_the_curvature_has_the_second_derivatives_as_its_mean_square(kind: OutputKind, shape: tuple[int, ...]) -> None:
    outputs = drawn(1, *shape)
    count = outputs.numel()
    signs = torch.tensor(list(product((-1.0, 1.0), repeat=count)), dtype=torch.float64)
    factors = torch.cat([curvature_factor(kind, outputs, each.view(1, *shape)).view(1, -1) for each in signs])
    hessian = torch.autograd.functional.hessian(lambda changed: distances(kind, outputs, changed).sum(), outputs).view(count, count)
    assert torch.allclose(factors.T @ factors / len(signs), hessian, atol=1e-12)


def test_the_text_has_the_unit_of_the_kind() -> None:
    assert distance_text("classes", 0.00213) == "KL 0.00213 nats"
    assert distance_text("tokens", 0.5, "+.3g") == "relative error +0.5"
