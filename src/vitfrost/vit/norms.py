"""Which layers normalize, and which of them take the scales of the layer after them."""

from __future__ import annotations

from torch import nn


def is_norm(layer: nn.Module) -> bool:
    """Whether a layer normalizes what it reads; timm's own such layers have no class in common, but a name."""
    return "Norm" in type(layer).__name__


def has_affine_norm(norm: nn.Module) -> bool:
    """True for a LayerNorm with gain and bias: the kind whose scales RepQ-ViT can re-parameterize."""
    return isinstance(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None
