"""How much of a head's mass lies outside a window."""

from __future__ import annotations

import numpy as np

from ..errors import VitfrostError
from ..methods.constant_heads.constants import Shape, relative_positions
from ..plans.criteria import HeadArrays, SiteArrays


def mass_outside(site: SiteArrays | HeadArrays, shape: Shape | None, head: int, window: int) -> float:
    """What the patches of a head's mean map give to patches outside the window around them, of 1 that each of them gives.

    Raises VitfrostError for maps on no patch grid.
    """
    if shape is None:
        raise VitfrostError("windowed heads need queries and keys on one patch grid, which these maps do not have; leave them computed")
    if isinstance(site, HeadArrays):
        near = [np.abs(np.arange(2 * side - 1) - (side - 1)) <= window // 2 for side in shape.grid]
        return float(site.mass_by_offset(head)[~(near[0][:, None] & near[1])].sum())
    prefix = shape.prefix_tokens
    outside = relative_positions(shape.grid, (window, window)) < 0
    return float(site.mean[0, head, prefix:, prefix:][outside].sum(dtype=np.float64) / shape.patches)
