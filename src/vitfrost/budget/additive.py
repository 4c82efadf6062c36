"""A model of latency: what changes save at single sites adds up. Formulas only; times are shares of the original model's.

Sites of equal shape form a group, and save alike. What k frozen heads of a site, or a rank of a block, save was measured by changing all
sites of its group at once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

# Up to so many heads every number of frozen ones is measured.
FEW_HEADS = 4


def groups(shapes: Sequence[Hashable]) -> list[list[int]]:
    """The places of equal shapes, groups in the order of their first place."""
    found: dict[Hashable, list[int]] = {}
    for place, shape in enumerate(shapes):
        found.setdefault(shape, []).append(place)
    return list(found.values())


def counts_to_measure(heads: int, single: bool) -> list[int]:
    """The numbers of frozen, or of windowed, heads that are measured: all of a few; of more, one, half of them, all but one and all; where
    no single heads are frozen (`single` unset), all."""
    if not single:
        return [heads]
    return list(range(1, heads + 1)) if heads <= FEW_HEADS else [1, heads // 2, heads - 1, heads]


def rotated(heads: int, count: int, turn: int) -> frozenset[int]:
    """`count` of a site's heads, beginning with another one at every site of a group, so that all kinds of constants have their share."""
    return frozenset((turn + number) % heads for number in range(count))


def filled(heads: int, measured: Mapping[int, float]) -> tuple[float, ...]:
    """What 0, 1, ... all frozen heads save: as measured, and on straight lines between. Raises ValueError unless all heads are measured."""
    if heads not in measured:
        raise ValueError(f"what {heads} frozen heads save was not measured")
    known = {0: 0.0} | {count: saved for count, saved in measured.items() if 0 < count <= heads}
    counts = sorted(known)
    made = []
    for count in range(heads + 1):
        below = max(each for each in counts if each <= count)
        above = min(each for each in counts if each >= count)
        part = 0.0 if above == below else (count - below) / (above - below)
        made.append(known[below] + part * (known[above] - known[below]))
    return tuple(made)


@dataclass(frozen=True)
class AdditiveLatency:
    """`heads[place][k]`: the share of the original's time that k frozen heads of an attention site save; `ranks[place][rank]`: that a rank
    of a block saves; `windows[place][k]`: that k windowed heads save (0, if not given). All may be negative."""

    heads: tuple[tuple[float, ...], ...]
    ranks: tuple[Mapping[int, float], ...]
    windows: tuple[tuple[float, ...], ...] = ()

    def share(self, frozen: Sequence[int], ranks: Sequence[int | None], windowed: Sequence[int] = ()) -> float:
        """What is left of the time with so many frozen and windowed heads per site, and these ranks (None: whole) per block."""
        saved = sum(saves[count] for saves, count in zip(self.heads, frozen, strict=True))
        saved += sum(saves[count] for saves, count in zip(self.windows, windowed, strict=True)) if self.windows else 0.0
        return 1.0 - saved - sum(saves[rank] for saves, rank in zip(self.ranks, ranks, strict=True) if rank is not None)

    def floor(self, *, single: bool, whole: bool, factorize: bool, window: bool = False) -> float:
        """The share that steps which each save something come down to: single heads frozen, all that are left in a layer, ranks, single
        heads windowed."""
        saved = sum(self._most(place, single, whole, window) for place in range(len(self.heads)))
        return 1.0 - saved - sum(max(0.0, *saves.values()) for saves in self.ranks if factorize and saves)

    def _most(self, place: int, single: bool, whole: bool, window: bool) -> float:
        """What such steps save at a site at most, over all that they reach: numbers of frozen and of windowed heads."""
        heads = self.heads[place]
        near = self.windows[place] if self.windows else (0.0,) * len(heads)
        every, reached, left = len(heads) - 1, set(), [(0, 0)]
        while left:
            frozen, windowed = here = left.pop()
            reached.add(here)
            steps = [(frozen + 1, windowed), (frozen + 1, windowed - 1)] * single + [(every, 0)] * whole + [(frozen, windowed + 1)] * window
            steps = [(k, w) for k, w in steps if w >= 0 and k + w <= every and heads[k] + near[w] > heads[frozen] + near[windowed]]
            left += [step for step in steps if step not in reached]
        return max(heads[k] + near[w] for k, w in reached)


def corrected_target(target: float, predicted: float, measured: float) -> float | None:
    """The predicted share to come down to where the model predicted `predicted` for a state that was measured at `measured`: what the
    model saves times (1 - measured) / (1 - predicted) is what is saved. None where nothing was saved, or nothing predicted."""
    if measured >= 1 or predicted >= 1:
        return None
    return 1 - (1 - target) * (1 - predicted) / (1 - measured)


def fewest_steps(measured: Callable[[int], float], target: float, missed: int, met: int, spare: float) -> int:
    """The steps to keep of a search that came to the target: by bisection between the `missed` steps that do not reach it and the `met`
    ones that do, fewer ones that reach it too. `measured` gives the share of the time that is left after so many steps.

    What is returned is a number of steps that was measured at most at the target. Either one step less was measured above it (or is
    `missed`), or it is less than `spare` below it.
    """
    while met - missed > 1 and target - measured(met) > spare:
        middle = (missed + met) // 2
        missed, met = (missed, middle) if measured(middle) <= target else (middle, met)
    return met
