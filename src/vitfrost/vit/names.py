"""What a model's timm name says of it, for those who have no model at hand. Needs no torch."""

from __future__ import annotations


def has_relative_bias(model_name: str) -> bool:
    """Whether every head adds a learned bias of its own to the logits of a window (Swin), also where a site has a single window."""
    return model_name.startswith("swin")
