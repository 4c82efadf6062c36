"""What every refusal has in common: one line on stderr, exit status 2, nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

# Parts of warnings that may come before a refusal.
WARNINGS = ("are resized to", "are too many to count each")


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes (None for folders), hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture
def refused(call: Callable, tmp_path: Path) -> Callable[..., str]:
    """Run a command line that must fail as it should; its one line is returned."""

    def refuse(*words: object) -> str:
        before = contents(tmp_path)
        called = call(*words)
        assert called.status == 2, called
        *earlier, line = called.err.splitlines(keepends=True)
        assert line.startswith("vitfrost: ")
        told = [said for said in earlier if not any(warning in said for warning in WARNINGS)]
        assert not any(said.startswith(("vitfrost: ", "Traceback")) for said in told)  # what was logged until then is no refusal
        assert called.out == ""
        assert contents(tmp_path) == before
        return line

    return refuse
