"""The whole path in a process of its own, and which of the process's own things it has changed: names on standard output.

`test_globals.py` runs it: under pytest, shape checks draw from `random`, and logging has handlers.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import nncf  # noqa: F401  (it and sympy set loggers and warnings up when they are imported)
import numpy as np
import sympy  # noqa: F401
import torch

import vitfrost
from vitfrost.configs import Compact, Compress, Export, FreezeHeads, Hallucinate, Repair
from vitfrost.deploy.export import export_graph
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
    before = state()

    def report(verb: str) -> None:
        nonlocal before
        after = state()
        for changed in [part for part in before if before[part] != after[part]]:
            print(f"{verb}: {changed}")
        before = after

    shallow = vitfrost.Model.open("vitfrost_digits", weights="random", options={"depth": 2})
    report("open")
    statistics = vitfrost.calibrate(shallow, images, vitfrost.Calibrate(limit=8, similarity=True), progress=False)
    report("calibrate")
    plans = [
        vitfrost.plan(statistics),
        vitfrost.plan(statistics, Hallucinate(0.5), Compact(0.5)),
        vitfrost.plan(statistics, FreezeHeads(0.25)),
    ]
    report("plan")
    budget = vitfrost.Search(target_macs=0.98, images=4, over=("ranks", "heads"))
    vitfrost.search(shallow, images, budget, statistics=statistics, progress=False)
    report("search")
    drawn: dict[str, Any] = {"statistics": statistics, "images": images, "config": Compress(0, 4, 4)}
    for number, plan in enumerate(plans):
        repair = Repair(images=4) if plan.freeze is None else None
        small = vitfrost.compress(shallow, plan, **drawn, repair=repair, out=folder / f"artifact{number}")
        report(f"compress {number}")
    forms: tuple[Any, ...] = (("onnx", "static"), ("onnx", "dynamic"), ("openvino", "static"))
    for form, ranges in forms:
        config = Export(form, "int8", ranges=ranges)
        if ranges == "static":
            config = replace(config, calibration_images=4)
        export_graph(small, config, folder / f"{form}-{ranges}", images, time_only=True)
        report(f"export {form} {ranges}")
    vitfrost.evaluate(folder / "artifact0", images, config=vitfrost.Evaluate(limit=8), progress=False)
    report("evaluate")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
