"""How much memory a graph may take: what this machine has to give when the first one is opened. A graph that wants more is refused."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from ..errors import VitfrostError


@cache
def most_bytes() -> int:
    """The memory that is free on this machine, and that its control group allows, at the first call."""
    found = []
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    with suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min((each for each in found if each > 0), default=1 << 40)


@cache
def bound_onnxruntime(runtime: Any) -> bool:
    """Have ONNX Runtime take memory, also while it folds constants, from one arena of that size; sessions must ask for it.

    False where the process has an arena of its own already, or the version knows none.
    """
    try:
        memory = runtime.OrtMemoryInfo("Cpu", runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT)
        runtime.create_and_register_allocator(memory, runtime.OrtArenaCfg({"max_mem": most_bytes()}))
    except Exception:  # it raises a type of its own
        return False
    return True


def refuse_large_tensors(graph: Any) -> None:
    """Raise VitfrostError for an OpenVINO graph, read and not compiled, that has a tensor larger than the memory; free sides count as 1."""
    for node in graph.get_ops():
        for output in node.outputs():
            shape = output.get_partial_shape()
            if shape.rank.is_dynamic:
                continue
            sides = [side.get_length() if side.is_static else 1 for side in shape]
            if prod(sides) * output.get_element_type().bitwidth > 8 * most_bytes():
                raise VitfrostError(
                    f"the graph has a tensor of {' x '.join(map(str, sides))} ({node.get_friendly_name()[:60]}), which takes more than the "
                    f"{most_bytes() >> 20} MB of memory that are free; export again"
                )
