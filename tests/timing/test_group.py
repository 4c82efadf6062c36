"""Rows of a group."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from vitfrost.runtime.runtimes import Runtime
from vitfrost.timing.benchmark import BenchRow
from vitfrost.timing.group import _profiled


class TwoThreads(Runtime):
    """A runtime that tells how long each step kept its threads busy."""

    def __init__(self) -> None:
        pass

    def run(self, pixels: np.ndarray) -> np.ndarray:
        return pixels

    def profile(self, pixels: np.ndarray, runs: int) -> list[tuple[str, float, float]]:
        return [("maps", 0.004 * len(pixels), 8e6 * len(pixels))]


@pytest.mark.parametrize("batch", [1, 3])
def test_a_profile_has_the_mean_time_of_the_threads(row: Callable[..., BenchRow], batch: int) -> None:
    """So a step's rate is that of all threads together, as the limit is."""
    made = _profiled(row([2.0], threads=2, batch=batch), TwoThreads(), np.zeros((batch, 3, 4, 4), np.float32), 1)
    assert made.profile is not None
    assert [(step.name, step.ms, step.macs) for step in made.profile] == [("maps", 2.0, 8_000_000)]
