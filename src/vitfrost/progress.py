"""Progress on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 10.0


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


def _with_lines(iterable: Iterable[T], total: int | None, text: str) -> Iterator[T]:
    start = last = time.monotonic()
    for done, item in enumerate(iterable, 1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            rest = f"{done}" if total is None else f"{done} of {total}, {(now - start) / done * max(total - done, 0):.0f} s left"
            print(f"{text}: {rest}", file=sys.stderr, flush=True)
