"""The lines of a plan on feed-forward blocks, and which models have no hallucinated heads."""

from __future__ import annotations

from pydantic import model_validator

from ..methods.low_rank.cost import largest_useful_rank
from ..strict import Positive, Strict

NO_SWIN = "hallucination does not support Swin: every head has a relative position bias of its own in its windows"


class FeedForwardPlan(Strict):
    """One feed-forward block: the rank of its second projection, None where it stays as it is; `why`: what was measured then."""

    site: str
    width: Positive
    hidden: Positive
    rank: Positive | None = None
    why: str | None = None

    @model_validator(mode="after")
    def _rank_saves(self) -> FeedForwardPlan:
        largest = largest_useful_rank(self.width, self.hidden)
        if self.rank is not None and self.rank > largest:
            raise ValueError(
                f"rank is {self.rank}, which saves nothing for a projection from {self.hidden} to {self.width} channels; "
                f"the largest useful rank is {largest}"
            )
        return self
