"""Equations 10-14: bounds and laws, and parity with plain float64 numpy."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vitfrost.statistics.entropy import entropy_bits, kl_bits, mean_of, variance_of

from .test_histogram import FEWER, count, map_batches, weights

pairs = st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(1, 12)).flatmap(
    lambda shape: st.tuples(*(arrays(np.float32, (images, shape[2]), elements=weights) for images in shape[:2]))
)


def histogram(column: np.ndarray) -> np.ndarray:
    return np.histogram(column.astype(np.float64), bins=256, range=(0, 1))[0].astype(np.float64)


def entropy_of(maps: np.ndarray) -> np.ndarray:
    widths, _, counts = count(maps).sparse()
    return entropy_bits(widths, counts, len(maps))


def divergence_of(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return kl_bits(*count(p).sparse(), len(p), *count(q).sparse(), len(q))


@FEWER
@given(map_batches)
def test_entropy_equals_the_reference_and_keeps_its_bounds(maps):
    expected = []
    for column in maps.T:
        p = histogram(column) / len(maps)
        p = p[p > 0]
        expected.append(-(p * np.log2(p)).sum())
    entropy = entropy_of(maps)
    np.testing.assert_allclose(entropy, expected, atol=2e-6)
    assert (entropy >= 0).all()
    assert (entropy <= min(8, np.log2(len(maps))) + 1e-6).all()


@FEWER
@given(map_batches, st.randoms(use_true_random=False))
def test_entropy_does_not_see_the_order_of_images_nor_which_bins_are_used(maps, random):
    order = list(range(len(maps)))
    random.shuffle(order)
    np.testing.assert_array_equal(entropy_of(maps), entropy_of(maps[order]))
    bins = list(range(256))
    random.shuffle(bins)
    moved = (np.array(bins)[np.minimum(maps * 256, 255).astype(int)] / 256).astype(np.float32)
    np.testing.assert_allclose(entropy_of(maps), entropy_of(moved), atol=1e-6)


def test_entropy_of_known_distributions():
    uniform = (np.arange(256) / 256).astype(np.float32)
    halves = np.where(np.arange(256) % 2 == 0, 0.1, 0.9).astype(np.float32)
    constant = np.full(256, 0.5, np.float32)
    small = np.linspace(0, 0.0039, 256, dtype=np.float32)
    np.testing.assert_array_equal(entropy_of(np.stack([uniform, halves, constant, small], 1)), [8, 1, 0, 0])


@FEWER
@given(pairs)
def test_divergence_equals_the_reference(both):
    p_maps, q_maps = both
    expected = []
    for p_column, q_column in zip(p_maps.T, q_maps.T, strict=True):
        p = (histogram(p_column) + 1) / (len(p_maps) + 256)
        q = (histogram(q_column) + 1) / (len(q_maps) + 256)
        expected.append((p * np.log2(p / q)).sum())
    divergence = divergence_of(p_maps, q_maps)
    np.testing.assert_allclose(divergence, expected, atol=1e-6)
    assert (divergence >= 0).all()


@FEWER
@given(map_batches)
def test_divergence_from_itself_is_zero(maps):
    np.testing.assert_array_equal(divergence_of(maps, maps), 0)


def test_entries_without_counts_get_zero():
    maps = np.random.default_rng(0).random((20, 4), np.float32)
    counters = count(maps)
    counters.forget(np.array([False, True, False, False]))
    sparse = counters.sparse()
    other = count(maps[:5])
    other.forget(np.array([False, True, False, False]))
    assert entropy_bits(sparse[0], sparse[2], 20)[1] == 0
    divergence = kl_bits(*sparse, 20, *other.sparse(), 5)
    assert divergence[1] == 0
    assert (divergence[[0, 2, 3]] > 0).all()


@FEWER
@given(map_batches)
def test_mean_and_variance_equal_the_reference(maps):
    counters = count(maps)
    exact = maps.astype(np.float64)
    np.testing.assert_allclose(mean_of(counters.sums, len(maps)), exact.mean(0), rtol=1e-7, atol=2.0**-31)
    variance = variance_of(counters.sums, counters.squares, len(maps))
    np.testing.assert_allclose(variance, exact.var(0), rtol=1e-6, atol=2.0**-28)
    assert (variance >= 0).all()
