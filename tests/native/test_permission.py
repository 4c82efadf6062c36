"""A processor with tiles in a system that does not give them: the engine goes on with what is left."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

# A filter that answers arch_prctl(ARCH_REQ_XCOMP_PERM, ...) with EPERM, in the words of Linux's packet filters.
SCRIPT = """
import ctypes, struct
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
steps = [(LOAD, 0, 0, 0), (EQUAL, 0, 3, 158), (LOAD, 0, 0, 16), (EQUAL, 0, 1, 0x1023), (RETURN, 0, 0, 0x50001), (RETURN, 0, 0, 0x7FFF0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_void_p)]
call = ctypes.CDLL(None, use_errno=True).prctl
given = Filter(len(steps), ctypes.addressof(program))
if call(38, 1, 0, 0, 0) or call(22, 2, ctypes.byref(given), 0, 0):
    raise SystemExit("no filter")
import vitfrost_native
print(*vitfrost_native.isas())
"""


def test_tiles_that_the_system_refuses_are_left_out(engine: Any) -> None:
    if "amx" not in engine.isas():
        pytest.skip("no AMX on this processor")
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    if "no filter" in ended.stderr:
        pytest.skip("this system takes no filter of calls")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == [name for name in engine.isas() if name != "amx"]
