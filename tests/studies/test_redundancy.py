"""Constant levels against plain definitions."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np

BENCHMARK = runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "eam_redundancy.py"))
constant_entries, count_levels, zero_entries = (BENCHMARK[name] for name in ("constant_entries", "count_levels", "zero_entries"))


def test_levels_are_counted_and_constants_found() -> None:
    codes = np.array([[0, 3, 1, 2]] * 199 + [[0, 3, 0, 1]])
    counts = np.zeros((4, 4), np.int64)
    for part in np.array_split(codes, 7):
        count_levels(counts, part)
    assert (counts.sum(axis=0) == 200).all()
    assert counts[1, 2] == 199
    assert constant_entries(counts).tolist() == [True, True, True, True]
    assert constant_entries(counts, 0.999).tolist() == [True, True, False, False]
    assert zero_entries(counts, 3).tolist() == [False, True, False, False]
