"""Constant attention maps of one head by relative position: Toeplitz, or local with a uniform rest. Formulas only.

Between patch tokens a structured map is A[i, j] = s_i k[p_j - p_i]: a kernel over the relative position of key and query on the
patch grid, times a scale per query, since rows near the border have fewer keys and still sum to one. `local` keeps the kernel in
a window and gives all other keys one number, the rest. A kernel that was carried over to a larger grid keeps its few numbers: it has a
tap every `dilation` patches and straight lines between, which is a smoothing by triangles and then a dilated kernel. Rows and columns of
prefix tokens (CLS) are kept as they are. Pairs that a shift mask forbids are zero.

Shapes: W windows (1 where all windows share a constant), N queries, M keys, P prefix tokens, gh x gw the patch grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

import numpy as np
from jaxtyping import Bool, Float, Int

ITERATIONS = 6
_TINY = 1e-30


@dataclass(frozen=True)
class Shape:
    """What a structured constant needs to know of its site: the patch grid of queries and keys, and the prefix tokens before it; and how
    many patches the taps of kernels are apart."""

    grid: tuple[int, int]
    prefix_tokens: int = 0
    dilation: int = 1

    @property
    def patches(self) -> int:
        """Patch tokens of the grid."""
        return self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """All tokens: prefix tokens and patches."""
        return self.prefix_tokens + self.patches


@dataclass(frozen=True)
class StructuredMap:
    """One head's structured constant. `rest` is what keys outside the kernel get; 0 where the kernel covers them all.

    `prefix_rows` are the prefix tokens' rows over all keys, `prefix_columns` what patches give to prefix tokens.
    """

    kernel: Float[np.ndarray, "kernel_height kernel_width"]
    rest: float
    row_scale: Float[np.ndarray, "windows patches"]
    prefix_rows: Float[np.ndarray, "prefix tokens"]
    prefix_columns: Float[np.ndarray, "patches prefix"]


def relative_positions(grid: tuple[int, int], kernel: tuple[int, int]) -> Int[np.ndarray, "patches patches"]:
    """For every pair of patches [query, key] the flat index into a kernel of odd size, or -1 outside it."""
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    down = rows[None, :] - rows[:, None] + kernel[0] // 2
    right = columns[None, :] - columns[:, None] + kernel[1] // 2
    inside = (down >= 0) & (down < kernel[0]) & (right >= 0) & (right < kernel[1])
    return np.where(inside, down * kernel[1] + right, -1)


def fit(
    mean: Float[np.ndarray, "windows tokens tokens"],
    importance: Float[np.ndarray, "windows tokens"],
    shape: Shape,
    kernel: tuple[int, int],
    allowed: Bool[np.ndarray, "windows tokens tokens"] | None = None,
) -> StructuredMap:
    """The structured constant nearest to a head's mean maps: least squares over all allowed pairs, each weighted by its key's
    `importance` (mean squared norm of the key's value at the layer's output), by alternating between kernel and row scales.

    `kernel`: height and width, odd. All windows share kernel and rest; they share the row scales too where no mask tells them apart.
    """
    prefix = shape.prefix_tokens
    groups = relative_positions(shape.grid, kernel) + 1  # group 0 is the rest
    size = kernel[0] * kernel[1] + 1
    patches = mean[:, prefix:, prefix:].astype(np.float64)
    weights = np.broadcast_to(importance[:, None, prefix:].astype(np.float64), patches.shape)
    if allowed is None:
        patches = (patches * weights).sum(0, keepdims=True) / np.maximum(weights.sum(0, keepdims=True), _TINY)
        weights = weights.sum(0, keepdims=True)
    else:
        weights = weights * allowed[:, prefix:, prefix:]
    flat = np.broadcast_to(groups, patches.shape).reshape(-1)
    scale = np.ones(patches.shape[:2])
    values = np.zeros(size)
    for _ in range(ITERATIONS):
        weighted = weights * scale[:, :, None]
        below = np.bincount(flat, (weighted * scale[:, :, None]).reshape(-1), size)
        values = np.bincount(flat, (weighted * patches).reshape(-1), size) / np.maximum(below, _TINY)
        spread = values[groups]
        energy = (weights * spread**2).sum(-1)
        scale = np.where(energy > _TINY, (weights * patches * spread).sum(-1) / np.maximum(energy, _TINY), 1.0)
    mean_scale = float(scale.mean()) or 1.0
    values, scale = values * mean_scale, scale / mean_scale
    return StructuredMap(
        kernel=values[1:].reshape(kernel),
        rest=float(values[0]),
        row_scale=scale,
        prefix_rows=mean[:, :prefix].astype(np.float64).mean(0),
        prefix_columns=mean[:, prefix:, :prefix].astype(np.float64).mean(0),
    )


def dense_of(
    constant: StructuredMap, shape: Shape, allowed: Bool[np.ndarray, "windows tokens tokens"] | None = None
) -> Float[np.ndarray, "windows tokens tokens"]:
    """The whole map that a structured constant stands for."""
    prefix = shape.prefix_tokens
    kernel = stretched(constant.kernel, constant.rest, shape.dilation)
    groups = relative_positions(shape.grid, kernel.shape)  # type: ignore[arg-type]
    values = np.append(kernel.reshape(-1), constant.rest)
    patches = values[groups] * constant.row_scale[:, :, None]
    if allowed is not None:
        patches = patches * allowed[:, prefix:, prefix:]
    made = np.zeros((len(patches), shape.tokens, shape.tokens))
    made[:, :prefix] = constant.prefix_rows
    made[:, prefix:, :prefix] = constant.prefix_columns
    made[:, prefix:, prefix:] = patches
    return made


def uniform(shape: Shape, kernel: tuple[int, int], windows: int = 1) -> StructuredMap:
    """The map that looks at all tokens alike: where a model is only timed, or about to be trained."""
    level = 1 / shape.tokens
    prefix = shape.prefix_tokens
    return StructuredMap(
        kernel=np.full(kernel, level),
        rest=level,
        row_scale=np.ones((windows, shape.patches)),
        prefix_rows=np.full((prefix, shape.tokens), level),
        prefix_columns=np.full((shape.patches, prefix), level),
    )


def triangles(taps: int, dilation: int) -> Float[np.ndarray, "side taps"]:
    """What every tap gives to every place of a kernel with so many taps, `dilation` apart: straight lines, to 0 beyond the outer ones."""
    places = np.arange(dilation * (taps + 1) - 1) - (dilation - 1)
    return np.maximum(1 - np.abs(places[:, None] / dilation - np.arange(taps)), 0.0)


def stretched(kernel: Float[np.ndarray, "kernel_height kernel_width"], rest: float, dilation: int) -> Float[np.ndarray, "height width"]:
    """The kernel at every relative position that its taps reach; it falls to the rest beyond the outer ones."""
    if dilation == 1:
        return kernel
    down, right = (triangles(side, dilation) for side in kernel.shape)
    return np.asarray(down @ (kernel - rest) @ right.T + rest)


def whole_kernel(
    kernel: Float[np.ndarray, "kernel_height kernel_width"], rest: float, shape: Shape
) -> Float[np.ndarray, "offsets_down offsets_right"]:
    """A kernel at all relative positions of a grid, (0, 0) in the middle, with the rest outside."""
    return cut(stretched(kernel, rest, shape.dilation), rest, (2 * shape.grid[0] - 1, 2 * shape.grid[1] - 1))


def cut(values: Float[np.ndarray, "height width"], outside: float, size: tuple[int, int]) -> Float[np.ndarray, "new_height new_width"]:
    """Values around the middle, cut or padded to an odd size."""
    for axis, wanted in enumerate(size):
        more = (wanted - values.shape[axis]) // 2
        if more > 0:
            widths = [(0, 0), (0, 0)]
            widths[axis] = (more, more)
            values = np.pad(values, widths, constant_values=outside)
        elif more < 0:
            values = np.take(values, range(-more, values.shape[axis] + more), axis)
    return values


def sums_of_rows(whole: Float[np.ndarray, "offsets_down offsets_right"], grid: tuple[int, int]) -> Float[np.ndarray, " patches"]:
    """Sum over the keys j of k[p_j - p_i], for every query i, of a kernel at all relative positions."""
    height, width = grid
    below = np.zeros((2 * height, 2 * width))
    below[1:, 1:] = whole.cumsum(0).cumsum(1)
    up, left = height - 1 - np.arange(height), width - 1 - np.arange(width)
    made = below[np.ix_(up + height, left + width)] - below[np.ix_(up, left + width)]
    made += below[np.ix_(up, left)] - below[np.ix_(up + height, left)]
    return made.reshape(-1)


def carried(shape: Shape, target: Shape) -> Shape:
    """The other grid with the taps of kernels as far apart as the grid grows, to the nearest whole number of patches."""
    stretch = min(new / old for new, old in zip(target.grid, shape.grid, strict=True))
    return replace(target, dilation=max(round(stretch * shape.dilation), 1))


def stretched_window(window: int, shape: Shape, target: Shape) -> int:
    """The side of a local kernel in taps on another grid. Where the taps stand apart, they reach at least as far in the image as before;
    else the side grows as the grid does, to the nearest odd number."""
    stretch = max(new / old for new, old in zip(target.grid, shape.grid, strict=True)) * shape.dilation
    if target.dilation == 1:
        return 2 * round((window * stretch - 1) / 2) + 1
    return 2 * max(ceil((window // 2) * stretch / target.dilation - 1e-9), 1) + 1


def resized(constant: StructuredMap, shape: Shape, target: Shape, kernel: tuple[int, int], covers_all: bool) -> StructuredMap:
    """The constant for another patch grid: positions keep their place in the image, so the kernel is stretched as the grid is, and
    every query keeps how much it gives to patches and to prefix tokens.

    `target` says how far its taps are apart (see `carried`). `kernel`: height and width in taps (see `stretched_window`). `covers_all`: the
    kernel has every relative position, so its border goes on beyond it; else the rest does.
    Raises ValueError for constants of masked windows, whose row scales belong to their image size.
    """
    from scipy.ndimage import map_coordinates  # imported by flags and configurations otherwise

    if constant.row_scale.shape[0] != 1:
        raise ValueError("constants of masked windows belong to their image size")
    stretch = [new / old * shape.dilation / target.dilation for new, old in zip(target.grid, shape.grid, strict=True)]
    places = [
        (np.arange(new) - new // 2) / factor + old // 2 for new, old, factor in zip(kernel, constant.kernel.shape, stretch, strict=True)
    ]
    outside = {"mode": "nearest"} if covers_all else {"mode": "grid-constant", "cval": constant.rest}
    taps = map_coordinates(constant.kernel, np.meshgrid(*places, indexing="ij"), order=1, **outside)

    mass = constant.row_scale[0] * sums_of_rows(whole_kernel(constant.kernel, constant.rest, shape), shape.grid)
    unscaled = sums_of_rows(whole_kernel(taps, constant.rest, target), target.grid)
    scale = _on_grid(mass, shape, target) / np.where(np.abs(unscaled) > _TINY, unscaled, 1.0)
    level = float(scale.mean()) or 1.0
    return StructuredMap(
        kernel=taps * level,
        rest=constant.rest * level,
        row_scale=(scale / level)[None],
        prefix_rows=_rows_on_grid(constant.prefix_rows, shape, target),
        prefix_columns=_on_grid(constant.prefix_columns.T, shape, target).T,
    )


def resized_map(whole: Float[np.ndarray, "1 tokens tokens"], shape: Shape, target: Shape) -> Float[np.ndarray, "1 new_tokens new_tokens"]:
    """A dense map for another patch grid: interpolated over queries and keys, and every query keeps how much it gives to patches and to
    prefix tokens."""
    prefix = shape.prefix_tokens
    rows = np.concatenate([whole[0, :prefix], _on_grid(whole[0, prefix:].T, shape, target).T])
    return _rows_on_grid(rows, shape, target)[None]


def _on_grid(values: Float[np.ndarray, "*lead patches"], shape: Shape, target: Shape) -> Float[np.ndarray, "*lead new_patches"]:
    """What is known per patch, from the one grid to the other."""
    from scipy.ndimage import zoom

    lead = values.shape[:-1]
    stretch = [new / old for new, old in zip(target.grid, shape.grid, strict=True)]
    pictured = values.reshape(*lead, *shape.grid)
    return zoom(pictured, [1.0] * len(lead) + stretch, order=1, mode="nearest", grid_mode=True).reshape(*lead, target.patches)


def _rows_on_grid(rows: Float[np.ndarray, "queries tokens"], shape: Shape, target: Shape) -> Float[np.ndarray, "queries new_tokens"]:
    """Rows of a map over the keys of the other grid; the sum over patches stays."""
    prefix = shape.prefix_tokens
    to_patches = _on_grid(rows[:, prefix:], shape, target)
    wanted, found = rows[:, prefix:].sum(1, keepdims=True), to_patches.sum(1, keepdims=True)
    kept = wanted / np.where(np.abs(found) > _TINY, found, 1.0)
    return np.concatenate([rows[:, :prefix], to_patches * kept], axis=1)
