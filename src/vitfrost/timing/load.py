"""What else the machine did while something was timed."""

from __future__ import annotations

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")


class OtherLoad:
    """Counts, from its making on, the cores that other processes kept busy."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._all, self._own = _machine_seconds(), _own_seconds()

    def cores(self) -> float | None:
        """Cores kept busy on average by anything but this process and its ended children; None where the system does not tell."""
        now = _machine_seconds()
        if now is None or self._all is None:
            return None
        others = now - self._all - (_own_seconds() - self._own)
        return max(0.0, others / max(time.monotonic() - self._start, 1e-9))


def _own_seconds() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _machine_seconds() -> float | None:
    """Seconds that all cores together were busy since the machine started (time taken by a hypervisor counts)."""
    try:
        fields = [int(field) for field in _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
        user, nice, system, _idle, _waiting, interrupts, soft, stolen = fields
        return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None
