"""The additive model of latency, as laws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitfrost.budget.additive import AdditiveLatency, corrected_target, counts_to_measure, fewest_steps, filled, groups, rotated
from vitfrost.budget.latency import groups_of, state_of
from vitfrost.budget.moves import Moves
from vitfrost.vit.families import find_sites
from vitfrost.vit.lean import block_cut_short

savings = st.floats(-0.01, 0.02)
tables = st.lists(st.lists(savings, min_size=1, max_size=4).map(lambda saves: (0.0, *saves)), min_size=1, max_size=4).map(tuple)
blocks = st.lists(st.dictionaries(st.sampled_from([8, 11, 12]), savings, min_size=1), max_size=3).map(tuple)


@given(tables, blocks, st.data())
def test_what_sites_save_adds_up(heads: Any, ranks: Any, data: st.DataObject) -> None:
    model = AdditiveLatency(heads, ranks)
    frozen = [data.draw(st.integers(0, len(saves) - 1)) for saves in heads]
    chosen = [data.draw(st.sampled_from([None, *saves])) for saves in ranks]
    nothing, whole = [0] * len(heads), [None] * len(ranks)
    assert model.share(nothing, whole) == 1
    alone = [1 - model.share([count if n == place else 0 for n in range(len(heads))], whole) for place, count in enumerate(frozen)]
    alone += [1 - model.share(nothing, [rank if n == place else None for n in range(len(ranks))]) for place, rank in enumerate(chosen)]
    assert model.share(frozen, chosen) == pytest.approx(1 - sum(alone))


@given(tables, blocks, st.booleans(), st.booleans(), st.booleans())
def test_the_floor_is_what_steps_that_save_something_reach(heads: Any, ranks: Any, single: bool, whole: bool, factorize: bool) -> None:
    """Against brute force over all ways that go down with every step."""
    model = AdditiveLatency(heads, ranks)

    def reached(saves: tuple[float, ...], count: int) -> float:
        """The most that is saved on ways from here."""
        nexts = [count + 1] * single + [len(saves) - 1] * whole
        return max([saves[count], *(reached(saves, after) for after in nexts if after < len(saves) and saves[after] > saves[count])])

    best = sum(reached(saves, 0) for saves in heads) + sum(max(0.0, *saves.values()) for saves in ranks if factorize)
    assert model.floor(single=single, whole=whole, factorize=factorize) == pytest.approx(1 - best)


@given(st.integers(1, 16), st.booleans(), st.data())
def test_what_is_not_measured_lies_on_a_line_between_what_is(heads: int, single: bool, data: st.DataObject) -> None:
    counts = counts_to_measure(heads, single)
    assert counts == sorted(set(counts))
    assert counts[-1] == heads
    assert len(counts) <= 4
    measured = {count: data.draw(savings) for count in counts}
    found = filled(heads, measured)
    assert len(found) == heads + 1
    assert found[0] == 0
    assert all(found[count] == pytest.approx(saved) for count, saved in measured.items())
    for count in set(range(1, heads)) - set(counts):
        assert found[count] - found[count - 1] == pytest.approx(found[count + 1] - found[count])
    with pytest.raises(ValueError, match="was not measured"):
        filled(heads + 1, measured)


@given(st.integers(1, 12), st.data())
def test_groups_give_every_head_its_turn(heads: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, heads))
    turns = [rotated(heads, count, turn) for turn in range(heads)]
    assert {len(chosen) for chosen in turns} == {count}
    assert all(sum(head in chosen for chosen in turns) == count for head in range(heads))
    assert groups(["a", "b", "a", "c", "b"]) == [[0, 2], [1, 4], [3]]


@given(st.floats(0.5, 0.99), st.floats(0.5, 0.999), st.floats(0.5, 0.999))
def test_a_correction_is_exact_where_savings_are_wrong_by_a_factor(target: float, predicted: float, measured: float) -> None:
    wanted = corrected_target(target, predicted, measured)
    assert wanted is not None
    factor = (1 - measured) / (1 - predicted)
    assert 1 - factor * (1 - wanted) == pytest.approx(target)
    if predicted <= target < measured:  # a miss: on from there
        assert wanted < predicted
    assert corrected_target(target, predicted, 1.0) is None
    assert corrected_target(target, 1.0, measured) is None


EXPECTED = {
    "cls": [("heads", 3, (1, 2, 3)), ("rank", 3, (144, 128, 96))],
    "distilled": [("heads", 2, (1, 2, 3)), ("rank", 2, (144, 128, 96))],
    "swin": [("heads", 2, (1, 2, 3)), ("heads", 2, (1, 3, 5, 6)), ("rank", 2, (36, 32, 24)), ("rank", 2, (72, 64, 48))],
    "pvt": [
        ("heads", 2, (1,)), ("heads", 2, (1, 2)), ("heads", 2, (1, 2, 4, 5)), ("heads", 2, (1, 4, 7, 8)),
        ("rank", 2, (48, 43, 32)), ("rank", 2, (96, 85, 64)), ("rank", 2, (240, 213, 160)), ("rank", 2, (384, 341, 256)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("which", list(EXPECTED))
def test_sites_of_equal_shape_are_a_group(models: Any, which: str) -> None:
    sites = find_sites(models[which].model.module)
    moves = Moves(sites.attention, sites.feed_forward, ("heads", "layers", "ranks"))
    found = groups_of(moves)
    assert [(group.kind, len(group.sites), group.amounts) for group in found] == EXPECTED[which]
    places = [(group.kind, place) for group in found for place in group.places]
    attention, blocks = range(len(sites.attention)), range(len(sites.feed_forward))
    assert sorted(places) == [*(("heads", place) for place in attention), *(("rank", place) for place in blocks)]
    for group in found:
        for amount in group.amounts:
            state = state_of(group, amount, moves)
            changed = {n for n, heads in enumerate(state.heads) if heads} | {n for n, rank in enumerate(state.ranks) if rank is not None}
            assert changed == set(group.places)
            assert {len(heads) for heads in state.heads} <= ({0, amount} if group.kind == "heads" else {0})
    assert [group.amounts for group in groups_of(Moves(sites.attention, sites.feed_forward, ("layers",)))] == [
        group.amounts[-1:] for group in found if group.kind == "heads"
    ]


def test_a_block_that_a_lean_graph_cuts_short_is_a_group_of_its_own(models: Any) -> None:
    loaded = models["cls"].model
    sites = find_sites(loaded.module)
    moves, last = Moves(sites.attention, sites.feed_forward, ("heads", "layers", "ranks")), len(sites.attention) - 1
    apart = block_cut_short(loaded.module)
    assert apart == f"blocks.{last}"
    places = [(group.kind, group.places) for group in groups_of(moves, apart)]
    assert places == [(kind, where) for kind in ("heads", "rank") for where in (tuple(range(last)), (last,))]
    assert block_cut_short(models["swin"].model.module) is None


@given(st.lists(st.floats(0.3, 1.1), min_size=1, max_size=40), st.floats(0.3, 1), st.floats(0, 0.05), st.data())
def test_steps_that_the_target_does_not_need_are_given_back(shares: list[float], target: float, spare: float, data: st.DataObject) -> None:
    shares[-1] = min(shares[-1], target)
    missed = data.draw(st.sampled_from([0, *(count for count, share in enumerate(shares[:-1], 1) if share > target)]))
    asked: list[int] = []

    def measured(count: int) -> float:
        asked.append(count)
        return shares[count - 1]

    kept = fewest_steps(measured, target, missed, len(shares), spare)
    assert missed < kept <= len(shares)
    assert shares[kept - 1] <= target
    assert kept - 1 == missed or shares[kept - 2] > target or target - shares[kept - 1] <= spare
    assert len(set(asked)) <= 2 + np.log2(len(shares))  # whole models are timed, half a minute each


@given(st.lists(st.floats(0.001, 0.1), min_size=1, max_size=30), st.floats(0.3, 0.99))
def test_where_every_step_saves_the_fewest_are_kept(saved: list[float], target: float) -> None:
    shares = 1 - np.cumsum(saved)
    wanted = next((count for count, share in enumerate(shares, 1) if share <= target), None)
    if wanted is not None:
        assert fewest_steps(lambda count: float(shares[count - 1]), target, 0, len(shares), 0.0) == wanted
