"""Many damaged files of every kind, in processes with limits: `make fuzz`, or python -m tests.faults.fuzz --cases 10000 --minutes 20.

Every case has a number, from which the damage is drawn: --only KIND --case NUMBER does one again, in this process, and shows its traceback.
The table at the end counts how files ended. What is not "refused" or "accepted" is a finding.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random

from vitfrost.errors import VitfrostError

from .corpus import Kind, damaged_copy, make_corpus

MOST_SECONDS, MOST_MEMORY = 10.0, 2 << 30  # seconds of a processor; six times as many on the clock, which others share
OUTCOMES = ("refused", "accepted", "traceback", "not finite", "silently changed", "long message", "hang", "memory", "crash")


def outcome_of(kind: Kind, scratch: Path, random: Random) -> tuple[str, str]:
    """What became of one damaged file, and a line about it."""
    target, would_be_noticed = damaged_copy(kind, scratch, random)
    try:
        found = kind.read(target)
    except VitfrostError as error:
        return ("refused", str(error)) if len(str(error)) <= 1000 else ("long message", str(error)[:200])
    except AssertionError as error:
        return "not finite", str(error)
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if "vitfrost" in frame.filename]
        last = own[-1] if own else place
        return "traceback", f"{type(error).__name__} {str(error)[:120]!r} at {Path(last.filename).name}:{last.lineno}"
    changed = would_be_noticed and found != kind.read(kind.whole)
    return ("silently changed" if changed else "accepted"), ""


def _work(kinds: list[Kind], requests: Connection, folder: Path) -> None:
    logging.disable()
    folder.mkdir(parents=True, exist_ok=True)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    while True:
        place, number = requests.recv()
        kind = kinds[place]
        requests.send(outcome_of(kind, folder, Random(f"{kind.name} {number}")))


class Worker:
    """A process that reads damaged files, watched from outside."""

    def __init__(self, kinds: list[Kind], folder: Path):
        self._kinds, self._folder = kinds, folder
        self.case: tuple[int, int] | None = None
        self.start()

    def start(self) -> None:
        """A new process."""
        self.connection, other = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("fork").Process(target=_work, args=(self._kinds, other, self._folder), daemon=True)
        self.process.start()
        other.close()

    def give(self, case: tuple[int, int]) -> None:
        """A case to do."""
        self.case, self._since, self._before = case, time.monotonic(), self._processor_seconds()
        self.connection.send(case)

    def ended(self) -> tuple[str, str] | None:
        """The outcome, None while the case goes on. A process beyond its limits is killed, and another takes its place."""
        if self.connection.poll():
            try:
                found: tuple[str, str] = self.connection.recv()
            except (EOFError, ConnectionResetError):
                self.process.join()
                found = "crash", f"the process ended with {self.process.exitcode}"
                self.start()
            return found
        slow = time.monotonic() - self._since > 6 * MOST_SECONDS or self._processor_seconds() - self._before > MOST_SECONDS
        what = "hang" if slow else "memory" if self._memory() > MOST_MEMORY else None
        if what is None:
            return None
        os.kill(self.process.pid or 0, signal.SIGKILL)
        self.process.join()
        self.start()
        return what, ""

    def _processor_seconds(self) -> float:
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return 0.0

    def _memory(self) -> int:
        with contextlib.suppress(OSError, ValueError, IndexError):
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE")
        return 0


def fuzz(kinds: list[Kind], cases: int, seconds: float, workers: int, folder: Path, first: int = 0) -> dict[str, Counter[str]]:
    """Do `cases` in turn over all kinds, within `seconds`; findings are printed as they come. Returns how often each outcome was."""
    counts = {kind.name: Counter[str]() for kind in kinds}
    crew = [Worker(kinds, folder / f"worker{index}") for index in range(workers)]
    end, given = time.monotonic() + seconds, 0
    while any(worker.case for worker in crew) or (given < cases and time.monotonic() < end):
        for worker in crew:
            if worker.case is None and given < cases and time.monotonic() < end:
                worker.give((given % len(kinds), first + given // len(kinds)))
                given += 1
            elif worker.case is not None and (found := worker.ended()) is not None:
                kind, number = kinds[worker.case[0]], worker.case[1]
                counts[kind.name][found[0]] += 1
                if found[0] not in ("refused", "accepted"):
                    print(f"{found[0]}: --only '{kind.name}' --case {number}: {found[1]}", flush=True)
                worker.case = None
        wait([worker.connection for worker in crew if worker.case], timeout=0.05)
    return counts


def table(counts: dict[str, Counter[str]]) -> str:
    """Kinds by outcomes, as a table of Markdown."""
    used = [outcome for outcome in OUTCOMES if outcome in OUTCOMES[:2] or any(count[outcome] for count in counts.values())]
    rows = [f"| {name} | {count.total()} | " + " | ".join(str(count[outcome]) for outcome in used) + " |" for name, count in counts.items()]
    whole = sum(counts.values(), Counter())
    total = f"| all | {whole.total()} | " + " | ".join(str(whole[outcome]) for outcome in used) + " |"
    return "\n".join([f"| file | cases | {' | '.join(used)} |", "|---|" + "---:|" * (len(used) + 1), *rows, total])


def main() -> int:
    """Exit status 1 where something was found."""
    parser = argparse.ArgumentParser(description="Read many damaged files, and count how that ends.")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--first", type=int, default=0, help="number of the first case of each kind")
    parser.add_argument("--only", help="one kind of file")
    parser.add_argument("--case", type=int, help="one case, in this process")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vitfrost-fuzz-") as made:
        folder = Path(made)
        kinds = [kind for kind in make_corpus(folder / "whole") if given.only in (None, kind.name)]
        if given.case is not None:
            target, _ = damaged_copy(kinds[0], folder, Random(f"{kinds[0].name} {given.case}"))
            print(target, kinds[0].read(target))
            return 0
        start = time.monotonic()
        counts = fuzz(kinds, given.cases, 60 * given.minutes, given.workers, folder, given.first)
        print(table(counts))
        print(f"{sum(map(Counter.total, counts.values()))} cases in {time.monotonic() - start:.0f} s")
    return int(any(set(count) - {"refused", "accepted"} for count in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
