"""The step that gives everything a range, by the error at the outputs, and rounds weights to the nearest level."""

from __future__ import annotations

from dataclasses import dataclass

from ..quantize_chain import Chain
from ..work import Record

IMAGES = 64


@dataclass(frozen=True)
class SearchRanges:
    """It comes first: the others need ranges. Queries, keys, values and maps have a range for each head."""

    name = "ranges"
    needed = True

    def apply(self, chain: Chain) -> Record:
        """Layer by layer in the order of data (see methods.quantize.layerwise)."""
        return chain.quantize(IMAGES)
