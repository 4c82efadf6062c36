"""What a model's timm name says of it, for those who have no model at hand. Needs no torch."""

from __future__ import annotations


def has_relative_bias(model_name: str) -> bool:
    """Whether every head adds a bias of its own to its logits, by relative position: Swin (also where a site has a single window), BEiT."""
    biased = ("swin", "beit_", "beitv2_", "vit_relpos_", "vit_srelpos_", "maxvit", "maxxvit", "coatn", "test_coatn", "tiny_vit_")
    return model_name.startswith(biased)
