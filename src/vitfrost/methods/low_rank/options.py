"""What the paper's abstract leaves open about the compact feed-forward block, as options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Norm = Literal["batch", "none"]


@dataclass(frozen=True)
class CompactionOptions:
    """The form of a factorized projection while it is trained; afterwards it is merged.

    ratio: rank r = round(ratio d). branches: K parallel branches of V and of U while training (1 to 4). norm: a BatchNorm over tokens
    behind each branch, or none. expand: branches of two weights each. identity: one more branch, a fixed average of channels,
    which starts at zero. noise: how far branches differ at the start, relative to their weights.
    """

    ratio: float = 0.5
    branches: int = 2
    norm: Norm = "batch"
    expand: bool = False
    identity: bool = False
    noise: float = 0.01
