"""The pass that puts ReLU in place of the activation of feed-forward blocks, for the quantizer to make up for."""

from __future__ import annotations

from dataclasses import dataclass

from ..vit.feed_forward import check_relu, use_relu
from .work import Record, Work


@dataclass(frozen=True)
class UseReLU:
    """What the second layers read has no negative numbers then, so no level is spent on them (APHQ-ViT, arXiv 2504.02508). Alone it makes
    the outputs worse, until the quantizer fits the layers to it: its first step begins with what this leaves.

    The record: how many blocks.
    """

    name = "relu"

    def check(self, work: Work) -> None:
        """Raises UnsupportedModel for gated blocks."""
        check_relu(work.model, work.sites.feed_forward)

    def apply(self, work: Work) -> Record:
        """See vit.feed_forward.use_relu."""
        use_relu(work.model, work.sites.feed_forward)
        return {"blocks": len(work.sites.feed_forward)}
