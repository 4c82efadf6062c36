"""The lines of a plan on feed-forward blocks."""

from __future__ import annotations

from pydantic import model_validator

from ..methods.low_rank.cost import largest_useful_rank
from ..strict import Positive, Strict


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
