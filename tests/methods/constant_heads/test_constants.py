"""Laws of structured constants: what is structured is recovered, masks hold, another grid keeps what a query gives away."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitfrost.methods.constant_heads.constants import (
    Shape,
    StructuredMap,
    dense_of,
    fit,
    relative_positions,
    resized_map,
    stretched_window,
    uniform,
)
from vitfrost.methods.constant_heads.kinds.local import Local
from vitfrost.methods.constant_heads.kinds.structured import Structured
from vitfrost.methods.constant_heads.kinds.toeplitz import Toeplitz

TOEPLITZ, LOCAL = Toeplitz(), Local()
SHAPES = st.builds(Shape, st.tuples(st.integers(2, 5), st.integers(2, 6)), st.integers(0, 2))


def drawn(shape: Shape, kernel: tuple[int, int], seed: int, rest: float = 0.0) -> StructuredMap:
    """A structured map of random positive numbers."""
    rng = np.random.default_rng(seed)
    return StructuredMap(
        kernel=rng.uniform(0.1, 1, kernel),
        rest=rest,
        row_scale=rng.uniform(0.5, 2, (1, shape.patches)),
        prefix_rows=rng.uniform(0, 1, (shape.prefix_tokens, shape.tokens)),
        prefix_columns=rng.uniform(0, 1, (shape.patches, shape.prefix_tokens)),
    )


@given(SHAPES, st.integers(0, 10_000))
def test_a_map_by_relative_position_is_recovered(shape: Shape, seed: int) -> None:
    whole = dense_of(drawn(shape, TOEPLITZ.kernel_shape(shape), seed), shape)
    importance = np.random.default_rng(seed).uniform(0.5, 2, (1, shape.tokens))
    # without row scales the first step is exact; with them the alternation converges, fast but not in one step
    plain = whole.copy()
    prefix = shape.prefix_tokens
    plain[:, prefix:, prefix:] /= drawn(shape, TOEPLITZ.kernel_shape(shape), seed).row_scale[:, :, None]
    np.testing.assert_allclose(dense_of(fit(plain, importance, shape, TOEPLITZ.kernel_shape(shape)), shape), plain, atol=1e-9)
    left = np.abs(dense_of(fit(whole, importance, shape, TOEPLITZ.kernel_shape(shape)), shape) - whole).max()
    assert left < 0.15 * np.abs(whole - whole.mean()).max() + 1e-9


@given(SHAPES, st.integers(0, 10_000), st.sampled_from([1, 3, 5]))
def test_a_local_map_with_a_rest_is_recovered(shape: Shape, seed: int, window: int) -> None:
    made = drawn(shape, LOCAL.kernel_shape(shape, window), seed, rest=0.05)
    whole = dense_of(StructuredMap(made.kernel, made.rest, np.ones((1, shape.patches)), made.prefix_rows, made.prefix_columns), shape)
    found = fit(whole, np.ones((1, shape.tokens)), shape, LOCAL.kernel_shape(shape, window))
    np.testing.assert_allclose(dense_of(found, shape), whole, atol=1e-9)


@given(SHAPES, st.integers(0, 10_000))
def test_relative_positions_are_those_of_the_definition(shape: Shape, seed: int) -> None:
    rng = np.random.default_rng(seed)
    query, key = rng.integers(0, shape.patches, 2)
    (row, column), (other_row, other_column) = divmod(int(query), shape.grid[1]), divmod(int(key), shape.grid[1])
    down, right = other_row - row, other_column - column
    group = relative_positions(shape.grid, (3, 3))[query, key]
    assert group == ((down + 1) * 3 + right + 1 if abs(down) <= 1 and abs(right) <= 1 else -1)


@given(st.integers(0, 1000))
def test_the_fit_weighs_keys_by_their_importance(seed: int) -> None:
    shape, rng = Shape((3, 4), 1), np.random.default_rng(seed)
    mean, importance = rng.dirichlet(np.ones(13), (1, 13)), rng.uniform(0.01, 3, (1, 13))

    def weighted_error(weights: np.ndarray) -> float:
        wrong = (dense_of(fit(mean, weights, shape, (3, 3)), shape) - mean) ** 2
        return float((wrong * importance[:, None]).sum())

    assert weighted_error(importance) < weighted_error(1 / importance)


def test_forbidden_pairs_are_zero_and_do_not_count() -> None:
    shape = Shape((2, 2))
    allowed = np.ones((2, 4, 4), dtype=bool)
    allowed[1, :2, 2:] = allowed[1, 2:, :2] = False
    mean = np.where(allowed, 0.25, 99.0)
    mean[1] = np.where(allowed[1], 0.5, 99.0)
    found = fit(mean, np.ones((2, 4)), shape, TOEPLITZ.kernel_shape(shape), allowed)
    whole = dense_of(found, shape, allowed)
    assert (whole[~allowed] == 0).all()
    np.testing.assert_allclose(whole[0], 0.25, atol=1e-3)  # the alternation of kernel and row scales has nearly converged
    np.testing.assert_allclose(whole[1][allowed[1]], 0.5, atol=1e-3)


@given(SHAPES, st.integers(0, 10_000), st.booleans())
def test_the_same_grid_changes_nothing(shape: Shape, seed: int, local: bool) -> None:
    kind = LOCAL if local else TOEPLITZ
    made = drawn(shape, kind.kernel_shape(shape, 3), seed, rest=0.05 if local else 0.0)
    np.testing.assert_allclose(dense_of(kind.resized(made, shape, shape, 3), shape), dense_of(made, shape), atol=1e-9)


@pytest.mark.parametrize("kind", [TOEPLITZ, LOCAL])
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_another_grid_keeps_what_a_query_gives_to_patches(kind: Structured, prefix: int) -> None:
    old, new = Shape((4, 6), prefix), Shape((6, 9), prefix)
    rows = np.random.default_rng(0).uniform(0.2, 1, (prefix, old.tokens))
    made = uniform(old, kind.kernel_shape(old, 3))
    made = StructuredMap(made.kernel, made.rest, made.row_scale, rows / rows.sum(1, keepdims=True), made.prefix_columns)
    whole = dense_of(kind.resized(made, old, new, 5), new)
    assert whole.shape == (1, new.tokens, new.tokens)
    np.testing.assert_allclose(whole.sum(2), 1, atol=1e-9)


@given(SHAPES, st.integers(0, 10_000))
def test_a_dense_map_on_another_grid_keeps_what_a_query_gives(shape: Shape, seed: int) -> None:
    rows = np.random.default_rng(seed).dirichlet(np.ones(shape.tokens), shape.tokens)[None]
    np.testing.assert_allclose(resized_map(rows, shape, shape), rows, atol=1e-9)
    wider = Shape((2 * shape.grid[0], 3 * shape.grid[1]), shape.prefix_tokens)
    made = resized_map(rows, shape, wider)
    assert made.shape == (1, wider.tokens, wider.tokens)
    assert made.min() >= 0
    np.testing.assert_allclose(made.sum(2), 1, atol=1e-9)


def test_a_dense_map_on_another_grid_looks_at_the_same_place() -> None:
    old, new = Shape((6, 6)), Shape((12, 12))
    right = np.roll(np.eye(36), 1, axis=1)[None]  # every patch looks at the next one, but for the last of a row
    made = resized_map(right, old, new).reshape(12, 12, 12, 12)
    seen = (made[5, 4] * np.arange(12)).sum()
    assert seen == pytest.approx(6, abs=0.3)  # two patches further, of half the size
    np.testing.assert_allclose(made[5, 4].sum(0) > 1e-9, np.isin(np.arange(12), range(3, 9)))


def test_a_window_grows_with_the_grid() -> None:
    old, new = Shape((4, 4)), Shape((12, 12))
    assert [stretched_window(side, old, new) for side in (1, 3, 5)] == [3, 9, 15]
    made = LOCAL.resized(drawn(old, (3, 3), 0, rest=0.01), old, new, 9)
    assert made.kernel.shape == (9, 9)
    assert made.kernel[4, 4] / made.rest == pytest.approx(drawn(old, (3, 3), 0).kernel[1, 1] / 0.01)


def test_masked_windows_belong_to_their_image_size() -> None:
    made = uniform(Shape((2, 2)), (3, 3), windows=4)
    with pytest.raises(ValueError, match="image size"):
        TOEPLITZ.resized(made, Shape((2, 2)), Shape((4, 4)), None)
