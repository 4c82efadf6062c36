"""The step that rounds weights with propagation of the error, and corrects biases."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..quantize_chain import Chain
from ..work import Record


@dataclass(frozen=True)
class RoundWeights:
    """GPTQ (arXiv 2210.17323) on the fitted weights; biases take up the mean of what is left."""

    name = "rounding"
    needed = False

    def apply(self, chain: Chain) -> Record:
        """Quantize anew, with weights rounded so."""
        chain.options = replace(chain.options, rounding=True)
        return chain.quantize(None)
