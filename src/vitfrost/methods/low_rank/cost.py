"""Rank, parameters and multiply-accumulates of a feed-forward block with a factorized second projection. Formulas only."""

from __future__ import annotations

from ...errors import VitfrostError


def largest_useful_rank(width: int, hidden: int) -> int:
    """The largest r with r (hidden + width) < hidden width; with hidden = m d that is r < m d / (m + 1)."""
    return (hidden * width - 1) // (hidden + width)


def rank_of(ratio: float, width: int, hidden: int) -> int:
    """r = round(ratio width). Raises VitfrostError where r is below 1, or the factors are no smaller than their product."""
    rank = round(ratio * width)
    largest = largest_useful_rank(width, hidden)
    if not 1 <= rank <= largest:
        reason = "leaves nothing" if rank < 1 else "saves nothing"
        raise VitfrostError(
            f"rank {rank} (ratio {ratio:g}) of a projection from {hidden} to {width} channels {reason}; "
            f"the largest useful rank is {largest}, a ratio of {largest / width:.3f}"
        )
    return rank


def feed_forward_macs(tokens: int, width: int, hidden: int, rank: int | None = None) -> int:
    """N (d m d + r (m d + d)) per image with the merged factors; N 2 d m d where `rank` is None."""
    return tokens * (width * hidden + (hidden * width if rank is None else rank * (hidden + width)))
