"""The pass that re-fits a changed model's projections, so that its residual stream meets the original's."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from ..configs import Repair
from ..configs.base import plain
from ..errors import VitfrostError
from ..methods.repair.refit import Refit
from ..vit.families import forward_pass
from .work import Record, Work

BATCH_SIZE = 25


@dataclass(frozen=True)
class RepairLayers:
    """Images are drawn in batches; they need no labels. See `methods.repair.refit`.

    The record: the options, the draw, and what was left of the stream at every layer before and after.
    """

    options: Repair
    name = "repair"

    def check(self, work: Work) -> None:
        """Needs images, and layers that write to the stream themselves."""
        if not work.draws.given:
            raise VitfrostError("a repair is fitted to images, which need no labels; give --images DIR")
        if forward_pass(work.original.module).norms_behind:
            raise VitfrostError(
                f"{work.original.name} has norms behind its layers, so none can be fitted to the stream; leave the repair out"
            )

    def apply(self, work: Work) -> Record:
        """What has been done to the model by now is repaired; what comes later is not."""
        drawn = work.draws.batches(self.name, self.options.images, BATCH_SIZE)
        original = copy.deepcopy(work.original.module).cpu()  # where the changed model is, and without what a caller has hooked to it
        refit = Refit(work.model, original, work.sites, self.options)
        layers = refit.run(drawn, drawn.expected, work.progress)
        return plain(self.options) | {"skip_last": refit.skipped} | drawn.record() | {"layers": layers}
