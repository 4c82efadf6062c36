"""The lines of a plan on feed-forward blocks: which to factorize, and with what rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import model_validator

from ..configs import Compact
from ..methods.low_rank.cost import largest_useful_rank, rank_of
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


def compact_blocks(sites: Sequence[Mapping[str, Any]], settings: Compact) -> tuple[FeedForwardPlan, ...]:
    """One line per feed-forward site (name, width, hidden, block): rank round(ratio width), or none for blocks that are left out.

    Raises VitfrostError for a ratio whose factors are no smaller than their product.
    """
    assert settings.ratio is not None
    return tuple(
        FeedForwardPlan(
            site=site["name"],
            width=site["width"],
            hidden=site["hidden"],
            rank=rank_of(settings.ratio, site["width"], site["hidden"])
            if settings.blocks == "all" or site.get("block", "transformer") == "transformer"
            else None,
        )
        for site in sites
    )
