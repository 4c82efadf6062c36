"""Sizes of feature maps, for models that take images of any size."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import UnsupportedModel, VitfrostError

Grid = tuple[int, int]


def image_size_of(model: nn.Module) -> Grid:
    """Height and width in pixels that the model's own configuration names.

    Raises UnsupportedModel for a model that was not created by its timm name and so has no configuration.
    """
    config = getattr(model, "pretrained_cfg", None)
    if not config:
        raise UnsupportedModel(f"this {type(model).__name__} does not say for which image size it is; create it by its timm name")
    _, height, width = config["input_size"]
    return (height, width)


def convolved(convolution: nn.Conv2d, grid: Grid) -> Grid:
    """Height and width of a convolution's output on a map of size `grid`; 0 where the map is smaller than the kernel."""
    paddings: Any = convolution.padding  # numbers: no layer here pads by name
    sides = zip(grid, paddings, convolution.kernel_size, convolution.stride, strict=True)
    high, wide = (max((side + 2 * padding - kernel) // stride + 1, 0) for side, padding, kernel, stride in sides)
    return (high, wide)


def check_not_empty(name: str, image_size: Grid, positions: int) -> None:
    """Raise VitfrostError where nothing of an image of this size is left at a layer."""
    if positions < 1:
        raise VitfrostError(f"an image of {image_size[0]}x{image_size[1]} px is too small: nothing of it is left at {name}")
