"""Attention with explicit maps of one image and head at a time, for an observer of maps that are too long to lie side by side.

Shapes: W windows per image, rows = images * W, H heads, N queries, M keys, D head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

QUERIES_AT_A_TIME = 256
HeadObserver = Callable[[int, Tensor, Tensor], None]


def attend_by_head(
    attention: Any, q: Tensor | None, k: Tensor | None, v: Tensor, bias: Tensor | None, show: HeadObserver
) -> Float[Tensor, "rows heads queries width"]:
    """Mix the values of a MapAttention's heads, in its order, and show the observer every head of the original with its maps [W, N, M] and
    values [W, M, D], image by image. What `attend` gives, up to rounding."""
    windows = attention.site.windows
    still = [maps for name, _ in attention.apart for maps in getattr(attention, name).maps().unbind(1)]
    images = []
    for first in range(0, len(v), windows):
        rows = slice(first, first + windows)
        own = None if bias is None else bias if len(bias) == 1 else bias[rows]
        mixed: Tensor | None = None
        if attention.hallucination is not None and q is not None and k is not None:
            mixed = attention.plain_maps(None, q[rows], k[rows], own)
        outputs: dict[int, Tensor] = {}
        for head in range(attention.site.heads):
            place = attention.order.index(head)
            values = v[rows, place]
            if place >= attention.moving_heads:
                maps = still[place - attention.moving_heads].expand(windows, -1, -1)
                show(head, maps, values)
            else:
                assert q is not None
                assert k is not None
                if attention.windowed is not None:
                    maps = attention.plain_maps([place], q[rows], k[rows], own)[:, 0]
                else:
                    maps = map_in_parts(place, q[rows], k[rows], own) if mixed is None else mixed[:, place]
                if not attention.observers.quantized:
                    show(head, maps, values)
                maps = attention.merged(maps[:, None], [place])[:, 0]
                if attention.observers.quantized:
                    show(head, maps, values)
            outputs[place] = attention.attn_drop(maps) @ values
            del maps  # or the next head's are made beside them
        images.append(torch.stack([outputs[place] for place in range(attention.site.heads)], dim=1))
    return torch.cat(images)


def map_in_parts(place: int, q: Tensor, k: Tensor, bias: Tensor | None) -> Float[Tensor, "windows queries keys"]:
    """The softmax of the head at one place, with the logits of only some queries there at a time."""
    own = None if bias is None else bias[:, place if bias.shape[1] > 1 else 0]
    queries, keys = q[:, place], k[:, place].transpose(1, 2)
    if torch.is_grad_enabled():
        logits = queries @ keys
        return torch.softmax(logits if own is None else logits + own, dim=-1)
    maps = queries.new_empty(*queries.shape[:2], keys.shape[2])
    for first in range(0, queries.shape[1], QUERIES_AT_A_TIME):
        part = slice(first, first + QUERIES_AT_A_TIME)
        logits = queries[:, part] @ keys
        maps[:, part] = torch.softmax(logits if own is None else logits + own[:, part], dim=-1)
    return maps
