"""vitfrost: smaller and faster Vision Transformers, using what their attention maps repeat.

Verbs, configuration classes and what passes between them. Each is loaded when it is first used, so importing vitfrost is instant; the
block for type checkers names the same.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .artifact import Artifact as Artifact
    from .budget.search import search as search
    from .configs import Bench as Bench
    from .configs import Calibrate as Calibrate
    from .configs import Compact as Compact
    from .configs import Compress as Compress
    from .configs import Evaluate as Evaluate
    from .configs import Export as Export
    from .configs import FreezeEntries as FreezeEntries
    from .configs import FreezeHeads as FreezeHeads
    from .configs import Hallucinate as Hallucinate
    from .configs import Quantize as Quantize
    from .configs import Repair as Repair
    from .configs import Run as Run
    from .configs import Search as Search
    from .configs import Train as Train
    from .configs import WindowHeads as WindowHeads
    from .deploy.export import export as export
    from .errors import VitfrostError as VitfrostError
    from .evaluation.evaluate import evaluate as evaluate
    from .evaluation.inspect import inspect as inspect
    from .evaluation.results import Row as Row
    from .example.demo import demo as demo
    from .model import Model as Model
    from .passes.compress import compress as compress
    from .passes.resize import resize as resize
    from .plans.choose import plan as plan
    from .plans.schema import Plan as Plan
    from .reporting.build import report as report
    from .runs.run import run as run
    from .runtime.predict import predict as predict
    from .statistics.calibrate import calibrate as calibrate
    from .statistics.record import Statistics as Statistics
    from .timing.bench import bench as bench
    from .timing.benchmark import Benchmark as Benchmark
    from .training.train import train as train

__version__ = "0.1.0"
logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent unless the caller, or the command line, listens

_HOMES = {
    "configs": (
        "Bench", "Calibrate", "Compact", "Compress", "Evaluate", "Export", "FreezeEntries", "FreezeHeads", "Hallucinate", "Quantize",
        "Repair", "Run", "Search", "Train", "WindowHeads",
    ),
    "artifact": ("Artifact",),
    "budget.search": ("search",),
    "deploy.export": ("export",),
    "errors": ("VitfrostError",),
    "evaluation.evaluate": ("evaluate",),
    "evaluation.inspect": ("inspect",),
    "evaluation.results": ("Row",),
    "example.demo": ("demo",),
    "model": ("Model",),
    "passes.compress": ("compress",),
    "passes.resize": ("resize",),
    "plans.choose": ("plan",),
    "plans.schema": ("Plan",),
    "reporting.build": ("report",),
    "runs.run": ("run",),
    "runtime.predict": ("predict",),
    "statistics.calibrate": ("calibrate",),
    "statistics.record": ("Statistics",),
    "timing.bench": ("bench",),
    "timing.benchmark": ("Benchmark",),
    "training.train": ("train",),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module 'vitfrost' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
