"""Counters against np.histogram in float64, their independence of order and grouping, and counts beyond 255 and 65,536."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vitfrost.statistics.histogram import MAX_IMAGES, Counters, merge_sparse

weights = st.one_of(st.floats(0, 1, width=32), st.integers(0, 256).map(lambda k: k / 256), st.floats(0, 0.0625, width=32))
FEWER = settings(max_examples=20)  # where one takes tens of milliseconds
map_batches = st.tuples(st.integers(1, 40), st.integers(1, 30)).flatmap(lambda shape: arrays(np.float32, shape, elements=weights))


def count(maps: np.ndarray, threads: int = 1, step: int | None = None) -> Counters:
    counters = Counters(maps.shape[1])
    step = step or max(len(maps), 1)
    for start in range(0, len(maps), step):
        counters.accumulate(np.ascontiguousarray(maps[start : start + step]), threads)
    return counters


def dense(sparse: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    widths, bins, counts = sparse
    histogram = np.zeros((len(widths), 256), np.int64)
    histogram[np.repeat(np.arange(len(widths)), widths), bins] = counts
    assert (counts > 0).all()
    return histogram


def reference(maps: np.ndarray) -> np.ndarray:
    """Equation 12: np.histogram over [0, 1] in float64 per entry (half-open bins, the last one closed)."""
    return np.stack([np.histogram(column.astype(np.float64), bins=256, range=(0, 1))[0] for column in maps.T])


def assert_same(a: Counters, b: Counters) -> None:
    for left, right in zip((*a.sparse(), a.sums, a.squares), (*b.sparse(), b.sums, b.squares), strict=True):
        np.testing.assert_array_equal(left, right)
        assert left.dtype == right.dtype


@FEWER
@given(map_batches)
def test_counts_and_sums_equal_a_float64_reference(maps):
    counters = count(maps)
    np.testing.assert_array_equal(dense(counters.sparse()), reference(maps))
    exact = maps.astype(np.float64)
    fixed = np.rint(exact * 2.0**30).astype(np.int64)
    np.testing.assert_array_equal(counters.sums, fixed.sum(0))
    np.testing.assert_array_equal(counters.squares, ((fixed * fixed + 2**15) >> 16).sum(0))
    np.testing.assert_allclose(counters.squares / 2.0**44, (exact**2).sum(0), atol=len(maps) * 2.0**-29)


@FEWER
@given(map_batches, st.integers(1, 7), st.integers(1, 3), st.randoms(use_true_random=False))
def test_order_batch_size_and_threads_do_not_matter(maps, step, threads, random):
    order = list(range(len(maps)))
    random.shuffle(order)
    assert_same(count(maps), count(maps[order], threads, step))


@FEWER
@given(map_batches, st.data())
def test_parts_merge_to_the_whole_in_any_grouping(maps, data):
    first, second = sorted(data.draw(st.lists(st.integers(0, len(maps)), min_size=2, max_size=2)))
    a, b, c = (count(part).sparse() for part in (maps[:first], maps[first:second], maps[second:]))
    left = merge_sparse(merge_sparse(a, b, second), c, len(maps))
    right = merge_sparse(a, merge_sparse(b, c, len(maps) - first), len(maps))
    for one, other, whole in zip(left, right, count(maps).sparse(), strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(one, whole)
        assert one.dtype == other.dtype == whole.dtype


@pytest.mark.parametrize("images", [255, 256, 257, 512, 70_000])
def test_counts_beyond_what_a_byte_and_a_short_hold(images):
    levels = np.array([0, 3, 15, 16, 17, 200, 255]) / 256
    maps = np.repeat(levels[None].astype(np.float32), images, 0)
    maps[-1, 3] = 0.9
    counters = count(maps, threads=2, step=5_000)
    expected = np.zeros((7, 256), np.int64)
    expected[np.arange(7), np.array([0, 3, 15, 16, 17, 200, 255])] = images
    expected[3, [16, 230]] = images - 1, 1
    np.testing.assert_array_equal(dense(counters.sparse()), expected)
    assert counters.sparse()[2].dtype == np.min_scalar_type(images)


def test_many_tiles_many_wraps_and_threads():
    rng = np.random.default_rng(0)
    maps = rng.choice(np.array([0.001, 0.03, 0.1, 0.5, 1.0], np.float32), (600, 5_000))
    counters = count(maps, threads=3, step=100)
    expected = np.stack([(np.minimum(maps * 256, 255).astype(int) == k).sum(0) for k in (0, 7, 25, 128, 255)], 1)
    np.testing.assert_array_equal(dense(counters.sparse())[:, [0, 7, 25, 128, 255]], expected)
    assert counters.sparse()[2].sum() == maps.size


def test_memory_does_not_grow_with_the_images():
    maps = np.random.default_rng(0).random((256, 50), np.float32)
    few, many = count(maps), count(np.tile(maps, (40, 1)), step=256)
    assert many.nbytes - few.nbytes <= 16 * 50 * 240  # at most one note (cell, wraps) per high cell


def test_forgotten_entries_hold_nothing():
    maps = np.random.default_rng(0).random((300, 9), np.float32)
    maps[:, 2] = 0.5
    forget = np.arange(9) % 2 == 0
    counters, kept = count(maps), count(maps[:, ~forget])
    counters.forget(forget)
    np.testing.assert_array_equal(dense(counters.sparse())[forget], 0)
    np.testing.assert_array_equal(dense(counters.sparse())[~forget], dense(kept.sparse()))
    np.testing.assert_array_equal(counters.sums[~forget], kept.sums)
    assert not counters.sums[forget].any()
    assert not counters.squares[forget].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.01, 1.5])
def test_what_is_no_attention_weight_is_refused(bad):
    maps = np.full((3, 20), 0.05, np.float32)
    maps[1, 7] = bad
    with pytest.raises(ValueError, match="between 0 and 1"):
        count(maps)


def test_too_many_images_are_refused():
    counters = Counters(1)
    counters.images = MAX_IMAGES
    with pytest.raises(ValueError, match="images"):
        counters.accumulate(np.zeros((1, 1), np.float32))
