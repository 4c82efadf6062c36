"""Which feed-forward blocks to factorize, and with what rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..configs import Compact
from ..methods.low_rank.cost import rank_of
from .structure import FeedForwardPlan


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
