"""Laws of interleaving and of paired ratios."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitfrost.timing import rounds as timing
from vitfrost.timing.rounds import (
    MOST_REPETITIONS,
    Slot,
    paired_ratio,
    percentile,
    seconds_per_image,
    slot_for,
    timed_rounds,
)

FEWER = settings(max_examples=20)  # where one takes tens of milliseconds
TIMES = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=20)
NAMES = st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=6, unique=True)


@FEWER
@given(TIMES, st.integers(0, 2**31), st.floats(0.01, 100))
def test_a_series_is_its_multiple_of_itself(times: list[float], seed: int, factor: float) -> None:
    assert paired_ratio(times, times, seed) == (1.0, 1.0, 1.0)
    assert paired_ratio([factor * one for one in times], times, seed) == pytest.approx((factor, factor, factor))


@given(st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)), min_size=1, max_size=40), st.integers(0, 2**31))
def test_an_interval_holds_its_median_and_lies_within_the_rounds(pairs: list[tuple[float, float]], seed: int) -> None:
    above, below = zip(*pairs, strict=True)
    value, low, high = paired_ratio(above, below, seed)
    ratios = np.array(above) / np.array(below)
    assert value == np.median(ratios)
    assert ratios.min() <= low <= value <= high <= ratios.max()
    assert paired_ratio(above, below, seed) == (value, low, high)


@given(TIMES)
def test_what_slows_a_whole_round_changes_no_ratio(times: list[float]) -> None:
    slowed = [one * (1 + number) for number, one in enumerate(times)]
    halves = [one / 2 for one in slowed]
    assert paired_ratio(halves, slowed, 0)[0] == pytest.approx(0.5)


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        below = rng.lognormal(0, 0.3, 20)
        _, low, high = paired_ratio(list(1.2 * below * rng.lognormal(0, 0.1, 20)), list(below), 0)
        covered += low <= 1.2 <= high
    assert 176 <= covered <= 199  # of 190 expected


@pytest.mark.parametrize(("above", "below"), [([], []), ([1.0], [1.0, 2.0])])
def test_rounds_that_are_no_pairs(above: list[float], below: list[float]) -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_ratio(above, below, 0)


@FEWER
@given(NAMES, st.integers(1, 8), st.integers(0, 2**31))
def test_every_round_runs_everyone_in_an_order_of_its_own(names: list[str], rounds: int, seed: int) -> None:
    ran: list[str] = []
    slots = {name: Slot(lambda name=name: ran.append(name), repetitions=2, lead_in=True) for name in names}
    timed = list(timed_rounds(slots, rounds, seed))
    orders = [list(found) for found in timed]
    assert len(timed) == rounds
    for order in orders:
        assert sorted(order) == sorted(names)
    assert ran == [name for order in orders for name in order for _ in range(3)]  # one that leads in, two that are timed
    assert {len(taken) for found in timed for taken in found.values()} == {2}
    assert [list(found) for found in timed_rounds(slots, rounds, seed)] == orders


def test_orders_differ_between_rounds_and_seeds() -> None:
    slots = {str(number): Slot(lambda: None) for number in range(6)}
    orders = [tuple(found) for found in timed_rounds(slots, 20, 0)]
    assert len(set(orders)) > 15
    assert orders != [tuple(found) for found in timed_rounds(slots, 20, 1)]


def test_the_clock_is_read_around_each_run() -> None:
    ticks = itertools.count()
    timed = list(timed_rounds({"one": Slot(lambda: next(ticks), repetitions=3)}, 2, 0, clock=lambda: float(next(ticks))))
    assert timed == [{"one": [2.0, 2.0, 2.0]}] * 2


@given(st.floats(1e-7, 100))
def test_slow_runs_are_repeated_less(seconds: float) -> None:
    slot = slot_for(lambda: None, seconds)
    assert 1 <= slot.repetitions <= MOST_REPETITIONS
    assert slot.repetitions == 1 or slot.repetitions * seconds < 2 * timing.SLOT_SECONDS
    assert slot.lead_in == (seconds < timing.SLOT_SECONDS)


def test_seconds_are_of_one_image_and_warm_up_is_not_kept() -> None:
    calls = []
    found = seconds_per_image({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, images=4, rounds=5, seed=0, warm_up=2)
    assert {name: len(times) for name, times in found.items()} == {"a": 5, "b": 5}
    assert calls.count("a") == calls.count("b") == 7


@given(TIMES)
def test_percentiles_are_in_order(times: list[float]) -> None:
    found = [percentile(times, share) for share in (0.0, 50.0, 90.0, 100.0)]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (min(times), max(times))
