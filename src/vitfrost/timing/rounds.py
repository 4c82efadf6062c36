"""Timing several variants against each other: interleaved in random order in one process, compared by paired ratios.

A round runs every variant once, in an order of its own; what the machine does besides then meets all variants
alike, and the ratio of two times of one round hardly depends on it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice

import numpy as np

from ..progress import track
from .load import OtherLoad

WARM_UP = 2
SLOT_SECONDS = 0.2
MOST_REPETITIONS = 20
DRAWS = 2000


@dataclass(frozen=True)
class Slot:
    """What a variant does when it is its turn in a round: `repetitions` timed runs, after one that is not timed if `lead_in`."""

    run: Callable[[], object]
    repetitions: int = 1
    lead_in: bool = False


def slot_for(run: Callable[[], object], seconds: float) -> Slot:
    """The slot of a variant whose run takes about `seconds`.

    Short runs are repeated to fill about `SLOT_SECONDS`, and led in by one that is not timed: it brings the variant's weights back
    into the caches and lets threads of the variant before end their spinning, which would be a large part of a short run.
    """
    repetitions = min(max(round(SLOT_SECONDS / max(seconds, 1e-9)), 1), MOST_REPETITIONS)
    return Slot(run, repetitions, lead_in=seconds < SLOT_SECONDS)


def tried_slot(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> Slot:
    """The slot of a variant that is run twice to see how long it takes: the first run may compile and allocate."""
    run()
    start = clock()
    run()
    return slot_for(run, clock() - start)


@dataclass(frozen=True)
class Interleaved:
    """Seconds of every timed run of each round, by variant; and the cores that other processes kept busy meanwhile."""

    seconds: dict[str, list[list[float]]]
    other_load: float | None


def interleaved(
    slots: Mapping[str, Slot],
    rounds: int | Callable[[float], int],
    seed: int,
    text: str = "",
    progress: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Interleaved:
    """Time variants in rounds. `WARM_UP` rounds are not kept; `rounds`: how many are, or how many for the seconds that one takes."""
    running = timed_rounds(slots, None, seed, clock)
    start = clock()
    for _ in islice(running, WARM_UP):
        pass
    number = rounds if isinstance(rounds, int) else rounds((clock() - start) / WARM_UP)
    seconds: dict[str, list[list[float]]] = {name: [] for name in slots}
    others = OtherLoad()
    for found in track(islice(running, number), number, text, progress):
        for name, taken in found.items():
            seconds[name].append(taken)
    return Interleaved(seconds, others.cores())


def timed_rounds(
    slots: Mapping[str, Slot], rounds: int | None, seed: int, clock: Callable[[], float] = time.perf_counter
) -> Iterator[dict[str, list[float]]]:
    """Seconds of every timed run of each round (None: without end), by variant, in the order in which the round ran them; the orders are
    drawn by `seed`."""
    order = random.Random(seed)
    for _ in count() if rounds is None else range(rounds):
        yield {name: _timed(slots[name], clock) for name in order.sample(list(slots), len(slots))}


def _timed(slot: Slot, clock: Callable[[], float]) -> list[float]:
    if slot.lead_in:
        slot.run()
    seconds = []
    for _ in range(slot.repetitions):
        start = clock()
        slot.run()
        seconds.append(clock() - start)
    return seconds


def seconds_per_image(
    variants: Mapping[str, Callable[[], object]], images: int, rounds: int, seed: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds per image of every variant and round, one run each; the first `warm_up` rounds are not kept."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    slots = {name: Slot(run) for name, run in variants.items()}
    for number, timed in enumerate(timed_rounds(slots, rounds + warm_up, seed)):
        if number >= warm_up:
            for name, (taken,) in timed.items():
                seconds[name].append(taken / images)
    return seconds


def paired_ratio(above: Sequence[float], below: Sequence[float], seed: int) -> tuple[float, float, float]:
    """Median of the ratios within rounds and its 95 % bootstrap interval (percentiles of resampled rounds).

    Raises ValueError unless both have a time for each of the same rounds, at least one.
    """
    if len(above) != len(below) or len(above) == 0:
        raise ValueError(f"{len(above)} and {len(below)} rounds cannot be paired")
    pairs = np.asarray(above, dtype=np.float64) / np.asarray(below, dtype=np.float64)
    middle = float(np.median(pairs))
    draws = np.median(np.random.default_rng(seed).choice(pairs, (DRAWS, len(pairs))), axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return middle, min(float(low), middle), max(float(high), middle)


def percentile(seconds: Sequence[float], share: float) -> float:
    """The time that `share` percent of the runs do not exceed, interpolated between runs."""
    return float(np.percentile(np.asarray(seconds, dtype=np.float64), share))
