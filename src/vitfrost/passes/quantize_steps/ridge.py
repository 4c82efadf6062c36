"""The step that fits every layer's weights behind the quantizer of its inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..quantize_chain import Chain
from ..work import Record


@dataclass(frozen=True)
class FitWeights:
    """Ridge regression (Aqer of ERQ, arXiv 2407.06794) in the order of data: inputs are those that the quantized layers before give,
    targets are the original's. The penalty of each layer is chosen by two halves of the images."""

    name = "ridge"
    needed = False

    def apply(self, chain: Chain) -> Record:
        """Quantize anew, with fitted weights."""
        chain.options = replace(chain.options, ridge=True)
        return chain.quantize(None)
