"""Exported folders beside each other: time in interleaved rounds, and ratios to the first with 95 % intervals.

    python benchmarks/native_folders.py deploy-openvino:bf16 deploy-native --threads 1 2 --batch 1 16 --json FILE

A folder may have a precision hint behind a colon. `vitfrost bench` makes all peers of a model itself; this is for folders, of
models so large that their peers take long to make. Nothing else may run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from vitfrost.evaluation.results import environment
from vitfrost.runtime.session import open_export
from vitfrost.timing.rounds import paired_ratio

LEAST_SECONDS = 0.03  # of a turn


def measure(folders: list[str], threads: int, batch: int, rounds: int) -> list[dict[str, object]]:
    """A row for every folder: milliseconds of a batch, and the ratio of its time to the first folder's."""
    sessions = {each: open_export(each.partition(":")[0], threads, each.partition(":")[2] or None) for each in folders}
    size = next(iter(sessions.values())).geometry.input_size
    random = np.random.default_rng(0)
    pixels = random.standard_normal((batch, 3, *size)).astype(np.float32)
    times: dict[str, list[float]] = {each: [] for each in folders}
    for session in sessions.values():
        session.run(pixels)
    for _ in range(rounds):
        for each in random.permutation(folders):
            start, turns = time.perf_counter(), 0
            while turns == 0 or time.perf_counter() - start < LEAST_SECONDS:
                sessions[each].run(pixels)
                turns += 1
            times[each].append((time.perf_counter() - start) / turns)
    rows: list[dict[str, object]] = []
    for each, session in sessions.items():
        middle, low, high = paired_ratio(times[each], times[folders[0]], 0)
        rows.append(
            {
                "folder": Path(each.partition(":")[0]).name, "model": session.about["model"]["name"], "image_size": list(size[-2:]),
                "runtime": session.runtime, "precision": session.precision, "threads": threads, "batch": batch, "kind": "executed",
                "p50_ms": round(1e3 * float(np.median(times[each])), 4), "to_first": round(middle, 4),
                "interval": [round(low, 4), round(high, 4)], "rounds": rounds,
            }
        )  # fmt: skip
    return rows


def main() -> None:
    """Print a row for every folder, and write them where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for threads in options.threads:
        for batch in options.batch:
            for row in measure(options.folders, threads, batch, options.rounds):
                rows.append(row)
                print(
                    row["folder"],
                    row["precision"],
                    f"{threads} threads, batch {batch}:",
                    row["p50_ms"],
                    "ms",
                    row["to_first"],
                    row["interval"],
                )
    if options.json:
        options.json.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
