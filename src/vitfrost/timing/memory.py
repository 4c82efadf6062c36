"""Peak memory of a model on a runtime: the growth of a process of its own that opens the model and runs it once.

The process has imported the runtime before it begins to count, so libraries are not part of the figure; weights, what the runtime
makes of them while it opens the model, and activations are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from .sessions import Opening

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
SECONDS = 900


def peak_memory(opening: Opening, batch: int) -> int | None:
    """Bytes that a process grows by when it opens the model and runs a batch; None where that cannot be found out."""
    if not _STATUS.is_file():
        return None
    command = [sys.executable, "-m", "vitfrost.timing.memory", json.dumps(opening.plain()), str(batch)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=dict(os.environ), check=True)
        return int(ended.stdout.split()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError):
        return None


def _bytes_of(field: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise ValueError(field)


def _growth(opening: Opening, batch: int) -> int:
    opening.import_runtime()
    _RESET.write_text("5", encoding="ascii")  # the peak starts again from what is held now (proc(5))
    before = _bytes_of("VmRSS")
    session = opening.open()
    session.run(opening.pixels(batch, seed=0))
    return max(0, _bytes_of("VmHWM") - before)


def main() -> None:
    """Open what the first argument says, run a batch of the second, print the growth in bytes."""
    opening, batch = Opening.from_plain(_plain(sys.argv[1])), int(sys.argv[2])
    print(_growth(opening, batch))


def _plain(text: str) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(text)
    return plain


if __name__ == "__main__":
    main()
