"""For which grid of patches position embeddings were trained: a file of weights does not say it.

Embeddings of patches that are neighbors in a picture are alike. In a list of N = height * width embeddings, row after row, those `width`
apart are vertical neighbors, so the true width is the divisor of N at which they are most alike.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

CLEARLY = 0.8  # of the difference at another width
FEWEST = 6  # rows or columns


def unlikeness(embeddings: Float[Tensor, "patches channels"], width: int) -> float:
    """Mean squared difference of the embeddings that are `width` apart, in units of twice their variance (1: unrelated)."""
    difference = (embeddings[width:] - embeddings[:-width]).square().mean()
    return float(difference / (2 * (embeddings - embeddings.mean(0)).square().mean()).clamp_min(1e-30))


def grid_of_positions(embeddings: Float[Tensor, "patches channels"], assumed: tuple[int, int] | None = None) -> tuple[int, int] | None:
    """(height, width) of the patches. `assumed`, else a square, unless another grid is clearly more likely; None where nothing says it.

    Grids of fewer than six rows or columns are not looked for: in them nearly everything is a neighbor.
    """
    count = len(embeddings)
    side = math.isqrt(count)
    if assumed is None and side * side == count:
        assumed = side, side
    values = embeddings.float()
    found = {width: unlikeness(values, width) for width in range(FEWEST, count // FEWEST + 1) if count % width == 0}
    if not found:
        return assumed
    best, *others = sorted(found, key=lambda width: found[width])
    at_others = min([1.0 if assumed is None else found.get(assumed[1], 1.0), *(found[width] for width in others)])
    return (count // best, best) if found[best] < CLEARLY * at_others else assumed
