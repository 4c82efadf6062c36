"""Which rows of a projection belong to which heads, and a layer of some of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def head_channels(heads: Sequence[int], width: int, device: torch.device) -> Tensor:
    """Positions of the channels of `heads` (each `width` wide), in their order."""
    return (torch.tensor(list(heads), device=device)[:, None] * width + torch.arange(width, device=device)).flatten()


def with_rows(layer: Any, rows: Tensor) -> Any:
    """A linear layer (or convolution of 1 x 1) with some outputs of another, in the given order; dtype, device and bias as they were."""
    inputs, bias = layer.weight.shape[1], layer.bias is not None
    made: Any = nn.Conv2d(inputs, len(rows), 1, bias=bias) if isinstance(layer, nn.Conv2d) else nn.Linear(inputs, len(rows), bias)
    made.to(layer.weight)
    made.weight = nn.Parameter(layer.weight.detach()[rows], layer.weight.requires_grad)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.detach()[rows], layer.bias.requires_grad)
    return made
