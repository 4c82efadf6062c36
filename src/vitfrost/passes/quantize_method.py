"""What a quantizer is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..configs import Compress, Quantize
from .work import Pass


@dataclass(frozen=True)
class Quantizer:
    """A way to quantize a model.

    `make` gives the pass, which is named "quantization". `freezes_first`: whether single entries of maps are frozen before it, so that it
    makes up for them too; else they are frozen after it, on the grids of its map quantizers.
    """

    make: Callable[[Quantize, Compress], Pass]
    freezes_first: bool = True
