"""The budget that was asked for, checked, and how the end of a search is said against it."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, cast

from ..errors import VitfrostError
from .greedy import Rescore, Search, drop_of
from .latency_record import LatencyOutcome
from .moves import UNITS, Unit
from .runtimes import NAMES, Target, find_target


@dataclass(frozen=True)
class Asked:
    """A budget. `runtime`: what `target_latency` is measured on."""

    max_drop: float | None
    target_macs: float | None
    target_latency: float | None
    runtime: Target | None
    over: frozenset[Unit]
    rescore: Rescore

    @property
    def target(self) -> float | None:
        """The share of what a search saves that it comes down to."""
        return self.target_macs if self.runtime is None else self.target_latency

    def plain(self) -> dict[str, Any]:
        """For the search's record."""
        latency = {} if self.runtime is None else {
            "target_latency": self.target_latency, "runtime": self.runtime.name, "threads": self.runtime.threads
        }  # fmt: skip
        budget = {"max_drop": self.max_drop, "target_macs": self.target_macs, "search_over": sorted(self.over), "rescore": self.rescore}
        return budget | latency


def asked(
    max_drop: float | None,
    target_macs: float | None,
    target_latency: float | None,
    runtime: str | None,
    threads: int | None,
    search_over: Collection[str],
    rescore: Rescore,
) -> Asked:
    """The budget out of a caller's options. Raises VitfrostError, one line, for one that makes no sense."""
    if max_drop is None and target_macs is None and target_latency is None and runtime is None:
        raise VitfrostError("a search needs a budget: give --max-drop POINTS, --target-macs SHARE, or --target-latency SHARE")
    if max_drop is not None and not (math.isfinite(max_drop) and 0 <= max_drop <= 100):
        raise VitfrostError(f"max_drop is {max_drop}; give percentage points, from 0 to 100")
    if target_macs is not None and not 0 < target_macs < 1:
        raise VitfrostError(f"target_macs is {target_macs}; give a share of the original's multiply-accumulates, between 0 and 1")
    if target_latency is not None and not 0 < target_latency < 1:
        raise VitfrostError(f"target_latency is {target_latency}; give a share of the original's latency, between 0 and 1")
    if target_latency is not None and target_macs is not None:
        raise VitfrostError("--target-macs and --target-latency are two searches; give one of them, and --max-drop beside it if you like")
    if target_latency is not None and runtime is None:
        raise VitfrostError(f"--target-latency is of a runtime; give --runtime, one of {', '.join(NAMES)}")
    if target_latency is None and (runtime is not None or threads is not None):
        option = "--runtime" if runtime is not None else "--threads"
        raise VitfrostError(f"{option} goes with --target-latency SHARE; give that too, or leave {option} out")
    unknown = [unit for unit in search_over if unit not in UNITS]
    if unknown or not search_over:
        shown = f"'{unknown[0]}'" if unknown else "nothing"
        raise VitfrostError(f"search_over is {shown}; it should be some of {', '.join(UNITS)}")
    found = None if runtime is None else find_target(runtime, 1 if threads is None else threads)
    over = frozenset(cast(Collection[Unit], search_over))
    return Asked(max_drop, target_macs, target_latency, found, over, rescore)


def refuse_below(budget: Asked, floor: float) -> None:
    """Raise VitfrostError where all changes together cannot come down to the target."""
    if budget.target is None or floor <= budget.target:
        return
    what, option = "multiply-accumulates", "--target-macs"
    left = f"changed as far as they go leave {floor:.3f}"
    if budget.runtime is not None:
        what, option = f"latency on {budget.runtime.name}", "--target-latency"
        left = f"changed as far as that saves time are predicted to leave {floor:.3f}"
    raise VitfrostError(
        f"the target of {budget.target:g} of the {what} cannot be met: all {', '.join(sorted(budget.over))} {left}; give a higher {option}"
        + ("" if len(budget.over) == len(UNITS) else " or search over more (--search-over heads layers ranks)")
    )


def said(search: Search, labeled: bool, macs_share: float, latency: LatencyOutcome | None) -> str:
    """ "MACs 0.910 of the original at a drop of 0.5 points of agreement", or "latency 0.912 (95 % interval 0.905 to 0.921; 0.908 was
    predicted) of the original on openvino-int8, 1 thread, MACs 0.871, at a drop of ..."."""
    drop = f"at a drop of {drop_of(search.effect, search.original):.2f} {points(labeled)}"
    if latency is None:
        return f"MACs {macs_share:.3f} of the original {drop}"
    timed = latency.measured
    if timed is None:
        return f"latency 1 of the original on {latency.setup.said}, {drop}"
    low, high = timed.interval
    interval = f"95 % interval {low:.3f} to {high:.3f}; {latency.predicted:.3f} was predicted"
    return f"latency {timed.ratio:.3f} ({interval}) of the original on {latency.setup.said}, MACs {macs_share:.3f}, {drop}"


def points(labeled: bool) -> str:
    """What a drop is counted in."""
    return "points of top-1" if labeled else "points of agreement"


def how_near(search: Search, budget: Asked, ended: str, labeled: bool, corrections: int) -> str:
    """Why there is no plan: how near the search came, and what to ask for instead."""
    if budget.target is None:
        return f"nothing can be changed within {budget.max_drop:g} {points(labeled)}; allow more (--max-drop), or give more --search-images"
    option = "--target-macs" if budget.runtime is None else "--target-latency"
    after = f" after {corrections} {'correction' if corrections == 1 else 'corrections'} of what was predicted" if corrections else ""
    if budget.max_drop is None or not search.set_aside:
        return f"the search came to {ended}{after}, and the target is {budget.target:g}; give a higher {option}"
    return f"the search came to {ended}{after}; the target is {budget.target:g}: allow a larger --max-drop, or give a higher {option}"
