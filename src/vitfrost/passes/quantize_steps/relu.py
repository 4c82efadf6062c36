"""The step that puts ReLU in place of the activation of feed-forward blocks, for the others to make up for."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from ...configs import Quantize
from ...vit.feed_forward import use_relu
from ..quantize_chain import Chain, Step
from ..work import Record


@dataclass(frozen=True)
class UseReLU:
    """What the second layers read has no negative numbers then, so no level is spent on them (APHQ-ViT, arXiv 2504.02508). It comes before
    the ranges, and is never taken back: alone it makes the outputs worse, until ridge and gradient steps fit the layers to it."""

    name = "relu"
    needed = True

    def apply(self, chain: Chain) -> Record:
        """Change the model with float weights; the original stays."""
        chain.float_model = copy.deepcopy(chain.float_model)
        use_relu(chain.float_model, chain.sites.feed_forward)
        return {"blocks": len(chain.sites.feed_forward)}


def with_relu(config: Quantize, steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps, with this one before them where the configuration asks for it."""
    return (UseReLU(), *steps) if config.relu else tuple(steps)
