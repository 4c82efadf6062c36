"""What the paper's abstract leaves open about hallucinated attention, as options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...errors import VitfrostError

Space = Literal["logits", "post-softmax"]
InterMap = Literal["linear", "copy", "pair"]
IntraMap = Literal["none", "3x3", "5x5", "key-grid"]
KERNEL_SIZES: dict[IntraMap, int] = {"none": 0, "3x3": 3, "5x5": 5, "key-grid": 3}


@dataclass(frozen=True)
class HallucinationOptions:
    """How the maps of some heads are made of the others'. g heads are computed, q are hallucinated.

    computed: g; None: half of the heads, rounded up, so a stage with one head stays as it is.
    space: `logits`: hallucinated logits get their own softmax. `post-softmax`: the softmax is saved; a map is a convex mix of
        the computed ones, and its rows are made to sum to one again after the convolution.
    inter_map: `linear`: learned q x g matrix. `pair`: one source head each, times a learned scalar (logits only, because a
        softmax's map has a fixed sum). `copy`: one source head each, as it is.
    intra_map: depthwise convolution added to the mixed map, zero at the start. `3x3` and `5x5` slide over (query, key) as if the
        flattened indices were a picture; `key-grid` slides 3x3 over the patch grid of each query's keys; `none`.
    prefix: `skip`: the convolution leaves out rows and columns of prefix tokens (CLS, registers); `include`: it does not. Prefix
        keys are no part of the patch grid, so with `key-grid` only the rows of prefix queries are meant.
    bias: a learned constant per hallucinated map (logits, `linear` or `pair`). A row's softmax ignores it; only the border of a
        convolution can feel it.
    """

    computed: int | None = None
    space: Space = "logits"
    inter_map: InterMap = "linear"
    intra_map: IntraMap = "3x3"
    prefix: Literal["skip", "include"] = "skip"
    bias: bool = True

    def __post_init__(self) -> None:
        if self.space == "post-softmax" and self.inter_map == "pair":
            raise VitfrostError(
                "a pair-wise scalar has no effect on maps after the softmax; take space logits, or inter_map copy or linear"
            )

    def computed_heads(self, heads: int) -> int:
        """g of a layer with `heads` heads. Raises VitfrostError where `computed` does not lie in 1..heads."""
        if self.computed is None:
            return (heads + 1) // 2
        if not 1 <= self.computed <= heads:
            raise VitfrostError(f"{self.computed} computed heads do not fit a layer of {heads} heads; give a number from 1 to {heads}")
        return self.computed

    @property
    def kernel(self) -> int:
        """Side of the convolution's kernel; 0 without one."""
        return KERNEL_SIZES[self.intra_map]

    @property
    def has_bias(self) -> bool:
        """Whether there is a constant per hallucinated map to learn."""
        return self.bias and self.space == "logits" and self.inter_map != "copy"
