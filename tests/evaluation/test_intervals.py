"""Laws of the intervals, and agreement with scipy's reference implementations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import special, stats

from vitfrost.errors import VitfrostError
from vitfrost.evaluation.intervals import bootstrap_mean, divergences, mean, paired_difference, share

outcome_pairs = st.integers(1, 200).flatmap(lambda n: st.tuples(arrays(bool, n), arrays(bool, n)))
logits = st.tuples(st.integers(1, 20), st.integers(1, 12)).flatmap(
    lambda shape: st.tuples(*[arrays(np.float32, shape, elements=st.floats(-30, 30, width=32))] * 2)
)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_share_is_wilsons_interval(case: tuple[int, int]) -> None:
    right, images = case
    estimate = share(right, images)
    expected = stats.binomtest(right, images).proportion_ci(0.95, method="wilson")
    assert estimate.interval == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-9)
    assert 0 <= estimate.interval[0] <= estimate.value <= estimate.interval[1] <= 100


@given(st.integers(0, 50), st.integers(1, 50))
def test_share_mirrors_and_shrinks(right: int, wrong: int) -> None:
    images = right + wrong
    low, high = share(right, images).interval
    mirrored = share(wrong, images).interval
    assert (100 - high, 100 - low) == pytest.approx(mirrored)
    four_times = share(4 * right, 4 * images).interval
    assert four_times[1] - four_times[0] < high - low


@pytest.mark.parametrize(("right", "images"), [(1, 0), (3, 2), (-1, 4)])
def test_share_refuses_what_is_no_share(right: int, images: int) -> None:
    with pytest.raises(VitfrostError):
        share(right, images)


@given(outcome_pairs)
def test_paired_difference_contains_its_value_and_mirrors(pair: tuple[np.ndarray, np.ndarray]) -> None:
    model, reference = pair
    estimate, swapped = paired_difference(model, reference), paired_difference(reference, model)
    low, high = estimate.interval
    assert estimate.value == pytest.approx(100 * (model.mean() - reference.mean()))
    assert -100 <= low <= estimate.value <= high <= 100
    assert swapped.value == pytest.approx(-estimate.value)
    assert swapped.interval == pytest.approx((-high, -low))


@given(outcome_pairs)
def test_paired_difference_ignores_concordant_order_and_shrinks(pair: tuple[np.ndarray, np.ndarray]) -> None:
    model, reference = pair
    order = np.random.default_rng(0).permutation(len(model))
    estimate = paired_difference(model, reference)
    assert paired_difference(model[order], reference[order]) == estimate
    longer = paired_difference(np.tile(model, 4), np.tile(reference, 4)).interval
    assert longer[1] - longer[0] < estimate.interval[1] - estimate.interval[0]


def test_paired_difference_without_discordant_pairs_has_width() -> None:
    same = np.arange(650) % 5 > 0
    low, high = paired_difference(same, same).interval
    assert high == -low
    assert 0.3 < high < 0.5


def test_paired_difference_covers_the_truth() -> None:
    draws = np.random.default_rng(0).random((2000, 650))
    covered = 0
    for row in draws:
        low, high = paired_difference(row < 0.80, (row > 0.06) & (row < 0.84)).interval
        covered += low <= 100 * (0.80 - 0.78) <= high
    assert 0.935 < covered / len(draws) < 0.97


@given(logits)
def test_divergence_is_kl_of_softmax(pair: tuple[np.ndarray, np.ndarray]) -> None:
    reference, model = pair
    p, q = (special.softmax(x.astype(np.float64), axis=1) for x in pair)
    found = divergences(reference, model)
    np.testing.assert_allclose(found, special.rel_entr(p, q).sum(axis=1), rtol=1e-6, atol=1e-10)
    assert (found >= 0).all()
    assert (divergences(model, model) == 0).all()
    np.testing.assert_allclose(divergences(reference, model + np.float32(8)), found, atol=1e-4)


@given(arrays(np.float64, st.integers(2, 100), elements=st.floats(0, 1e3)))
def test_mean_contains_its_value(values: np.ndarray) -> None:
    estimate = mean(values)
    assert estimate.interval[0] <= estimate.value <= estimate.interval[1]
    assert estimate.interval[0] >= 0
    assert estimate.interval[1] - estimate.value == pytest.approx(1.96 * stats.sem(values), rel=1e-4, abs=1e-12)


def test_one_value_has_no_interval() -> None:
    assert mean(np.array([0.25])) == (0.25, None)
    assert bootstrap_mean([67.5]) == (67.5, None)


@given(st.lists(st.floats(0, 100), min_size=2, max_size=12), st.integers(0, 9))
def test_bootstrap_contains_the_mean_within_the_extremes(runs: list[float], seed: int) -> None:
    estimate = bootstrap_mean(runs, seed, draws=500)
    assert estimate.value == pytest.approx(np.mean(runs))
    low, high = estimate.interval
    assert min(runs) - 1e-9 <= low <= estimate.value <= high <= max(runs) + 1e-9
    assert bootstrap_mean(runs, seed, draws=500) == estimate


def test_bootstrap_is_close_to_students_interval() -> None:
    runs = np.random.default_rng(1).normal(67.5, 1.5, 30)
    low, high = bootstrap_mean(runs.tolist()).interval
    expected = stats.t.interval(0.95, 29, runs.mean(), stats.sem(runs))
    assert (low, high) == pytest.approx(expected, abs=0.1)


def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(VitfrostError):
        mean(np.zeros(0))
    with pytest.raises(VitfrostError):
        bootstrap_mean([])
    with pytest.raises(VitfrostError):
        paired_difference(np.ones(0, bool), np.ones(0, bool))
