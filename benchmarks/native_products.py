"""The engine's integer products beside oneDNN's: alone, and with what a layer does with their sums.

    python benchmarks/native_products.py --json docs/results/native_products.json

oneDNN is measured through torch (`_int_mm`, `qlinear_pointwise`), the engine through `vf_check_product` (sums alone). What the engine's
layers reach with everything around them stands in the profile of a model (`vitfrost bench --profile`). Seconds of the thread; one thread;
the best of several turns.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import vitfrost_native
from vitfrost_native.library import call

from vitfrost.evaluation.results import environment

TOKENS = 197
SHAPES = {"queries, keys, values": (192, 576), "fc1": (192, 768), "fc2": (768, 192)}


def best(call: Callable[[], Any], turns: int = 5, times: int = 300) -> float:
    """Seconds of one call, on this thread."""
    found = float("inf")
    for _ in range(turns):
        start = time.thread_time()
        for _ in range(times):
            call()
        found = min(found, (time.thread_time() - start) / times)
    return found


def engine(depth: int, columns: int, repeat: int = 300) -> float:
    """GMAC/s of sums alone; what packs the weights is taken off by calling it with another number of turns."""
    generator = np.random.default_rng(0)
    x = generator.integers(0, 255, (TOKENS, depth), dtype=np.uint8)
    weights = generator.integers(0, 15, (columns, depth), dtype=np.uint8)
    zero, sums = np.full(columns, 8, np.float32), np.zeros((TOKENS, columns), np.int32)
    byte, number = ctypes.POINTER(ctypes.c_uint8), ctypes.POINTER(ctypes.c_float)

    def run(turns: int) -> None:
        call(
            "vf_check_product", None, TOKENS, columns, depth, x.ctypes.data_as(byte), 8, weights.ctypes.data_as(byte), 4,
            zero.ctypes.data_as(number), 128, turns, sums.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
        )  # fmt: skip

    seconds = best(lambda: run(1 + repeat), times=3) - best(lambda: run(1), times=3)
    return TOKENS * depth * columns * repeat / seconds / 1e9


def onednn(depth: int, columns: int) -> dict[str, float]:
    """GMAC/s of sums alone, of sums that become codes, and of those with GELU before."""
    signed = torch.randint(-100, 100, (TOKENS, depth), dtype=torch.int8)
    weights = torch.randint(-100, 100, (columns, depth), dtype=torch.int8)
    columns_first = weights.T.contiguous()
    codes = torch.randint(0, 255, (TOKENS, depth), dtype=torch.uint8)
    packed = torch.ops.onednn.qlinear_prepack(weights, [TOKENS, depth])
    scale, zero = torch.rand(columns) + 0.1, torch.zeros(columns, dtype=torch.int32)

    def layer(post: str) -> Any:
        return torch.ops.onednn.qlinear_pointwise(
            codes, 0.1, 3, packed, scale, zero, None, 0.2, 5, torch.uint8, post, [], "none"
        )  # fmt: skip

    calls = {
        "sums": lambda: torch._int_mm(signed, columns_first),
        "codes": lambda: layer("none"),
        "gelu": lambda: layer("gelu"),
    }
    return {name: TOKENS * depth * columns / best(call) / 1e9 for name, call in calls.items()}


def main() -> None:
    """Print the table, and write it where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name, (depth, columns) in SHAPES.items():
        rows.append({"layer": name, "depth": depth, "columns": columns, "engine": engine(depth, columns), "onednn": onednn(depth, columns)})
    found = {"environment": environment(), "isa": vitfrost_native.isas()[0], "tokens": TOKENS, "gmacs_per_second": rows}
    for row in rows:
        print(row["layer"], round(row["engine"]), {name: round(value) for name, value in row["onednn"].items()})
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
