"""The command `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def report(run: Annotated[Positional[Path], arg(metavar="RUN")], /, out: Path | None = None) -> None:
    """Make one HTML page of a run's folder that needs no network.

    Args:
        run: folder made by `vitfrost run`.
        out: HTML file; report.html in the folder if not given.
    """
    from .. import report as verb

    print(verb(run, out))
