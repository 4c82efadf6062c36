"""Timing several variants against each other: interleaved in random order in one process, compared by paired ratios."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping

import numpy as np


def seconds_per_image(
    variants: Mapping[str, Callable[[], object]], images: int, rounds: int, seed: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds per image of every variant and round; the first `warm_up` rounds are not kept."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    order = random.Random(seed)
    for number in range(rounds + warm_up):
        for name in order.sample(list(variants), len(variants)):
            start = time.perf_counter()
            variants[name]()
            if number >= warm_up:
                seconds[name].append((time.perf_counter() - start) / images)
    return seconds


def paired_ratio(above: list[float], below: list[float], seed: int) -> tuple[float, float, float]:
    """Median of the ratios within rounds and its 95 % bootstrap interval."""
    pairs = np.array(above) / np.array(below)
    draws = np.median(np.random.default_rng(seed).choice(pairs, (2000, len(pairs))), axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(np.median(pairs)), float(low), float(high)
