"""Configuration classes: the one place of every option. Each is a Python argument, a part of plan or recipe file, and a group of flags."""

from .base import config, expect, idle_fields, refuse_idle
from .methods import Compact, FreezeEntries, FreezeHeads, Hallucinate, Quantize, Repair, WindowHeads
from .verbs import Bench, Calibrate, Compress, Evaluate, Export, Run, Search, Train

__all__ = [
    "Bench", "Calibrate", "Compact", "Compress", "Evaluate", "Export", "FreezeEntries", "FreezeHeads", "Hallucinate", "Quantize", "Repair",
    "Run", "Search", "Train", "WindowHeads", "config", "expect", "idle_fields", "refuse_idle",
]  # fmt: skip
