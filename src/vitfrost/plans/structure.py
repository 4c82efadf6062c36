"""The parts of a plan that change a model's layers: constant maps of whole heads, hallucinated maps (hMHSA) and compact feed-forward
blocks (cFFN)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from ..errors import VitfrostError
from ..methods.constant_heads.constants import Kind
from ..methods.hallucination.options import HallucinationOptions, InterMap, IntraMap, Space
from ..methods.low_rank.cost import largest_useful_rank
from ..methods.low_rank.options import CompactionOptions, Norm
from ..strict import Count, Positive, Strict

NO_SWIN = "hallucination does not support Swin: every head has a relative position bias of its own in its windows"


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"the window is {value}; a kernel around a patch has an odd side")
    return value


Window = Annotated[Positive, AfterValidator(_odd)]


class HallucinatePlan(Strict):
    """How heads were chosen and how their maps are made of the others' (arXiv 2306.10875; its open points are options).

    `share` of each layer's heads, rounded down, are hallucinated; `by` chose them: medoids of the heads' similarity,
    the heads whose mixes leave least of the others' logits unexplained, the first
    ones are computed, or a draw by `seed`. `mix`: where trained weights are there, the mix starts as a ridge regression of logits
    on the statistics' similarity, with `ridge` times the mean energy of a head as penalty, or as a copy of the head `like`.
    The other fields are those of HallucinationOptions.
    """

    share: float = Field(strict=True, ge=0, lt=1)
    by: Literal["medoids", "explained", "first", "random"] = "medoids"
    mix: Literal["ridge", "copy"] = "ridge"
    ridge: float = Field(1e-3, ge=0)
    seed: Count = 0
    space: Space = "logits"
    inter_map: InterMap = "linear"
    intra_map: IntraMap = "3x3"
    prefix: Literal["skip", "include"] = "skip"
    bias: bool = Field(True, strict=True)

    @model_validator(mode="after")
    def _options_agree(self) -> HallucinatePlan:
        try:
            self.options()
        except VitfrostError as error:
            raise ValueError(f"inter_map is '{self.inter_map}': {error}") from error
        return self

    @property
    def compares_heads(self) -> bool:
        """Whether heads are chosen by second moments of their logits."""
        return self.by in ("medoids", "explained")

    @property
    def fits_mix(self) -> bool:
        """Whether the mix starts as a regression, which takes second moments of the heads' logits."""
        return self.mix == "ridge" and self.inter_map != "copy"

    def options(self) -> HallucinationOptions:
        """How the maps are made; the plan's heads say which."""
        return HallucinationOptions(None, self.space, self.inter_map, self.intra_map, self.prefix, self.bias)


class ConstantsPlan(Strict):
    """How whole heads were chosen to be frozen, and how their constants were.

    `unit`: heads, or layers with all their heads. `by` ranked them (a criterion, summed up over a head's entries, or a search by the
    measured effect on the outputs), `ratio` gave their number (None: a search did). `kind`: one kind of constant for all, or the
    cheapest whose error at the layer's output is at most `tolerance` times what freezing itself does to it. `window`: the side of
    local kernels, where it was given. What each head got stands in the layers.
    """

    unit: Literal["head", "layer"] = "head"
    by: str = "output-error"
    ratio: float | None = Field(None, strict=True, ge=0, le=1)
    kind: Kind | Literal["auto"] = "auto"
    window: Window | None = None
    tolerance: float = Field(0.1, ge=0)
    seed: Count = 0


class CompactPlan(Strict):
    """How second projections are factorized: y = U V h, rank round(ratio width) (arXiv 2306.10875; its open points are options).

    Without `ratio` a search chose the rank of every block.
    `init`, where trained weights are there: the factors that change the outputs least on images, plain SVD of the weights, or
    untrained ones. `blocks`: all feed-forward blocks, or only those after attention. The others are fields of CompactionOptions:
    the form while training.
    """

    ratio: float | None = Field(0.5, strict=True, gt=0, lt=1)
    init: Literal["activations", "weights", "random"] = "activations"
    blocks: Literal["all", "transformer"] = "all"
    branches: int = Field(2, strict=True, ge=1, le=4)
    norm: Norm = "batch"
    expand: bool = Field(False, strict=True)
    identity: bool = Field(False, strict=True)
    noise: float = Field(0.01, ge=0)

    @model_validator(mode="after")
    def _options_agree(self) -> CompactPlan:
        if self.identity and self.norm == "none":
            raise ValueError("identity is true, which needs norm: batch to scale it; set norm to batch, or identity to false")
        return self

    def options(self) -> CompactionOptions:
        """The training form; ranks are those of the blocks."""
        return CompactionOptions(self.ratio or CompactionOptions.ratio, self.branches, self.norm, self.expand, self.identity, self.noise)


class FeedForwardPlan(Strict):
    """One feed-forward block: the rank of its second projection, None where it stays as it is; `why`: what was measured then."""

    site: str
    width: Positive
    hidden: Positive
    rank: Positive | None = None
    why: str | None = None

    @model_validator(mode="after")
    def _rank_saves(self) -> FeedForwardPlan:
        largest = largest_useful_rank(self.width, self.hidden)
        if self.rank is not None and self.rank > largest:
            raise ValueError(
                f"rank is {self.rank}, which saves nothing for a projection from {self.hidden} to {self.width} channels; "
                f"the largest useful rank is {largest}"
            )
        return self
