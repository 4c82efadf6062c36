"""vitfrost: smaller and faster Vision Transformers, using what their attention maps repeat.

The verbs, in the order in which data passes them. They are loaded when first used, so importing vitfrost is instant.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

__version__ = "0.1.0"
logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent unless the caller, or the command line, listens

_VERBS = {
    "inspect": "vitfrost.evaluation.inspect",
    "calibrate": "vitfrost.statistics.calibrate",
    "plan": "vitfrost.plans.choose",
    "search": "vitfrost.budget.search",
    "compress": "vitfrost.passes.compress",
    "resize": "vitfrost.passes.resize",
    "evaluate": "vitfrost.evaluation.evaluate",
    "export": "vitfrost.deploy.export",
    "predict": "vitfrost.runtime.predict",
    "bench": "vitfrost.timing.bench",
    "report": "vitfrost.reporting.build",
    "run": "vitfrost.runs.run",
    "train": "vitfrost.training.train",
    "demo": "vitfrost.example.demo",
}

_CONFIGS = (
    "Bench", "Calibrate", "Compact", "Compress", "Evaluate", "Export", "FreezeEntries", "FreezeHeads", "Hallucinate", "Quantize", "Repair",
    "Search",
)  # fmt: skip
__all__ = ["__version__", *_VERBS, *_CONFIGS]


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return getattr(import_module(_VERBS[name]), name)
    if name in _CONFIGS:
        return getattr(import_module("vitfrost.configs"), name)
    raise AttributeError(f"module 'vitfrost' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
