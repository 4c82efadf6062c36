"""What a pass is, and what it works on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from ..errors import VitfrostError
from ..model import Model
from ..plans.schema import Plan
from ..progress import doing
from ..statistics.record import Statistics
from ..vit.sites import ModelSites
from .draws import Draws

Record = dict[str, Any]


@dataclass
class Work:
    """A model on its way through the passes.

    `model` is a copy on the CPU in which every attention layer is a MapAttention; passes change it in place. `sites` are those of `model`
    as it is now: a pass that changes layers puts the new ones here. `original` is the model that was given; nobody changes it.
    `statistics` are the ones that the plan was made from, where they are given. `draws` gives images. `records` holds what every pass did,
    by the pass's name. `scratch` is a file beside the artifact where a pass that takes long may keep its state, None without an artifact on
    disk.
    """

    model: nn.Module
    sites: ModelSites
    original: Model
    plan: Plan
    statistics: Statistics | None
    draws: Draws
    progress: bool = False
    records: dict[str, Record] = field(default_factory=dict)
    scratch: Path | None = None

    def needed_statistics(self) -> Statistics:
        """The statistics, for a pass that cannot do without. Raises VitfrostError where they are missing or not the plan's."""
        layers = self.plan.layers
        if self.statistics is None:
            freezes = any(layer.constant or any(head.entries for head in layer.heads) for layer in layers)
            what = "freezes maps" if freezes else "mixes maps as their similarity tells"
            raise VitfrostError(f"the plan {what}, which needs the statistics it was made from; give --statistics FILE")
        if self.plan.statistics is None or self.plan.statistics.hash != self.statistics.content_hash:
            raise VitfrostError("the plan was made from other statistics than these; give the file it was made from, or plan again")
        return self.statistics


@runtime_checkable
class Pass(Protocol):
    """One change of a model. Its options are its fields; everything else it finds in the work."""

    @property
    def name(self) -> str:
        """Under which its record stands in the artifact."""

    def check(self, work: Work) -> None:
        """Raise VitfrostError where something is missing that it needs. Called for all passes before the first is applied."""

    def apply(self, work: Work) -> Record | None:
        """Change `work.model` in place. Returns what to keep in the artifact (plain values), None for nothing."""


def apply_passes(passes: Sequence[Pass], work: Work) -> Work:
    """Check all passes, then apply them in order, and keep their records. Raises VitfrostError where one cannot be applied.

    What a pass draws from torch's generator starts from the seed of `work.draws`; afterwards the generator is where it was.
    """
    for one in passes:
        one.check(work)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(work.draws.seed)
        for one in passes:
            doing(f"compress: {one.name}")
            record = one.apply(work)
            if record is not None:
                work.records[one.name] = record
    return work
