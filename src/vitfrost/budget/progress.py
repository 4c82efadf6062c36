"""How far a search is, on stderr: a line for every step, and a line now and then between them."""

from __future__ import annotations

import time

from ..progress import SECONDS_BETWEEN_LINES, say
from .history import Taken


class SearchProgress:
    """`moves` is how many the first round measures."""

    def __init__(self, moves: int, enabled: bool = True):
        self.moves, self.enabled = moves, enabled
        self._start = self._last = time.monotonic()
        self._step, self._count, self._known = 0, 0, 0

    def measured(self, step: int, known: bool = False) -> None:
        """A move was measured after so many steps; `known`: earlier, so that it took no time."""
        if step != self._step:
            self._step, self._count, self._known = step, 0, 0
        self._count += 1
        self._known += known
        now = time.monotonic()
        if self.enabled and now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            if step == 0:
                left = (now - self._start) / max(self._count - self._known, 1) * max(self.moves - self._count, 0)
                say(f"search: every change alone, {self._count} of {self.moves}, {left:.0f} s left")
            else:
                say(f"search: step {step + 1}, {self._count} changes measured again")

    def took(self, number: int, taken: Taken) -> None:
        """A move was taken."""
        self._last = time.monotonic()
        if self.enabled:
            top1 = "" if taken.top1 is None else f", top-1 {taken.top1:.1f} %"
            latency = "" if taken.latency_share is None else f", latency {taken.latency_share:.3f} predicted"
            say(
                f"search: step {number}, {taken.move}: KL {taken.kl:.3g} nats, agreement {taken.agreement:.1f} %{top1}, "
                f"MACs {taken.macs_share:.3f}{latency} ({self._last - self._start:.0f} s)"
            )
