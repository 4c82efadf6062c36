"""The pass that gives a model the plan's layers in closed form: constant heads, hallucinated maps, compact feed-forward blocks."""

from __future__ import annotations

from dataclasses import dataclass

from ..vit.draws import own_seed
from .quality import hallucinated_heads
from .structure import changed_sites, fit_sources, needs_statistics, start_from
from .work import Record, Work

DISTANCE_IMAGES = 32


@dataclass(frozen=True)
class GiveStructure:
    """`images`: how many are drawn, where there are any, for compact blocks that fit activations and for the distance of hallucinated maps.

    The record: the draw, the relative error of every compact block, and how well hallucinated heads meet the maps they stand for.
    """

    images: int
    name = "structure"

    def check(self, work: Work) -> None:
        """A plan from statistics needs them for constants, and for a mix that they fit."""
        if work.plan.statistics is not None and needs_statistics(work.plan):
            work.needed_statistics()

    def apply(self, work: Work) -> Record:
        """See `structure.start_from`; the sites become those of the changed layers."""
        plan, fitted = work.plan, fit_sources(work.plan, work.statistics)
        pixels, drawn = work.draws.batch(self.name, self.images) if work.draws.given else (None, {})
        with own_seed(work.draws.seed):  # new layers are drawn before they are filled
            errors = start_from(work.model, plan, pixels, fitted, seed=work.draws.seed)
        work.sites = changed_sites(work.sites, plan)
        seen = None if pixels is None else (work.original.module, pixels[:DISTANCE_IMAGES])
        return drawn | {"relative_errors": errors, "heads": hallucinated_heads(plan, work.model, fitted, seen)}
