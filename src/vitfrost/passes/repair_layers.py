"""The pass that re-fits a changed model's projections, so that its residual stream meets the original's."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from ..errors import VitfrostError
from ..methods.repair.options import RepairOptions
from ..methods.repair.refit import Repair
from .work import Record, Work

BATCH_SIZE = 25


@dataclass(frozen=True)
class RepairLayers:
    """`images`: how many are drawn at most, in batches; they need no labels. See `methods.repair.refit`.

    The record: the options, the draw, and what was left of the stream at every layer before and after.
    """

    options: RepairOptions
    images: int
    name = "repair"

    def check(self, work: Work) -> None:
        """Needs images."""
        if not work.draws.given:
            raise VitfrostError("a repair is fitted to images, which need no labels; give --images DIR")

    def apply(self, work: Work) -> Record:
        """What has been done to the model by now is repaired; what comes later is not."""
        drawn = work.draws.batches(self.name, self.images, BATCH_SIZE)
        original = copy.deepcopy(work.original.module).cpu()  # where the changed model is, and without what a caller has hooked to it
        repair = Repair(work.model, original, work.sites, self.options)
        layers = repair.run(drawn, drawn.expected, work.progress)
        return self.options.plain() | {"skip_last": repair.skipped} | drawn.record() | {"layers": layers}
