"""A search on disk: what was measured, which moves were taken, and how it ended. Written after every measurement, whole each time.

A measurement is known by the state that was measured, so a search that goes on, with the same budget or another, measures nothing twice.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

from ..errors import VitfrostError
from ..files import write_text
from ..identity import Identity
from ..outputs import OutputKind
from ..records import Format
from ..strict import Count, Positive, Strict
from .latency_record import Latencies, LatencyOutcome, LatencySetup
from .moves import MoveKind

log = logging.getLogger("vitfrost")
FORMAT = Format("a search of vitfrost", "vitfrost search")
SUFFIX = ".search.json"


class OtherSearch(VitfrostError):
    """A search's file is of another model, other statistics or other images."""


class SearchImages(Strict):
    """The images that states were measured on."""

    images: Positive
    images_hash: str
    seed: Count
    skipped: Count
    labeled: bool


class SearchSubject(Strict):
    """What measurements depend on; a search with another subject cannot go on from them. `windowed`: None where no heads were windowed,
    which goes with any."""

    model: Identity
    statistics: str
    images: SearchImages
    constants: dict[str, Any]
    compact: dict[str, Any]
    outputs: OutputKind = "classes"
    windowed: dict[str, Any] | None = None


class Measurement(Strict):
    """One measured state: the original (no `move`, empty `state`), or what `move` makes of the state after `step` steps.

    `kl`: mean KL(original || changed) in nats, of features the relative error, with its standard error; agreement and top-1 in percent;
    `macs` per image.
    `latency_share`: of the original's time, as the savings of its changes add up, where the search was for a latency.
    """

    step: Count
    move: str | None
    kind: MoveKind | None = None
    site: str | None = None
    head: Count | None = None
    rank: Positive | None = None
    state: str
    kl: float
    kl_error: float
    agreement: float
    top1: float | None
    macs: Positive
    latency_share: float | None = None
    seconds: float


class Taken(Strict):
    """A move that was taken: `heads` are those that it froze, `increase` is what it added to the divergence; the rest is of the state
    after it. `macs_share` is what is left of the original's multiply-accumulates, `latency_share` of its time by what its changes save
    (None where the search was not for a latency)."""

    move: str
    kind: MoveKind
    site: str
    head: Count | None = None
    heads: tuple[Count, ...] = ()
    rank: Positive | None = None
    state: str
    increase: float
    kl: float
    agreement: float
    top1: float | None
    macs: Positive
    macs_share: float
    latency_share: float | None = None


class LeftOutState(Strict):
    """A state that could not be measured, or (with `setup`) not be timed there: `what` it is, and why. A search that goes on does not try
    it again."""

    state: str
    what: str
    why: str
    setup: LatencySetup | None = None


class SearchEnd(Strict):
    """How the search ended: whether within its budget, and with what."""

    met: bool
    said: str
    drop: float
    macs_share: float
    latency: LatencyOutcome | None = None


class SearchRecord(Strict):
    """A whole search. `budget`: what was asked for last; `latencies`: what was timed, by setup; `left_out`: what failed."""

    kind: Literal["vitfrost search"] = "vitfrost search"
    version: Literal[1] = 1
    subject: SearchSubject
    budget: dict[str, Any]
    threads: Positive
    original_macs: Positive
    measurements: tuple[Measurement, ...] = ()
    latencies: tuple[Latencies, ...] = ()
    left_out: tuple[LeftOutState, ...] = ()
    steps: tuple[Taken, ...] = ()
    outcome: SearchEnd | None = None

    @property
    def alone(self) -> tuple[Measurement, ...]:
        """What every head, layer and rank does alone to the original."""
        return tuple(each for each in self.measurements if each.step == 0 and each.move is not None)


def scratch_of(path: Path) -> Path:
    """Where models that are timed lie while the search whose file is at `path` runs."""
    return path.with_name(f".{path.name}.scratch")


def save_search(record: SearchRecord, path: str | Path) -> None:
    """Write a search, atomically."""
    write_text(path, record.model_dump_json(indent=1) + "\n")


def load_search(path: str | Path) -> SearchRecord:
    """Read a search. Raises VitfrostError, one line, for a file that is missing, damaged, of another kind or a newer version."""
    return FORMAT.load(SearchRecord, path)


class SearchLog:
    """The record of a running search and its place on disk (None: kept in memory only)."""

    def __init__(self, path: Path | None, record: SearchRecord):
        self.path, self.record = path, record
        self._known = {each.state: each for each in record.measurements}

    def known(self, state: str) -> Measurement | None:
        """A measurement of this state, if there is one."""
        return self._known.get(state)

    def add(self, measured: Measurement) -> None:
        """Add a measurement and write the file."""
        self._known[measured.state] = measured
        self.change(measurements=(*self.record.measurements, measured))

    def correct(self, measured: Measurement) -> None:
        """Put a measurement in the place of the one of the same state."""
        self._known[measured.state] = measured
        self.change(measurements=tuple(measured if each.state == measured.state else each for each in self.record.measurements))

    def left_out(self, state: str, setup: LatencySetup | None = None) -> LeftOutState | None:
        """Why this state cannot be measured, or be timed in this setup; None where that is not known."""
        return next((each for each in self.record.left_out if (each.state, each.setup) == (state, setup)), None)

    def leave_out(self, state: str, what: str, why: str, setup: LatencySetup | None = None) -> None:
        """Note a state that failed, and write the file."""
        log.warning("search: %s is left out: %s", what, why)
        self.change(left_out=(*self.record.left_out, LeftOutState(state=state, what=what, why=why, setup=setup)))

    def latencies(self, setup: LatencySetup) -> Latencies:
        """What was timed in this setup."""
        return next((each for each in self.record.latencies if each.setup == setup), Latencies(setup=setup))

    def keep(self, latencies: Latencies) -> None:
        """Put what was timed in a setup in the place of what was there, and write the file."""
        others = (each for each in self.record.latencies if each.setup != latencies.setup)
        self.change(latencies=(*others, latencies))

    def change(self, **changes: Any) -> None:
        """Change parts of the record and write the file."""
        self.record = self.record.model_copy(update=changes)
        if self.path is not None:
            save_search(self.record, self.path)


def open_log(
    path: Path | None, subject: SearchSubject, budget: dict[str, Any], original_macs: int, threads: int, resume: bool
) -> SearchLog:
    """The log of a new search, or with `resume` of one that goes on. Raises VitfrostError where a file is in the way."""
    fresh = SearchRecord(subject=subject, budget=budget, threads=threads, original_macs=original_macs)
    if path is None or not path.exists():
        return SearchLog(path, fresh)
    if not resume:
        raise VitfrostError(f"{path} holds a search already; add --resume to go on with it, or name another file with --record")
    found = load_search(path)
    for field, ours, theirs in ((name, getattr(subject, name), getattr(found.subject, name)) for name in SearchSubject.model_fields):
        if isinstance(theirs, Identity):  # the tag only says where weights came from
            theirs = theirs.model_copy(update={"weight_tag": subject.model.weight_tag})
        if ours != theirs and not (field == "windowed" and None in (ours, theirs)):
            raise OtherSearch(f"{path} is of a search with another {field}; name another file with --record")
    kept = {name: getattr(found, name) for name in ("measurements", "latencies", "left_out")}
    kept["subject"] = subject.model_copy(update={"windowed": subject.windowed or found.subject.windowed})
    return SearchLog(path, fresh.model_copy(update=kept))
