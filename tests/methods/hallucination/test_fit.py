"""Closed-form mixes recover what they should; medoids are members that no swap improves."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitfrost.methods.hallucination.fit import (
    HeadChoice,
    choose_explained,
    choose_heads,
    correlations,
    fit_mix,
    fit_pairs,
    head_moments,
    unexplained,
)

CHOICE = HeadChoice(kept=(0, 2, 3), sources=(0, 1))


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixed_logits(seed: int, mix: Tensor, noise: float = 0.0) -> Tensor:
    """Five heads; the others of CHOICE are `mix` of the kept ones, plus a constant of each row, plus noise."""
    logits = drawn(seed, 3, 5, 4, 6)
    made = torch.einsum("qg,bgnm->bqnm", mix, logits[:, list(CHOICE.kept)]) + 10 * drawn(seed + 1, 3, 2, 4, 1)
    logits[:, list(CHOICE.others)] = made + noise * drawn(seed + 2, 3, 2, 4, 6)
    return logits


@given(st.integers(0, 999))
def test_an_exact_mix_is_found_whatever_is_added_to_rows(seed: int) -> None:
    mix = drawn(seed + 5, 2, 3)
    assert torch.allclose(fit_mix(head_moments(mixed_logits(seed, mix)), CHOICE, ridge=0.0), mix, atol=1e-9)


@given(st.integers(0, 999), st.floats(1e-3, 10.0), st.floats(1.1, 10.0))
def test_more_ridge_means_smaller_weights(seed: int, ridge: float, more: float) -> None:
    moments = head_moments(mixed_logits(seed, drawn(seed + 5, 2, 3), noise=0.3))
    norms = [fit_mix(moments, CHOICE, value).norm() for value in (0.0, ridge, ridge * more)]
    assert norms[0] > norms[1] > norms[2]


@given(st.integers(0, 999))
def test_the_fit_is_least_squares_on_centered_logits(seed: int) -> None:
    logits = mixed_logits(seed, drawn(seed + 5, 2, 3), noise=1.0)
    flat = (logits - logits.mean(-1, keepdim=True)).transpose(0, 1).flatten(1)
    expected = torch.linalg.lstsq(flat[list(CHOICE.kept)].T, flat[list(CHOICE.others)].T).solution.T
    assert torch.allclose(fit_mix(head_moments(logits), CHOICE, 0.0), expected, atol=1e-9)
    pairs = fit_pairs(head_moments(logits), CHOICE)
    for row, target in zip(pairs, flat[list(CHOICE.others)], strict=True):
        scalars = [flat[head] @ target / flat[head].square().sum() for head in CHOICE.kept]
        errors = [float((target - scalar * flat[head]).norm()) for scalar, head in zip(scalars, CHOICE.kept, strict=True)]
        best = errors.index(min(errors))
        assert row.nonzero().flatten().tolist() == [best]
        assert torch.isclose(row[best], scalars[best])


def test_dependent_heads_need_no_ridge() -> None:
    logits = mixed_logits(1, drawn(6, 2, 3))
    logits[:, 3] = logits[:, 2]
    moments = head_moments(logits)
    fitted = fit_mix(moments, CHOICE, 0.0)
    assert torch.isfinite(fitted).all()
    assert torch.allclose(fitted[:, 1], fitted[:, 2])  # the smallest solution shares between the two


def test_moments_add_up_over_batches_and_a_negative_ridge_is_refused() -> None:
    logits = drawn(1, 6, 4, 3, 5)
    assert torch.allclose(head_moments(logits[:2]) + head_moments(logits[2:]), head_moments(logits))
    with pytest.raises(ValueError, match="negative"):
        fit_mix(head_moments(logits), HeadChoice((0, 1), (0, 0)), -1.0)


def test_correlations_are_cosines_and_a_constant_head_resembles_only_itself() -> None:
    logits = drawn(1, 2, 3, 4, 5)
    logits[:, 1], logits[:, 2] = -2 * logits[:, 0], 7.0
    expected = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    assert torch.allclose(correlations(head_moments(logits)), expected)


def total_distance(similarities: Tensor, kept: tuple[int, ...]) -> float:
    return float((1 - similarities)[:, list(kept)].amin(1).sum())


@given(st.integers(0, 999), st.integers(1, 7), st.integers(1, 7))
def test_medoids_are_members_that_no_swap_improves(seed: int, heads: int, computed: int) -> None:
    computed = min(computed, heads)
    similarities = correlations(head_moments(drawn(seed, 1, heads, 2, 4)))
    choice = choose_heads(similarities, computed)
    assert choice == choose_heads(similarities, computed)
    assert len(set(choice.kept)) == computed
    assert sorted(choice.order) == list(range(heads))
    for other, source in zip(choice.others, choice.sources, strict=True):
        assert similarities[other, choice.kept[source]] == similarities[other, list(choice.kept)].max()
    for swapped in combinations(range(heads), computed):
        if len(set(swapped) - set(choice.kept)) == 1:
            assert total_distance(similarities, swapped) >= total_distance(similarities, choice.kept) - 1e-9
    if computed == heads:
        assert choice == HeadChoice(tuple(range(heads)), ())


def test_groups_of_like_heads_get_one_member_each() -> None:
    base = drawn(1, 4, 3, 5, 6)
    logits = base[:, [0, 1, 0, 2, 1, 0]] + 0.01 * drawn(2, 4, 6, 5, 6)
    choice = choose_heads(correlations(head_moments(logits)), 3)
    group = [0, 1, 0, 2, 1, 0]
    assert sorted(group[head] for head in choice.kept) == [0, 1, 2]
    assert all(group[other] == group[choice.kept[source]] for other, source in zip(choice.others, choice.sources, strict=True))


def test_a_first_choice_between_two_groups_is_taken_back() -> None:
    """Greedily the head in the middle comes first; each group has its own medoid in the end."""
    places = torch.tensor([-11.0, -10.0, -9.0, 0.0, 9.0, 10.0, 11.0])
    similarities = 1 - (places[:, None] - places).abs() / 22
    kept = choose_heads(similarities, 2).kept
    assert 3 not in kept
    assert total_distance(similarities, kept) == pytest.approx(
        min(total_distance(similarities, pair) for pair in combinations(range(7), 2))
    )


def test_opposite_heads_are_not_alike_and_equal_choices_take_the_lower_number() -> None:
    opposite = torch.tensor([[1.0, -1.0, 0.9], [-1.0, 1.0, -0.9], [0.9, -0.9, 1.0]])
    assert choose_heads(opposite, 2) == HeadChoice((1, 2), (1,))
    assert choose_heads(torch.ones(4, 4), 2).kept == (0, 1)
    with pytest.raises(ValueError, match="5 of 4 heads"):
        choose_heads(torch.ones(4, 4), 5)


@given(st.integers(0, 999), st.integers(2, 6), st.integers(1, 6))
def test_no_swap_explains_more_and_medoids_never_do(seed: int, heads: int, computed: int) -> None:
    computed = min(computed, heads)
    root = torch.randn(heads, heads + 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    moments = root @ root.T
    choice = choose_explained(moments, computed, 1e-3)
    reached = unexplained(moments, choice.kept, 1e-3)
    assert sorted(choice.order) == list(range(heads))
    assert 0 <= reached <= heads - computed
    for out in choice.kept:
        for into in choice.others:
            swapped = sorted([*(head for head in choice.kept if head != out), into])
            assert unexplained(moments, swapped, 1e-3) >= reached - 1e-9
    if heads - computed == 1:  # then dropping one head is an exhaustive search
        assert reached <= unexplained(moments, choose_heads(correlations(moments), computed).kept, 1e-3) + 1e-9


def test_heads_that_others_span_are_the_ones_to_drop() -> None:
    """Heads 1 and 3 are sums and differences of 0, 2 and 4, though they resemble each other most."""
    base = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = torch.stack([base[0], base[0] + base[1] + base[2], base[1], base[0] + base[1] - 0.5 * base[2], base[2]])
    choice = choose_explained(rows @ rows.T, 3, 0.0)
    assert unexplained(rows @ rows.T, choice.kept, 0.0) < 1e-9
