"""Laws of comparing heads by their second moments, and the layout of both charts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitfrost.reporting.figures import Scale
from vitfrost.reporting.likeness import closest_pairs, cosines_of, count_twins, explained_by_others
from vitfrost.reporting.matrix import bar_chart, matrix_chart, name_heads

seeds = st.integers(0, 2**32 - 1)


def logits_of(seed: int, heads: int, entries: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(heads, entries))


@given(seeds, st.integers(2, 7))
def test_cosines_are_those_of_the_logits_whatever_their_scale(seed: int, heads: int) -> None:
    logits = logits_of(seed, heads)
    unit = logits / np.linalg.norm(logits, axis=1, keepdims=True)
    sizes = np.random.default_rng(seed + 1).uniform(0.1, 10, heads)
    scaled = logits * sizes[:, None]
    np.testing.assert_allclose(cosines_of(scaled @ scaled.T), unit @ unit.T, atol=1e-12)


def test_heads_that_cannot_be_compared_stay_unknown_and_are_no_twins() -> None:
    moments = np.full((4, 4), np.nan)
    moments[:2, :2] = moments[2:, 2:] = [[1.0, 0.95], [0.95, 1.0]]
    layers = np.array([0, 0, 1, 2])
    cosines = cosines_of(moments)
    np.testing.assert_array_equal(np.isnan(cosines), np.isnan(moments))
    twins = count_twins(cosines, layers, 0.9)
    assert (twins.own_layer, twins.anywhere) == (2, 4)
    assert [(pair.first, pair.second) for pair in closest_pairs(cosines, layers, 9, across=True)] == [(2, 3)]
    assert [(pair.first, pair.second) for pair in closest_pairs(cosines, layers, 9, across=False)] == [(0, 1)]


@given(seeds, st.lists(st.integers(1, 4), min_size=1, max_size=4), st.floats(-0.5, 0.9))
def test_twins_by_counting(seed: int, per_layer: list[int], above: float) -> None:
    layers = np.repeat(np.arange(len(per_layer)), per_layer)
    heads = len(layers)
    logits = logits_of(seed, heads, 3)
    cosines = cosines_of(logits @ logits.T)
    twins = count_twins(cosines, layers, above)
    own = [any(cosines[i, j] > above for j in range(heads) if j != i and layers[j] == layers[i]) for i in range(heads)]
    anywhere = [any(cosines[i, j] > above for j in range(heads) if j != i) for i in range(heads)]
    assert (twins.own_layer, twins.anywhere) == (sum(own), sum(anywhere))
    for across in (True, False):
        pairs = closest_pairs(cosines, layers, 5, across)
        wanted = [cosines[i, j] for i in range(heads) for j in range(i) if (layers[i] != layers[j]) == across]
        assert [pair.cosine for pair in pairs] == sorted(wanted, reverse=True)[:5]
        assert all((layers[pair.first] != layers[pair.second]) == across for pair in pairs)


@given(seeds, st.integers(2, 6))
def test_the_share_is_that_of_least_squares(seed: int, heads: int) -> None:
    logits = logits_of(seed, heads)
    moments = logits @ logits.T / logits.shape[1]
    shares = explained_by_others(moments, 0.0)
    inverse = np.linalg.inv(moments)
    for head, share in enumerate(shares):
        others = np.delete(logits, head, axis=0)
        weights, *_ = np.linalg.lstsq(others.T, logits[head], rcond=None)
        residual = logits[head] - weights @ others
        assert share == pytest.approx(1 - residual @ residual / (logits[head] @ logits[head]), abs=1e-9)
        assert share == pytest.approx(1 - 1 / (moments[head, head] * inverse[head, head]), abs=1e-9)
    ridged = explained_by_others(moments, 0.1)
    assert all(0 <= low <= high + 1e-12 for low, high in zip(ridged, shares, strict=True))


@given(seeds, st.floats(0.2, 5.0), st.sampled_from([1, -1]))
def test_a_copy_is_explained_and_a_lone_head_has_no_others(seed: int, size: float, sign: int) -> None:
    logits = logits_of(seed, 3)
    logits[2] = sign * size * logits[0]
    moments = logits @ logits.T
    shares = explained_by_others(moments, 0.0)
    assert shares[0] == pytest.approx(1)
    assert shares[2] == pytest.approx(1)
    assert explained_by_others(moments[:1, :1], 1e-3) == [None]
    assert explained_by_others(np.eye(4), 1e-3) == pytest.approx([0] * 4)


def test_marks_and_borders_lie_where_the_heads_are() -> None:
    counts = [2, 3, 1]
    chart = matrix_chart(np.eye(6), counts, [(3, 2)], Scale("cosine", -1.0, 1.0, "RdBu_r"))
    assert name_heads(counts) == ["L0H0", "L0H1", "L1H0", "L1H1", "L1H2", "L2H0"]
    assert chart.borders == pytest.approx([0, 2 * chart.cell, 5 * chart.cell, 6 * chart.cell], abs=0.02)
    assert chart.borders[-1] == chart.side
    (mark,) = chart.marks
    assert (mark.x, mark.y) == pytest.approx((2.5 * chart.cell, 3.5 * chart.cell), abs=0.02)
    assert mark.title == "L1H1 is hallucinated like L1H0: cosine 0.000"
    assert [start for start, _ in chart.edges] == pytest.approx([3 * chart.cell], abs=0.02)
    assert [label for _, label in chart.labels] == ["0", "1", "2"]


def test_many_layers_are_numbered_sparsely() -> None:
    chart = matrix_chart(np.eye(48), [1] * 48, [], Scale("cosine", -1.0, 1.0, "RdBu_r"))
    assert [label for _, label in chart.labels] == [str(number) for number in range(0, 48, 2)]
    assert np.diff([middle for middle, _ in chart.labels]).min() >= 17


def test_bars_are_as_high_as_the_shares() -> None:
    chart = bar_chart([[0.5, 0.25], [None]], [{1: 0.125}, {}])
    full = chart.frame.bottom - chart.frame.top
    assert [bar.height for bar in chart.bars] == pytest.approx([0.5 * full, 0.25 * full, 0], abs=0.01)
    assert [bar.reached for bar in chart.bars] == [None, pytest.approx(0.125 * full, abs=0.01), None]
    assert "25.0 % explained by all other heads of its layer; hallucinated, 12.5 % explained by its mix" in chart.bars[1].title
    assert chart.bars[2].title == "L1H0: the only head of its layer"
    assert bar_chart([[0.5, 0.5]], [{0: -0.2, 1: None}]).bars[0].reached == 0
