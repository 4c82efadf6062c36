"""The pass that gives a model the plan's layers in closed form: constant heads, hallucinated maps, compact feed-forward blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..plans.freeze_heads import constants_of
from ..plans.schema import Plan
from ..statistics.record import Statistics
from .quality import hallucinated_heads
from .structure import changed_sites, start_from
from .work import Record, Work

DISTANCE_IMAGES = 32


def fitted_constants(plan: Plan, statistics: Statistics | None) -> dict[str, list[Any]] | None:
    """The constants of the plan's frozen heads by site, fitted to the mean maps; None without statistics."""
    if statistics is None:
        return None
    return {layer.site: constants_of(layer, statistics.sites[layer.site], plan.model.image_size) for layer in plan.layers if layer.constant}


def similarity_of(plan: Plan, statistics: Statistics | None) -> dict[str, torch.Tensor] | None:
    """The heads' second moments by site, where the statistics have them."""
    if plan.hallucinate is None or statistics is None or (statistics.similarity is None and not plan.hallucinate.fits_mix):
        return None
    return {layer.site: torch.from_numpy(statistics.head_moments(layer.site)) for layer in plan.layers if layer.hallucinated}


@dataclass(frozen=True)
class GiveStructure:
    """`images`: how many are drawn, where there are any, for compact blocks that fit activations and for the distance of hallucinated maps.

    The record: the draw, the relative error of every compact block, and how well hallucinated heads meet the maps they stand for.
    """

    images: int
    name = "structure"

    def check(self, work: Work) -> None:
        """A plan from statistics needs them for constants, and for a mix that they fit."""
        plan = work.plan
        if plan.statistics is None:
            return
        if any(layer.constant for layer in plan.layers) or (plan.hallucinate is not None and plan.hallucinate.fits_mix):
            work.needed_statistics()

    def apply(self, work: Work) -> Record:
        """See `structure.start_from`; the sites become those of the changed layers."""
        plan, statistics = work.plan, work.statistics
        pixels, drawn = work.draws.batch(self.name, self.images) if work.draws.given else (None, {})
        similarity, constants = similarity_of(plan, statistics), fitted_constants(plan, statistics)
        errors = start_from(work.model, plan, pixels, similarity, constants=constants, seed=work.draws.seed)
        work.sites = changed_sites(work.sites, plan)
        seen = None if pixels is None else (work.original.module, pixels[:DISTANCE_IMAGES])
        return drawn | {"relative_errors": errors, "heads": hallucinated_heads(plan, work.model, similarity, seen)}
