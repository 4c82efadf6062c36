"""The command `demo`."""

from __future__ import annotations

from pathlib import Path


def demo(out: Path = Path("vitfrost-demo")) -> None:
    """Run the whole path on a bundled digits model: no network, no data of yours, less than a minute.

    Args:
        out: folder for the run.
    """
    from .. import demo as verb

    verb(out)
