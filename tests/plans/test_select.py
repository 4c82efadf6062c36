"""Laws of the selection: exact count, nested in the ratio, never outside the eligible, ties in order, monotone invariance."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitfrost.plans.select import lowest, share, up_to_threshold


@st.composite
def entries(draw):
    """Scores, variance and mean with many ties, and which entries are eligible."""
    size = draw(st.integers(1, 60))
    small = st.lists(st.integers(0, 3), min_size=size, max_size=size)
    scores, variance, mean = (np.array(draw(small), dtype=np.float32) for _ in range(3))
    eligible = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    return scores, variance, mean, eligible


def by_sorting(scores, variance, mean, eligible, count):
    """The reference: sort all eligible positions by the whole key."""
    order = sorted(np.flatnonzero(eligible), key=lambda place: (scores[place], variance[place], mean[place], place))
    mask = np.zeros(scores.shape, dtype=bool)
    mask[order[:count]] = True
    return mask


@given(entries(), st.floats(0, 1))
def test_selection_equals_sorting_by_score_variance_mean_and_position(drawn, part):
    count = int(part * drawn[3].sum())
    np.testing.assert_array_equal(lowest(*drawn, count), by_sorting(*drawn, count))


@given(entries(), st.floats(0, 1))
def test_exactly_the_count_and_only_eligible_entries(drawn, part):
    eligible = drawn[3]
    count = int(part * eligible.sum())
    chosen = lowest(*drawn, count)
    assert chosen.sum() == count
    assert not (chosen & ~eligible).any()


@given(entries())
def test_selections_are_nested(drawn):
    chosen = [lowest(*drawn, count) for count in range(int(drawn[3].sum()) + 1)]
    for fewer, more in pairwise(chosen):
        assert (fewer <= more).all()


@given(entries(), st.floats(0, 1))
def test_a_monotone_rescaling_of_the_scores_changes_nothing(drawn, part):
    scores, variance, mean, eligible = drawn
    count = int(part * eligible.sum())
    rescaled = np.exp(3 * scores.astype(np.float64)) - 7
    np.testing.assert_array_equal(lowest(*drawn, count), lowest(rescaled, variance, mean, eligible, count))


@given(entries(), st.floats(0, 1))
def test_the_threshold_takes_all_ties_and_no_more(drawn, part):
    scores, _, _, eligible = drawn
    count = int(part * eligible.sum())
    chosen, tied = up_to_threshold(scores, eligible, count)
    ranked = lowest(*drawn, count)
    assert (ranked <= chosen).all()
    assert not (chosen & ~eligible).any()
    if count:
        threshold = scores[ranked].max()
        np.testing.assert_array_equal(chosen, eligible & (scores <= threshold))
        np.testing.assert_array_equal(tied, eligible & (scores == threshold))
    else:
        assert not chosen.any()
        assert not tied.any()


@pytest.mark.parametrize("count", [-1, 3])
def test_a_count_that_cannot_be_met_is_an_error(count):
    scores, eligible = np.zeros(4), np.array([True, True, False, False])
    with pytest.raises(ValueError, match="2 eligible"):
        lowest(scores, scores, scores, eligible, count)
    with pytest.raises(ValueError, match="2 eligible"):
        up_to_threshold(scores, eligible, count)


@pytest.mark.parametrize(
    ("ratio", "total", "count"), [(0.29, 100, 29), (0.2, 38809, 7761), (0.1, 10, 1), (1.0, 7, 7), (0.0, 7, 0), (1e-5, 10**6, 10)]
)
def test_the_share_is_the_floor_of_the_decimal_ratio(ratio, total, count):
    assert share(ratio, total) == count


def test_all_maps_of_deit_tiny_are_selected_in_little_time():
    """36 maps of 197 x 197 in one go, a third of them tied at zero as entropies are: linear work, under 2 s on any machine."""
    rng = np.random.default_rng(0)
    shape = (36, 197, 197)
    scores = np.maximum(rng.random(shape, dtype=np.float32) - 0.33, 0)
    variance, mean = rng.random(shape, dtype=np.float32), rng.random(shape, dtype=np.float32)
    eligible = np.ones(shape, dtype=bool)
    start = time.perf_counter()
    chosen = lowest(scores, variance, mean, eligible, scores.size // 5)
    assert time.perf_counter() - start < 2
    assert chosen.sum() == scores.size // 5
