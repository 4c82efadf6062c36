"""Rows of heads: what stands for a head's maps where there are many windows, or no class token."""

from __future__ import annotations

import numpy as np

from vitfrost.reporting.heads import over_windows, token_row
from vitfrost.vit.sites import AttentionSite


def test_windows_are_averaged_where_a_pair_is_allowed() -> None:
    maps = np.array([[[[1.0, 5.0]]], [[[3.0, 7.0]]]], dtype=np.float32)
    np.testing.assert_array_equal(over_windows(maps, None), [[[2.0, 6.0]]])
    allowed = np.array([[[True, False]], [[False, False]]])
    np.testing.assert_array_equal(over_windows(maps, allowed), [[[1.0, np.nan]]])


def test_without_class_token_the_queries_are_averaged() -> None:
    site = AttentionSite("s", 0, 2, 8, 16, 6, 6, 0, (2, 3))
    maps = np.random.default_rng(0).random((2, 6, 6))
    maps[:, 1] = np.nan
    np.testing.assert_allclose(token_row(maps, site, False), np.delete(maps, 1, axis=1).mean(axis=1).reshape(2, 2, 3))
    np.testing.assert_array_equal(token_row(maps, site, True), maps[:, 0].reshape(2, 2, 3))
