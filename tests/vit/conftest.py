"""Models and layers whose outputs and logits are of order one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn


@torch.no_grad()
def enliven(module: nn.Module, *inputs: Any, seed: int = 0) -> None:
    """Random weights that keep the size of what they read, and BatchNorm's statistics from one pass over `inputs`.

    timm's own start leaves maps even, biases zero, and Next-ViT's outputs tiny, so that a wrong one would pass for equal.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        drawn = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.copy_(drawn / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.2 * drawn)
    for part in module.modules():
        if isinstance(part, nn.LayerNorm | nn.modules.batchnorm._BatchNorm) and part.weight is not None:
            part.weight.add_(1.0)
    normalized = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    for part in normalized:
        part.train().momentum = 1.0
    module(*inputs)
    for part in normalized:
        part.eval().momentum = 0.1


@pytest.fixture
def lively() -> Any:
    """The function `enliven`."""
    return enliven


@pytest.fixture
def pixels() -> Any:
    """A function from an image size to a batch of two."""

    def drawn(size: tuple[int, int], seed: int = 0) -> Tensor:
        return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed))

    return drawn
