"""Which attention weights are looked at one by one where there are too many to count them all.

A sample is a function of the maps' form alone, so statistics of any images merge. Weights of and for prefix tokens, and those between
neighboring patches, hold most of the mass: each of these kinds is drawn by itself, as many as there are of it where they are few.
"""

from __future__ import annotations

from math import prod

import numpy as np
from jaxtyping import Bool, Float64, Int64

from ..methods.constant_heads.constants import Shape

IN_ALL = 200_000  # of all heads of a model; 336 bytes each while images pass
PER_HEAD = 8192
NEAR = 2  # patches
KINDS = 4


def sample_size(heads: int) -> int:
    """Weights per head of a model with so many heads."""
    return max(min(PER_HEAD, IN_ALL // max(heads, 1)), KINDS)


def kinds_of(flat: Int64[np.ndarray, " entries"], maps: tuple[int, int, int], shape: Shape | None) -> Int64[np.ndarray, " entries"]:
    """The kind of every weight, by its flat place in [windows, queries, keys]: 0 a row of a prefix token, 1 a column of one, 2 between
    neighbors on the patch grid, 3 any other."""
    if shape is None:
        return np.full(len(flat), KINDS - 1)
    queries, keys = flat // maps[2] % maps[1], flat % maps[2]
    prefix, width = shape.prefix_tokens, shape.grid[1]
    rows = (keys - prefix) // width - (queries - prefix) // width
    columns = (keys - prefix) % width - (queries - prefix) % width
    near = np.where((np.abs(rows) <= NEAR) & (np.abs(columns) <= NEAR), 2, 3)
    return np.where(queries < prefix, 0, np.where(keys < prefix, 1, near))


def draw(
    maps: tuple[int, int, int], shape: Shape | None, size: int, allowed: Bool[np.ndarray, "windows queries keys"] | None = None
) -> Int64[np.ndarray, " sampled"]:
    """Flat places in [windows, queries, keys] of about `size` weights, ascending; all of them where there are no more."""
    entries = prod(maps)
    generator = np.random.default_rng(entries)
    if shape is None or (allowed is None and maps[0] == 1 and entries > 1 << 20):
        there = _places(maps, shape, size, generator)
    else:
        flat = np.arange(entries) if allowed is None else np.flatnonzero(allowed)
        kinds = kinds_of(flat, maps, shape)
        there = [flat[kinds == kind] for kind in range(KINDS)]
    if sum(map(len, there)) <= size:
        return np.sort(np.concatenate(there))
    chosen, left = [], size
    waiting = sorted((places for places in there if len(places)), key=len)
    for number, places in enumerate(waiting):
        count = min(len(places), left // (len(waiting) - number))
        chosen.append(places if count == len(places) else generator.choice(places, count, replace=False))
        left -= count
    return np.sort(np.concatenate(chosen))


def _places(
    maps: tuple[int, int, int], shape: Shape | None, size: int, generator: np.random.Generator
) -> list[Int64[np.ndarray, " entries"]]:
    """All places of the first three kinds, and more than `size` drawn ones of the last, without a list of all weights."""
    entries = prod(maps)
    drawn = np.arange(entries) if entries <= size else generator.choice(entries, min(2 * size + 1024, entries), replace=False)
    if shape is None:
        return [np.zeros(0, np.int64)] * (KINDS - 1) + [drawn]
    prefix, (height, width), tokens = shape.prefix_tokens, shape.grid, shape.tokens
    patches = np.arange(shape.patches)
    steps = np.arange(-NEAR, NEAR + 1)
    rows, columns = patches[:, None, None] // width + steps[:, None], patches[:, None, None] % width + steps
    rows, columns = np.broadcast_arrays(rows, columns)
    pairs = (patches[:, None, None] + prefix) * tokens + rows * width + columns + prefix
    near = pairs[(rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)]
    column = ((patches[:, None] + prefix) * tokens + np.arange(prefix)).reshape(-1)
    return [np.arange(prefix * tokens), column, near, drawn[kinds_of(drawn, maps, shape) == KINDS - 1]]


def weights(
    sampled: Int64[np.ndarray, " sampled"],
    maps: tuple[int, int, int],
    shape: Shape | None,
    allowed: Bool[np.ndarray, "windows queries keys"] | None = None,
) -> Float64[np.ndarray, " sampled"]:
    """For how many weights of a head each sampled one stands."""
    kinds = kinds_of(sampled, maps, shape)
    drawn = np.bincount(kinds, minlength=KINDS)
    whole = _counts(maps, shape, allowed)
    return whole[kinds] / drawn[kinds]


def _counts(maps: tuple[int, int, int], shape: Shape | None, allowed: np.ndarray | None) -> Int64[np.ndarray, " kinds"]:
    """How many weights of each kind a head has."""
    if allowed is not None:
        return np.bincount(kinds_of(np.flatnonzero(allowed), maps, shape), minlength=KINDS)
    if shape is None:
        return np.array([0, 0, 0, prod(maps)])
    prefix = shape.prefix_tokens
    near = prod(sum(max(side - abs(step), 0) for step in range(-NEAR, NEAR + 1)) for side in shape.grid)
    counts = np.array([prefix * shape.tokens, shape.patches * prefix, near, shape.patches**2 - near])
    return counts * maps[0]
