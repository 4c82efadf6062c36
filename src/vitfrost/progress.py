"""Progress: a bar on a terminal, elsewhere lines of the logger `vitfrost.progress` now and then. Where log messages are shown."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 10.0
SECONDS_OF_SILENCE = {"terminal": 2.0, "file": 5.0}
_LOG = logging.getLogger(__name__)


def say(text: str) -> None:
    """A line of progress, for whoever listens to the logger."""
    _LOG.info(text)


def doing(text: str) -> None:
    """What is being done now (level DEBUG); the command line shows it where it takes long. Nothing: what shows its own progress."""
    _LOG.debug(text)


class _Line(logging.Formatter):
    """Progress as it is, anything more urgent as a message of the program."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"vitfrost: {text}" if record.levelno >= logging.WARNING else text


class _Messages(logging.StreamHandler[Any]):
    """Messages as lines. After seconds of silence, and every ten seconds from then on, a line says what is being done."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(_Line())
        self.now_doing: str | None = None
        self._start = self._last = time.monotonic()
        self._silence = SECONDS_OF_SILENCE["terminal" if self.stream.isatty() else "file"]
        self._wait = self._silence
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Show progress and warnings; remember what is being done."""
        self._last = time.monotonic()
        if record.levelno <= logging.INFO:
            self.now_doing, self._start, self._wait = record.getMessage() or None, self._last, self._silence
        if record.levelno >= logging.INFO:
            super().emit(record)

    def _watch(self) -> None:
        while not self._ended.wait(0.25):
            now = time.monotonic()
            if self.now_doing is not None and now - self._last >= self._wait:
                self._last, self._wait = now, SECONDS_BETWEEN_LINES
                print(f"{self.now_doing}, {now - self._start:.0f} s so far", file=self.stream, flush=True)

    def end(self) -> None:
        """No more lines."""
        self._ended.set()


@contextmanager
def messages_on_stderr() -> Iterator[None]:
    """Show what vitfrost logs, progress and warnings, line by line on stderr until the block ends: what a program does, not a library."""
    logger, handler = logging.getLogger("vitfrost"), _Messages()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield
    finally:
        handler.end()
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class TimeLeft:
    """How long is left, from the work that was done so far by this process."""

    def __init__(self, work: int | float = 0):
        self.left = float(work)
        self._done = 0.0
        self._start = time.monotonic()

    def done(self, work: int | float) -> None:
        """Some work was done now."""
        self._done += work
        self.left -= work

    def skipped(self, work: int | float) -> None:
        """Some work need not be done."""
        self.left -= work

    @property
    def seconds(self) -> float:
        """How long the rest takes at the speed so far; 0 while nothing was done."""
        return self.elapsed * max(self.left, 0) / self._done if self._done > 0 else 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._start

    def text(self) -> str:
        """ ", about 41 min left", or nothing while there is nothing to tell."""
        if self.seconds <= 0:
            return ""
        minutes = self.seconds / 60
        return f", about {minutes:.0f} min left" if minutes >= 1 else ", less than a minute left"


def track(iterable: Iterable[T], total: int | None, text: str, enabled: bool = True) -> Iterator[T]:
    """Yield the items and show how far they are: a bar on a terminal, else a line with the time left every ten seconds."""
    if not enabled:
        yield from iterable
    elif sys.stderr.isatty():
        yield from _with_bar(iterable, total, text)
    else:
        yield from _with_lines(iterable, total, text)


def _with_bar(iterable: Iterable[T], total: int | None, text: str) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(text, total=total)
        for item in iterable:
            yield item
            progress.advance(task)
            doing(text)


def _with_lines(iterable: Iterable[T], total: int | None, text: str) -> Iterator[T]:
    clock, last = TimeLeft(total or 0), 0.0
    for done, item in enumerate(iterable, 1):
        yield item
        clock.done(1)
        if clock.elapsed - last >= SECONDS_BETWEEN_LINES:
            last = clock.elapsed
            say(f"{text}: {done}" if total is None else f"{text}: {done} of {total}, {clock.seconds:.0f} s left")
            doing("")
