"""Outcomes that differ only in their calibration seed become one point of a curve, with intervals over seeds and images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool

from ..errors import VitfrostError
from ..evaluation.intervals import Estimate, bootstrap_over_seeds
from ..reporting.curves import CurvePoint
from ..reporting.summary import interval, signed
from ..reporting.tables import TableCell
from .outcome_files import Outcome
from .variants import UNFROZEN, Source


@dataclass(frozen=True, eq=False)
class Point:
    """One plan measured over calibration seeds. Percent and percentage points; intervals are 95 %.

    `options` are those of the plan without the seed; `share` is the share of attention weights frozen (mean over seeds).
    `correct` and `baseline` say for each seed and image what the variant and the unfrozen model of the same seed had right
    (the original, where nothing is quantized).
    """

    block: str
    statistics: str
    statistics_images: int
    options: dict[str, Any]
    seeds: tuple[int, ...]
    outcomes: tuple[Outcome, ...]
    share: float
    correct: Bool[np.ndarray, "seeds images"]
    baseline: Bool[np.ndarray, "seeds images"]

    @property
    def freeze(self) -> float:
        """The share of attention weights that was asked for."""
        return float(self.options["freeze"])

    @property
    def quantized(self) -> bool:
        """Whether weights or activations are below 32 bits."""
        return min(self.options["weight_bits"], self.options["activation_bits"]) < 32

    @cached_property
    def top1(self) -> Estimate:
        """Mean top-1 over the seeds."""
        return bootstrap_over_seeds(self.correct)

    @cached_property
    def difference(self) -> Estimate:
        """Mean over the seeds of the paired difference to the unfrozen model."""
        return bootstrap_over_seeds(self.correct, self.baseline)


def points(outcomes: Iterable[Outcome]) -> list[Point]:
    """Group labeled outcomes by everything but their seed, in the order in which they first appear.

    The unfrozen models of the seeds are a point of the block "unfrozen". Raises VitfrostError where the model to compare with
    has not been measured or was measured on other images.
    """
    everything = list(outcomes)
    baselines = {_model(outcome.variant.source): outcome for outcome in everything if outcome.variant and outcome.variant.block == UNFROZEN}
    original = next((outcome for outcome in everything if outcome.variant is None), None)
    grouped: dict[Any, list[Outcome]] = {}
    for outcome in everything:
        if outcome.variant is not None and outcome.correct is not None:
            grouped.setdefault(outcome.variant.point, []).append(outcome)
    return [_point(group, baselines, original) for group in grouped.values()]


def _model(source: Source) -> tuple[int, int, str, int]:
    return (source.weight_bits, source.activation_bits, source.levels, source.seed)


def _point(group: Sequence[Outcome], baselines: dict[Any, Outcome], original: Outcome | None) -> Point:
    ordered = sorted(group, key=lambda outcome: outcome.variant.seed if outcome.variant else 0)
    correct: list[np.ndarray] = []
    baseline: list[np.ndarray] = []
    for outcome in ordered:
        assert outcome.variant is not None
        assert outcome.correct is not None
        source = outcome.variant.source
        against = baselines.get(_model(source)) if source.quantizes else original
        if against is None or against.correct is None:
            raise VitfrostError(f"the unfrozen model of {source.model} has not been measured; resume the run")
        if against.row.images_hash != outcome.row.images_hash:
            raise VitfrostError(f"{source.model} was measured on other images than its unfrozen model; run the grid anew")
        correct.append(outcome.correct)
        baseline.append(against.correct)
    first = ordered[0].variant
    assert first is not None
    options = {key: value for key, value in first.plan.items() if key != "seed"}
    seeds = tuple(outcome.variant.seed for outcome in ordered if outcome.variant)
    share = float(np.mean([outcome.share for outcome in ordered]))
    return Point(
        first.block, first.source.statistics, first.source.images, options, seeds, tuple(ordered), share,
        np.stack(correct), np.stack(baseline),
    )  # fmt: skip


def between(one: Point, other: Point) -> Estimate:
    """Paired difference of two points, `one` less `other`, on the same images, over the seeds that both have.

    A point of a single seed (nothing quantized) is paired with every seed of the other. Raises VitfrostError when they share no seed.
    """
    common = [seed for seed in one.seeds if seed in other.seeds]
    if len(one.seeds) == 1 or len(other.seeds) == 1:
        rows = max(len(one.seeds), len(other.seeds))
        shape = (rows, one.correct.shape[1])
        return bootstrap_over_seeds(np.broadcast_to(one.correct, shape), np.broadcast_to(other.correct, shape))
    if not common:
        raise VitfrostError(f"'{one.block}' and '{other.block}' share no calibration seed; measure them with the same seeds")
    chosen = [point.correct[[point.seeds.index(seed) for seed in common]] for point in (one, other)]
    return bootstrap_over_seeds(chosen[0], chosen[1])


def select(among: Iterable[Point], block: str | None = None, **wanted: Any) -> list[Point]:
    """Points of a block whose options (or `statistics`, `statistics_images`) have these values, by rising share to freeze."""

    def fits(point: Point) -> bool:
        own = point.options | {"statistics": point.statistics, "statistics_images": point.statistics_images}
        return (block is None or point.block == block) and all(own.get(key) == value for key, value in wanted.items())

    return sorted((point for point in among if fits(point)), key=lambda point: point.freeze)


def percent(share: float) -> str:
    """A share as "20 %"."""
    return f"{100 * share:g} %"


def accuracy(estimate: Estimate) -> TableCell:
    """A percentage with its interval."""
    return TableCell(f"{estimate.value:.2f}", (interval(estimate.interval),) if estimate.interval else ())


def gain(estimate: Estimate) -> TableCell:
    """A difference in points with its interval, both signed."""
    return TableCell(signed(estimate.value), (interval(estimate.interval, True),) if estimate.interval else ())


def missing_seeds(point: Point, expected: int) -> tuple[str, ...]:
    """A note where not all seeds are measured yet."""
    return () if len(point.seeds) >= expected else (f"{len(point.seeds)} of {expected} seeds",)


def reading(x: float, what: str, estimate: Estimate, unit: str, with_sign: bool = False) -> CurvePoint:
    """An estimate as a point of a curve, entitled "entropy: 61.38 % (58.02 to 64.71)"."""
    value = signed(estimate.value) if with_sign else f"{estimate.value:.2f}"
    bounds = f" ({interval(estimate.interval, with_sign)})" if estimate.interval else ""
    return CurvePoint(x, estimate.value, estimate.interval, f"{what}: {value} {unit}{bounds}")
