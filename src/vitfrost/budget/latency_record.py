"""What was timed for a search, on disk: what changes save on a runtime, and whole models that the search came to."""

from __future__ import annotations

from typing import Literal

from ..strict import Count, Positive, Strict


class LatencySetup(Strict):
    """What times depend on beside the model: the runtime at its precision, threads, versions, and the processor."""

    runtime: str
    threads: Positive
    versions: str
    cpu: str

    @property
    def said(self) -> str:
        """ "onnxruntime-int8, 1 thread"."""
        return f"{self.runtime}, {self.threads} {'thread' if self.threads == 1 else 'threads'}"


def change_name(kind: str, amount: int) -> str:
    """ "3 frozen heads", "1 windowed head", "rank 96"."""
    what = {"heads": "frozen", "windows": "windowed"}.get(kind)
    return f"rank {amount}" if what is None else f"{amount} {what} {'head' if amount == 1 else 'heads'}"


class TimedChange(Strict):
    """What a change saves at one of the sites of a group, batch 1.

    All `sites` had `amount` frozen or windowed heads, or that rank, and were timed interleaved with the original. `saved`: the share of the
    original's time that one site saves, the median of the rounds with its 95 % interval; `saved_ms`: that share of the original's median
    time, milliseconds. `other_load`: cores that other processes kept busy meanwhile.
    """

    kind: Literal["heads", "windows", "rank"]
    sites: tuple[str, ...]
    amount: Positive
    saved: float
    interval: tuple[float, float]
    saved_ms: float
    rounds: Positive
    other_load: float | None = None


class TimedModel(Strict):
    """A whole model that a search came to, timed interleaved with the original: the median of the rounds' ratios with its 95 % interval,
    and the ratio that the changes' savings predicted."""

    state: str
    predicted: float
    ratio: float
    interval: tuple[float, float]
    ms: float
    original_ms: float
    rounds: Positive
    other_load: float | None = None


class Latencies(Strict):
    """All that was timed in one setup."""

    setup: LatencySetup
    original_ms: float | None = None
    changes: tuple[TimedChange, ...] = ()
    models: tuple[TimedModel, ...] = ()

    def change(self, kind: str, sites: tuple[str, ...], amount: int) -> TimedChange | None:
        """What was timed of a change at these sites."""
        return next((each for each in self.changes if (each.kind, each.sites, each.amount) == (kind, sites, amount)), None)

    def model(self, state: str) -> TimedModel | None:
        """The model of this state, if it was timed."""
        return next((each for each in self.models if each.state == state), None)


class LatencyOutcome(Strict):
    """How a search for a latency ended: the share of the original's time that the changes' savings predict, and what was measured (None
    where nothing was changed). `corrections`: how often the search went on because the prediction was too good; `given_back`: how many of
    its last steps were not needed."""

    setup: LatencySetup
    predicted: float
    measured: TimedModel | None
    corrections: Count
    given_back: Count = 0
