"""vitfrost: smaller and faster Vision Transformers, using what their attention maps repeat.

The verbs, in the order in which data passes them. They are loaded when first used, so importing vitfrost is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_VERBS = {
    "inspect": "vitfrost.measure.inspection",
    "calibrate": "vitfrost.statistics.collect",
    "plan": "vitfrost.plans.choose",
    "plan_under_budget": "vitfrost.budget.verb",
    "compress": "vitfrost.compression.apply",
    "resize": "vitfrost.compression.resize",
    "evaluate": "vitfrost.measure.accuracy",
    "export": "vitfrost.exporting.verb",
    "predict": "vitfrost.runtime.predict",
    "bench": "vitfrost.benchmark.verb",
    "report": "vitfrost.reporting.build",
    "run": "vitfrost.pipeline",
    "train": "vitfrost.training.verb",
    "demo": "vitfrost.example.demo",
}

__all__ = ["__version__", *_VERBS]


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return getattr(import_module(_VERBS[name]), name)
    raise AttributeError(f"module 'vitfrost' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
