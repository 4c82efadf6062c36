"""The whole path in a process of its own, and which of the process's own things it has changed: names on standard output.

`test_globals.py` runs it: under pytest, shape checks draw from `random`, and logging has handlers.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import warnings
from pathlib import Path
from typing import Any

import nncf  # noqa: F401  (it and sympy set loggers and warnings up when they are imported)
import numpy as np
import sympy  # noqa: F401
import torch

import vitfrost
from vitfrost.example.data import write_digit_images

TOOLS = ("nncf", "onnxscript", "onnx_ir", "torch.export", "torch.onnx")


def state() -> dict[str, Any]:
    """Everything global that a library is tempted to switch."""
    root, own = logging.getLogger(), logging.getLogger("vitfrost")
    return {
        "torch generator": torch.get_rng_state().tolist(),
        "numpy generator": str(np.random.get_state()),
        "random": random.getstate(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "logging": (root.level, list(root.handlers), list(root.filters), root.manager.disable),
        "loggers": (own.level, own.propagate, len(own.handlers), [logging.getLogger(name).level for name in TOOLS]),
        "warnings": list(warnings.filters),
        "streams": (sys.stdout, sys.stderr, sys.excepthook),
        "folder": os.getcwd(),
    }


def main(folder: Path) -> None:
    """Every verb of the path, with files in `folder`."""
    (images,) = write_digit_images(folder, ["calibration"])
    name, before = "vitfrost_digits", state()

    def report(verb: str) -> None:
        nonlocal before
        after = state()
        for changed in [part for part in before if before[part] != after[part]]:
            print(f"{verb}: {changed}")
        before = after

    statistics = vitfrost.calibrate(name, images, vitfrost.Calibrate(limit=8, similarity=True), progress=False)
    report("calibrate")
    floating: dict[str, Any] = {"weight_bits": 32, "activation_bits": 32}
    plans = [
        vitfrost.plan(statistics),
        vitfrost.plan(statistics, freeze=None, hallucinate=0.5, compact=0.5, **floating),
        vitfrost.plan(statistics, unit="head", freeze=0.25, **floating),
    ]
    report("plan")
    drawn: dict[str, Any] = {"statistics": statistics, "images": images, "calibration_images": 4, "compact_images": 4}
    for number, plan in enumerate(plans):
        repair = "ridge" if plan.freeze is None else None
        small = vitfrost.compress(name, plan, **drawn, repair=repair, repair_images=4, out=folder / f"artifact{number}")
        report(f"compress {number}")
    for form, ranges in (("onnx", "static"), ("onnx", "dynamic"), ("openvino", "static")):
        vitfrost.export(
            small, format=form, precision="int8", ranges=ranges, images=images, calibration_images=4, time_only=True,
            out=folder / f"{form}-{ranges}",
        )  # fmt: skip
        report(f"export {form} {ranges}")
    vitfrost.evaluate(folder / "artifact0", images, config=vitfrost.Evaluate(limit=8), progress=False)
    report("evaluate")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
