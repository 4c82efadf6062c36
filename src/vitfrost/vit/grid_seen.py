"""Images of another size: the patch grid that a model is looking at, and an attention layer with its maps carried over to it."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace
from math import prod
from typing import Any

from ..errors import VitfrostError


class GridSeen(threading.local):
    """Called before the patch embedding of a model that takes images of any size: the grid of the image, for each thread its own."""

    grid: tuple[int, int] | None = None

    def __call__(self, embedding: Any, inputs: tuple[Any, ...]) -> None:
        """Take the grid of the pixels [images, 3, height, width]."""
        height, width = embedding.dynamic_feat_size(tuple(inputs[0].shape[-2:]))
        self.grid = (height, width)

    def grid_of(self, patches: int, own: tuple[int, int]) -> tuple[int, int]:
        """The grid of so many patches: the image's, or the layer's `own` where tokens came from elsewhere."""
        return own if self.grid is None or prod(self.grid) != patches else self.grid

    def __reduce__(self) -> tuple[Any, ...]:
        return GridSeen, ()


def layer_at(attention: Any, grid: tuple[int, int], tokens: int) -> Any:
    """A MapAttention for images of another patch grid: it shares everything but what makes maps of other heads, which is carried over by
    its `at(grid)`. Raises VitfrostError where there is none, and for single frozen entries."""
    sources = attention.map_sources()
    known = attention.site.prefix_tokens + prod(grid) == tokens and all(hasattr(module, "at") for module in sources.values())
    if not known or attention.frozen is not None:
        own, here = (f"{height} x {width}" for height, width in (attention.site.grid, grid))
        mend = "resize the artifact (vitfrost resize)" if attention.frozen is None else "freeze entries in a model opened at that size"
        raise VitfrostError(
            f"{attention.site.name} has frozen maps or windows of {attention.site.keys} tokens ({own} patches), and this image has {tokens}"
            f"{f' ({here})' if here != own else ''}; {mend} for images of another size"
        )
    made = copy.copy(attention)
    made.__dict__.update(_modules=attention._modules | {name: source.at(grid) for name, source in sources.items()}, seen=None)
    made.site = replace(attention.site, grid=grid, queries=tokens, keys=tokens)
    return made
