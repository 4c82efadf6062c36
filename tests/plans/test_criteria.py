"""The criteria against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from vitfrost.configs import FreezeEntries
from vitfrost.errors import VitfrostError
from vitfrost.plans.choose import plan
from vitfrost.plans.criteria import CRITERIA
from vitfrost.statistics.sensitivity import Sensitivity

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


def test_largest_entropy_is_entropy_turned_round(draw_site):
    site = draw_site(SHAPE)
    np.testing.assert_array_equal(CRITERIA["largest-entropy"](site, 0, 0), -CRITERIA["entropy"](site, 0, 0))


def test_joint_errors_equal_the_expectations_about_the_mean(draw_site):
    rng = np.random.default_rng(0)
    maps, gradients, norms = rng.random((7, *SHAPE)), rng.normal(size=(7, *SHAPE)), rng.random((7, 2, 3, 1, 5))
    norms *= maps.mean(3, keepdims=True)  # values that go with the maps, as the other estimate leaves out
    squares = gradients**2
    site = draw_site(SHAPE)
    site.mean, site.variance, site.value_norm = maps.mean(0), maps.var(0), norms.mean(0)[:, :, 0]
    site.sensitivity = Sensitivity(
        7, squares.sum(0), (squares * maps).sum(0), (squares * maps**2).sum(0),
        norms.sum(0)[:, :, 0], (norms * maps).sum(0), (norms * maps**2).sum(0),
    )  # fmt: skip
    deviation = (maps - maps.mean(0)) ** 2
    np.testing.assert_allclose(CRITERIA["fisher"](site, 0, 0), (squares * deviation).mean(0), rtol=1e-9)
    np.testing.assert_allclose(CRITERIA["output-error-joint"](site, 0, 0), (norms * deviation).mean(0), rtol=1e-9)
    assert not np.allclose(CRITERIA["output-error"](site, 0, 0), (norms * deviation).mean(0), rtol=0.01)


@pytest.mark.parametrize("name", ["fisher", "output-error-joint"])
def test_criteria_that_need_sensitivity_say_so(name, draw_record):
    record = draw_record([SHAPE])
    plan(record, FreezeEntries(by=name))
    record.sites["blocks.0.attn"].sensitivity = None
    with pytest.raises(VitfrostError, match=rf"criterion {name} needs statistics taken with Calibrate\(sensitivity=True\)"):
        plan(record, FreezeEntries(by=name))


def test_entries_that_tie_at_zero_fisher_go_by_variance(draw_record):
    """As those of a last layer of which only the class token's row is read."""
    record = draw_record([SHAPE])
    site = record.sites["blocks.0.attn"]
    for sums in (site.sensitivity.gradient_zeroth, site.sensitivity.gradient_first, site.sensitivity.gradient_second):
        sums[:] = 0
    assert plan(record, FreezeEntries(0.4, by="fisher")).layers == plan(record, FreezeEntries(0.4, by="variance")).layers


def test_a_heads_random_scores_depend_on_seed_site_and_head_but_not_on_the_other_heads(draw_site):
    random = CRITERIA["random"]
    three, two = random(draw_site(SHAPE), 7, 2), random(draw_site((2, 2, 5, 5)), 7, 2)
    np.testing.assert_array_equal(three[:, :2], two)
    assert not np.array_equal(three[:, 0], three[:, 1])
    assert not np.array_equal(three, random(draw_site(SHAPE), 8, 2))
    assert not np.array_equal(three, random(draw_site(SHAPE), 7, 3))
