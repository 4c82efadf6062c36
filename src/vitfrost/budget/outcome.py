"""How far a search is, and how its end is told against its budget."""

from __future__ import annotations

from typing import Any

from ..configs import Search
from ..errors import VitfrostError
from ..outputs import OutputKind, distance_text
from ..progress import SECONDS_BETWEEN_LINES, TimeLeft, say
from .greedy import GreedySearch, drop_of
from .history import Taken
from .latency_record import LatencyOutcome


class SearchProgress:
    """`moves` is how many the first round measures."""

    def __init__(self, moves: int, enabled: bool = True, outputs: OutputKind = "classes"):
        self.moves, self.enabled = moves, enabled
        self.outputs: OutputKind = outputs
        self._clock, self._last = TimeLeft(moves), 0.0
        self._step, self._count = 0, 0

    def measured(self, step: int, known: bool = False) -> None:
        """A move was measured after so many steps; `known`: earlier, so that it took no time."""
        if step != self._step:
            self._step, self._count = step, 0
        self._count += 1
        (self._clock.skipped if known else self._clock.done)(1)
        if self.enabled and self._clock.elapsed - self._last >= SECONDS_BETWEEN_LINES:
            self._last = self._clock.elapsed
            if step == 0:
                say(f"search: every change alone, {self._count} of {self.moves}, {self._clock.seconds:.0f} s left")
            else:
                say(f"search: step {step + 1}, {self._count} changes measured again")

    def took(self, number: int, taken: Taken) -> None:
        """A move was taken."""
        self._last = self._clock.elapsed
        if self.enabled:
            top1 = "" if taken.top1 is None else f", top-1 {taken.top1:.1f} %"
            latency = "" if taken.latency_share is None else f", latency {taken.latency_share:.3f} predicted"
            say(
                f"search: step {number}, {taken.move}: {distance_text(self.outputs, taken.kl)}, agreement {taken.agreement:.1f} %{top1}, "
                f"MACs {taken.macs_share:.3f}{latency} ({self._last:.0f} s)"
            )


def target_of(budget: Search) -> float | None:
    """The share of what a search saves, time or multiply-accumulates, that it comes down to."""
    return budget.target_macs if budget.target_latency is None else budget.target_latency


def recorded(budget: Search) -> dict[str, Any]:
    """The budget as the search's file keeps it."""
    latency = {} if budget.runtime is None else {
        "target_latency": budget.target_latency, "runtime": budget.runtime, "threads": budget.threads or 1
    }  # fmt: skip
    shares = {"max_drop": budget.max_drop, "target_macs": budget.target_macs}
    return shares | {"search_over": sorted(budget.over), "rescore": budget.rescore} | latency


def refuse_below(budget: Search, floor: float) -> None:
    """Raise VitfrostError where all changes together cannot come down to the target."""
    target = target_of(budget)
    if target is None or floor <= target:
        return
    what, option = "multiply-accumulates", "Search.target_macs"
    left = f"changed as far as they go leave {floor:.3f}"
    if budget.runtime is not None:
        what, option = f"latency on {budget.runtime}", "Search.target_latency"
        left = f"changed as far as that saves time are predicted to leave {floor:.3f}"
    raise VitfrostError(
        f"the target of {target:g} of the {what} cannot be met: all {', '.join(sorted(budget.over))} {left}; give a higher {option}"
        + ("" if set(budget.over) >= set(Search.over) else " or search over more, Search(over=('heads', 'layers', 'ranks'))")
    )


def said(search: GreedySearch, labeled: bool, macs_share: float, latency: LatencyOutcome | None) -> str:
    """ "MACs 0.910 of the original at a drop of 0.5 points of agreement", or "latency 0.912 (95 % interval 0.905 to 0.921; 0.908 was
    predicted) of the original on openvino-int8, 1 thread, MACs 0.871, at a drop of ..."."""
    drop = f"at a drop of {drop_of(search.effect, search.original):.2f} {points(labeled)}"
    if latency is None:
        return f"MACs {macs_share:.3f} of the original {drop}"
    timed = latency.measured
    if timed is None:
        ratio = "a model that cannot be timed" if search.steps else "latency 1 of the original"
        return f"{ratio} on {latency.setup.said}, {drop}"
    low, high = timed.interval
    interval = f"95 % interval {low:.3f} to {high:.3f}; {latency.predicted:.3f} was predicted"
    return f"latency {timed.ratio:.3f} ({interval}) of the original on {latency.setup.said}, MACs {macs_share:.3f}, {drop}"


def points(labeled: bool) -> str:
    """What a drop is counted in."""
    return "points of top-1" if labeled else "points of agreement"


def how_near(search: GreedySearch, budget: Search, ended: str, labeled: bool, corrections: int) -> str:
    """Why there is no plan: how near the search came, and what to ask for instead."""
    if target_of(budget) is None:
        return f"nothing can be changed within {budget.max_drop:g} {points(labeled)}; allow more Search.max_drop, or more Search.images"
    option = "Search.target_macs" if budget.runtime is None else "Search.target_latency"
    after = f" after {corrections} {'correction' if corrections == 1 else 'corrections'} of what was predicted" if corrections else ""
    if budget.max_drop is None or not search.set_aside:
        return f"the search came to {ended}{after}, and the target is {target_of(budget):g}; give a higher {option}"
    return f"the search came to {ended}{after}; the target is {target_of(budget):g}: allow more Search.max_drop, or a higher {option}"
