"""Structured constants from sums by relative position: a structured map is found again, and values are those of the whole map."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitfrost.methods.constant_heads.constants import Shape, StructuredMap, dense_of, relative_positions, whole_kernel
from vitfrost.methods.constant_heads.offsets import MapSums, fit_sums, pair_weights, row_sums, values_at


def structured(shape: Shape, kernel: tuple[int, int], rng: np.random.Generator) -> StructuredMap:
    """A map whose rows sum to one."""
    columns = rng.uniform(0, 0.2, (shape.patches, shape.prefix_tokens))
    around, rest = rng.uniform(0.5, 2, kernel), 0.1
    found = row_sums(whole_kernel(around, rest, shape), shape.grid)
    rows = rng.dirichlet(np.ones(shape.tokens), shape.prefix_tokens)
    return StructuredMap(around, rest, (1 - columns.sum(1)) / found, rows, columns)


def sums_of(whole: np.ndarray, importance: np.ndarray, shape: Shape) -> MapSums:
    """By hand."""
    prefix, size = shape.prefix_tokens, tuple(2 * side - 1 for side in shape.grid)
    patches = whole[prefix:, prefix:]
    groups = relative_positions(shape.grid, size).reshape(-1)  # type: ignore[arg-type]
    by_offset = np.bincount(groups, (patches * importance).reshape(-1), size[0] * size[1]).reshape(size)
    return MapSums(by_offset, importance[None], patches.sum(1), whole[:prefix], whole[prefix:, :prefix])


grids = st.tuples(st.integers(2, 6), st.integers(2, 6))


@settings(max_examples=30, deadline=None)
@given(grid=grids, prefix=st.integers(0, 2), side=st.sampled_from([3, 5]), seed=st.integers(0, 99))
def test_a_structured_map_is_found_again_from_its_sums(grid, prefix, side, seed) -> None:
    shape, rng = Shape(grid, prefix), np.random.default_rng(seed)
    kernel = min(side, 2 * grid[0] - 1), min(side, 2 * grid[1] - 1)
    whole = dense_of(structured(shape, kernel, rng), shape)[0]
    sums = sums_of(whole, rng.uniform(0.5, 2, shape.patches), shape)
    found = dense_of(fit_sums(sums, shape, kernel), shape)[0]
    np.testing.assert_allclose(found, whole, atol=2e-3)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(grid=grids, prefix=st.integers(0, 2), seed=st.integers(0, 99))
def test_values_and_sums_are_those_of_the_whole_map(grid, prefix, seed) -> None:
    shape, rng = Shape(grid, prefix), np.random.default_rng(seed)
    constant = structured(shape, (3, 3), rng)
    whole = dense_of(constant, shape)[0]
    queries, keys = np.divmod(np.arange(shape.tokens**2), shape.tokens)
    found = values_at(constant, shape, np.zeros_like(queries), queries, keys)
    np.testing.assert_allclose(found.reshape(whole.shape), whole, atol=1e-12)
    scale, importance = rng.uniform(0, 1, (1, shape.patches)), rng.uniform(0, 1, (2, shape.patches))
    everyone = np.ones((2, shape.patches, shape.patches), bool)
    np.testing.assert_allclose(
        pair_weights(scale, importance, grid), pair_weights(np.repeat(scale, 2, 0), importance, grid, everyone), atol=1e-9
    )
    kernel = whole_kernel(constant.kernel, constant.rest, shape)
    np.testing.assert_allclose(row_sums(kernel, grid)[0], row_sums(kernel, grid, everyone)[0], atol=1e-9)


def test_a_kernel_is_cut_to_the_grid() -> None:
    assert whole_kernel(np.ones((9, 3)), 0.5, Shape((3, 3))).tolist() == [[0.5, 1, 1, 1, 0.5]] * 5
    assert pytest.approx(0.5) == whole_kernel(np.ones((3, 3)), 0.5, Shape((3, 3)))[0, 0]
