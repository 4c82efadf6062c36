"""How far a search is, on stderr: a line for every step, and a line now and then between them."""

from __future__ import annotations

from ..progress import SECONDS_BETWEEN_LINES, TimeLeft, say
from .history import Taken


class SearchProgress:
    """`moves` is how many the first round measures."""

    def __init__(self, moves: int, enabled: bool = True):
        self.moves, self.enabled = moves, enabled
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
                f"search: step {number}, {taken.move}: KL {taken.kl:.3g} nats, agreement {taken.agreement:.1f} %{top1}, "
                f"MACs {taken.macs_share:.3f}{latency} ({self._last:.0f} s)"
            )
