"""`vitfrost`, killed from within at a moment that no one outside can meet: `killed_at.py EVENT PART WORDS...`.

EVENT is one of the interpreter's audit events about a path (`open`, `os.rename`); the process gets SIGKILL when it is raised for the first
time for a path with PART in it, before what it tells of is done.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any


def main(wanted: str, part: str, words: list[str]) -> None:
    """Run the command line until then."""

    def kill(event: str, arguments: tuple[Any, ...]) -> None:
        if event == wanted and part in str(arguments[0]):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill)
    from vitfrost.cli import main as command

    command(words)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
