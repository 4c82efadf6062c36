"""Structured constants from sums by relative position, where no map of N x N tokens is held. Formulas only.

Between patches a structured map is A[i, j] = s_i k[p_j - p_i] (see constants.py). The fit here matches two kinds of sums that a map has:
what all pairs of one relative position weigh together, and what every query gives to the patches. It alternates between
k[r] = sum of w_j A_ij over the pairs at r / sum of w_j s_i over them, and s_i = mass_i / sum_j k[p_j - p_i]; a map that is structured is
its fixed point.

Shapes: W windows (1 where all share a constant), P prefix tokens, N tokens, gh x gw the patch grid, R = (2 gh - 1) x (2 gw - 1) the
relative positions, that of key minus query, (0, 0) in the middle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from .constants import Shape, StructuredMap, cut, relative_positions, sums_of_rows, whole_kernel

ITERATIONS = 12
_TINY = 1e-30


@dataclass(frozen=True)
class MapSums:
    """What is known of one head's mean map.

    `by_offset` [R]: sum of A_ij ||W_O v_j||^2 over the pairs of patches at each relative position, over all windows. `importance`
    [windows, patches]: mean of ||W_O v_j||^2. `mass` [patches]: what every patch gives to all patches. `allowed`: pairs of patches that a
    shift mask leaves (None: all).
    """

    by_offset: Float[np.ndarray, "offsets_down offsets_right"]
    importance: Float[np.ndarray, "windows patches"]
    mass: Float[np.ndarray, " patches"]
    prefix_rows: Float[np.ndarray, "prefix tokens"]
    prefix_columns: Float[np.ndarray, "patches prefix"]
    allowed: Bool[np.ndarray, "windows patches patches"] | None = None


def fit_sums(sums: MapSums, shape: Shape, kernel: tuple[int, int]) -> StructuredMap:
    """The structured constant with these sums. `kernel`: height and width, odd; what lies outside it shares the rest."""
    grid = shape.grid
    inside = _centered(kernel, grid)
    scale = np.ones((1 if sums.allowed is None else len(sums.importance), shape.patches))
    whole, rest = np.zeros(sums.by_offset.shape), 0.0
    for _ in range(ITERATIONS):
        below = pair_weights(scale, sums.importance, grid, sums.allowed)
        rest = float(sums.by_offset[~inside].sum() / max(below[~inside].sum(), _TINY))
        whole = np.where(inside, sums.by_offset / np.maximum(below, _TINY), rest)
        found = row_sums(whole, grid, sums.allowed)
        scale = np.where(found > _TINY, sums.mass / np.maximum(found, _TINY), 1.0)
    level = float(scale.mean()) or 1.0
    return StructuredMap(
        kernel=cut(whole * level, rest * level, kernel),
        rest=rest * level,
        row_scale=scale / level,
        prefix_rows=sums.prefix_rows,
        prefix_columns=sums.prefix_columns,
    )


def pair_weights(
    scale: Float[np.ndarray, "scales patches"],
    importance: Float[np.ndarray, "windows patches"],
    grid: tuple[int, int],
    allowed: Bool[np.ndarray, "windows patches patches"] | None = None,
) -> Float[np.ndarray, "offsets_down offsets_right"]:
    """Sum of s_i w_j over the pairs (i, j) of patches at each relative position."""
    if allowed is None:
        from scipy.signal import correlate  # imported by flags and configurations otherwise

        made: np.ndarray = correlate(importance.sum(0).reshape(grid), scale[0].reshape(grid), mode="full", method="fft")
        return np.maximum(made, 0.0)
    size = (2 * grid[0] - 1, 2 * grid[1] - 1)
    pairs = scale[:, :, None] * importance[:, None, :] * allowed
    return np.bincount(relative_positions(grid, size).reshape(-1), pairs.sum(0).reshape(-1), size[0] * size[1]).reshape(size)


def row_sums(
    whole: Float[np.ndarray, "offsets_down offsets_right"],
    grid: tuple[int, int],
    allowed: Bool[np.ndarray, "windows patches patches"] | None = None,
) -> Float[np.ndarray, "scales patches"]:
    """Sum over the keys j of k[p_j - p_i], for every query i, of a kernel of all relative positions."""
    if allowed is not None:
        pairs = whole.reshape(-1)[relative_positions(grid, whole.shape)]  # type: ignore[arg-type]
        return (pairs * allowed).sum(2)
    return sums_of_rows(whole, grid).reshape(1, -1)


def values_at(
    constant: StructuredMap, shape: Shape, windows: Int[np.ndarray, " pairs"], queries: Int[np.ndarray, " pairs"],
    keys: Int[np.ndarray, " pairs"],
) -> Float[np.ndarray, " pairs"]:  # fmt: skip
    """What a structured constant has at some pairs of tokens, which a shift mask allows."""
    prefix, (height, width) = shape.prefix_tokens, shape.grid
    whole = whole_kernel(constant.kernel, constant.rest, shape)
    patches = np.maximum(queries - prefix, 0), np.maximum(keys - prefix, 0)
    down = patches[1] // width - patches[0] // width + height - 1
    right = patches[1] % width - patches[0] % width + width - 1
    scales = constant.row_scale[windows if len(constant.row_scale) > 1 else np.zeros_like(windows), patches[0]]
    made = whole[down, right] * scales
    if prefix:
        row, column = queries < prefix, keys < prefix
        made = np.where(column, constant.prefix_columns[patches[0], np.minimum(keys, prefix - 1)], made)
        made = np.where(row, constant.prefix_rows[np.minimum(queries, prefix - 1), keys], made)
    return made


def _centered(kernel: tuple[int, int], grid: tuple[int, int]) -> Bool[np.ndarray, "offsets_down offsets_right"]:
    """Which relative positions a kernel covers."""
    near = [np.abs(np.arange(2 * side - 1) - (side - 1)) <= across // 2 for side, across in zip(grid, kernel, strict=True)]
    return near[0][:, None] & near[1][None]
