"""The pass that freezes single entries of attention maps at their means over the calibration images (equation 15)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..artifact import build_frozen
from ..methods.frozen_entries import FrozenMaps, frozen_step
from ..methods.quantize.repq import map_quantizers
from ..plans.freeze_entries import frozen_maps
from ..plans.schema import Plan
from ..statistics.record import Statistics
from ..vit.attention import MapAttention
from ..vit.families import allowed_pairs, install_map_attention
from ..vit.load import device_of
from .work import Work


def frozen_modules(model: nn.Module, plan: Plan, statistics: Statistics) -> dict[str, FrozenMaps]:
    """The frozen entries that the plan names for `model`, by site; below 32 bits on the log grid of the layer's map quantizer.

    Sites without frozen entries are left out. The model is not changed; what is made lies where the model does.
    """
    if plan.freeze is None:
        return {}
    quantizers = map_quantizers(model)
    orders = {name: list(module.order) for name, module in model.named_modules() if isinstance(module, MapAttention)}
    made: dict[str, FrozenMaps] = {}
    for layer in plan.layers:
        if not any(head.entries for head in layer.heads):
            continue
        chosen, means = frozen_maps(plan, statistics.sites[layer.site], layer)
        order = orders.get(layer.site, slice(None))
        mask, values = torch.from_numpy(chosen)[:, order], torch.from_numpy(means)[:, order]
        frozen = build_frozen(plan, mask, allowed_pairs(model, layer.site))
        step = None
        if plan.freeze.bits != 32:
            own = quantizers[layer.site].step.cpu() if layer.site in quantizers else None
            step = frozen_step(values, mask, plan.freeze.bits, plan.quantize.levels, plan.freeze.grid, own)
        frozen.set_values(values, step)
        made[layer.site] = frozen.to(device_of(model))
    return made


@dataclass(frozen=True)
class FreezeMapEntries:
    """Frozen values lie on the grids of the map quantizers, where there are any: this pass comes after quantization then."""

    name = "frozen entries"

    def check(self, work: Work) -> None:
        """Needs the statistics, which have the means."""
        if any(head.entries for layer in work.plan.layers for head in layer.heads):
            work.needed_statistics()

    def apply(self, work: Work) -> None:
        """Nothing is recorded: the plan says which entries, the artifact holds their values."""
        if work.statistics is None:
            return
        attention = install_map_attention(work.model)
        for site, frozen in frozen_modules(work.model, work.plan, work.statistics).items():
            attention[site].freeze_entries(frozen)
