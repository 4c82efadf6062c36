"""Selecting the lowest entries: by rank (exactly so many), or by the threshold of EAM's equation 15."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from jaxtyping import Bool, Shaped


def share(ratio: float, entries: int) -> int:
    """floor(ratio * entries), with `ratio` taken as the decimal number that was written (0.29 of 100 is 29)."""
    return int(Fraction(str(ratio)) * entries)


def lowest(
    scores: Shaped[np.ndarray, "*shape"],
    variance: Shaped[np.ndarray, "*shape"],
    mean: Shaped[np.ndarray, "*shape"],
    eligible: Bool[np.ndarray, "*shape"],
    count: int,
) -> Bool[np.ndarray, "*shape"]:
    """Mask of exactly `count` eligible entries: the lowest by score, ties broken by variance, then mean, then position.

    Each key is partitioned once, and only the entries tied at its threshold go on to the next one: time is linear in
    the number of entries. Raises ValueError when `count` is negative or more than are eligible.
    """
    undecided = np.flatnonzero(eligible)
    if not 0 <= count <= undecided.size:
        raise ValueError(f"{count} entries wanted, {undecided.size} eligible")
    chosen = np.zeros(scores.size, dtype=bool)
    for key in (scores, variance, mean):
        if count in (0, undecided.size):
            break
        values = key.reshape(-1)[undecided]
        threshold = np.partition(values, count - 1)[count - 1]
        below = undecided[values < threshold]
        chosen[below] = True
        count -= below.size
        undecided = undecided[values == threshold]
    chosen[undecided[:count]] = True
    return chosen.reshape(scores.shape)


def up_to_threshold(
    scores: Shaped[np.ndarray, "*shape"], eligible: Bool[np.ndarray, "*shape"], count: int
) -> tuple[Bool[np.ndarray, "*shape"], Bool[np.ndarray, "*shape"]]:
    """Masks of the eligible entries with H <= eps, and of those with H == eps, where eps is the `count`-th lowest score.

    Equation 15 read with `<=` freezes the first mask; read literally it freezes H < eps and turns H == eps into zero.
    At least `count` entries are selected; more where scores tie at eps. None for `count` 0.
    Raises ValueError when `count` is negative or more than are eligible.
    """
    values = scores[eligible]
    if not 0 <= count <= values.size:
        raise ValueError(f"{count} entries wanted, {values.size} eligible")
    if count == 0:
        return np.zeros(scores.shape, dtype=bool), np.zeros(scores.shape, dtype=bool)
    threshold = np.partition(values, count - 1)[count - 1]
    return eligible & (scores <= threshold), eligible & (scores == threshold)
