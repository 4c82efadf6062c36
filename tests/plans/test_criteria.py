"""The criteria against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from vitfrost.plans.criteria import CRITERIA

SHAPE = (2, 3, 5, 5)


@pytest.mark.parametrize("name", CRITERIA)
def test_scores_have_the_shape_of_the_maps_and_are_repeatable(name, draw_site):
    site = draw_site(SHAPE)
    scores = CRITERIA[name](site, 4, 1)
    assert scores.shape == SHAPE
    np.testing.assert_array_equal(scores, CRITERIA[name](site, 4, 1))


@pytest.mark.parametrize("name", ["entropy", "mean", "variance"])
def test_moments_are_their_own_scores(name, draw_site):
    site = draw_site(SHAPE)
    np.testing.assert_array_equal(CRITERIA[name](site, 0, 0), getattr(site, name))


def test_output_error_equals_the_expectation_for_independent_maps_and_values(draw_site):
    """On the full product of map samples and value samples, E[(A - A^mu)^2 ||W_O v||^2] is exactly the product of means."""
    rng = np.random.default_rng(0)
    maps, norms = rng.random((7, *SHAPE)), rng.random((4, 2, 3, 5))
    deviation = (maps - maps.mean(0)) ** 2
    expected = np.mean([d * n[:, :, None, :] for d in deviation for n in norms], axis=0)
    site = draw_site(SHAPE)
    site.variance, site.value_norm = deviation.mean(0), norms.mean(0)
    np.testing.assert_allclose(CRITERIA["output-error"](site, 0, 0), expected, rtol=1e-12)


def test_a_heads_random_scores_depend_on_seed_site_and_head_but_not_on_the_other_heads(draw_site):
    random = CRITERIA["random"]
    three, two = random(draw_site(SHAPE), 7, 2), random(draw_site((2, 2, 5, 5)), 7, 2)
    np.testing.assert_array_equal(three[:, :2], two)
    assert not np.array_equal(three[:, 0], three[:, 1])
    assert not np.array_equal(three, random(draw_site(SHAPE), 8, 2))
    assert not np.array_equal(three, random(draw_site(SHAPE), 7, 3))
