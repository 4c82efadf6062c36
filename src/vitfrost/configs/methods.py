"""What is done to a model: freezing, hallucination, compact blocks, quantization, repair. All but the repair are parts of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, model_serializer, model_validator
from pydantic_core import ArgsKwargs, PydanticCustomError

from ..methods.constant_heads.kinds import KINDS
from ..plans.criteria import CRITERIA
from .base import PYTHON_ONLY, Flag, Images, Nonnegative, Positive, Seed, Share, config, idle_seed
from .mixed import BitsOfParts, head_words, heads_of, layer_of, layer_words

Bits = Literal[2, 3, 4, 5, 6, 7, 8, 32]
Space = Literal["logits", "post-softmax"]
InterMap = Literal["linear", "copy", "pair"]
IntraMap = Literal["none", "3x3", "5x5", "key-grid"]
Norm = Literal["batch", "none"]
ProtectedPart = Literal["cls-rows", "cls-columns"]
KERNEL_SIZES: dict[IntraMap, int] = {"none": 0, "3x3": 3, "5x5": 5, "key-grid": 3}
FULL_PRECISION: Literal[32] = 32
REPQ = "repq"


def _known(name: str) -> str:
    if name not in CRITERIA:
        raise ValueError(f"by is '{name}'; it should be one of {', '.join(CRITERIA)}")
    return name


def _criteria() -> Sequence[str]:
    return tuple(CRITERIA)


def _known_kind(name: str, *others: str) -> str:
    known = (*KINDS, *others)
    if name not in known:
        raise PydanticCustomError("kind", "it should be one of {names}", {"names": ", ".join(known)})
    return name


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise PydanticCustomError("odd", "it should be odd, as a kernel around a patch is")
    return value


Kind = Annotated[str, AfterValidator(lambda name: _known_kind(name))]
KindOrAuto = Annotated[str, AfterValidator(lambda name: _known_kind(name, "auto"))]
Window = Annotated[Positive, AfterValidator(_odd)]
Protected = Annotated[tuple[ProtectedPart, ...], AfterValidator(lambda parts: tuple(sorted(set(parts))))]


@config
class FreezeEntries:
    """Freeze single attention weights to their means over images (EAM section 4.4)."""

    TITLE: ClassVar[str] = "frozen attention weights"
    SWITCH: ClassVar[str] = "ratio"

    ratio: Annotated[Share, Flag("freeze", "SHARE", default="0.2, or none where layers are changed in other ways")] = 0.2
    """Share of the attention weights that are frozen (tau of EAM equation 15), 0 to 1."""
    by: Annotated[str, Flag(choices=_criteria)] = "entropy"
    """Criterion; the weights with the lowest values are frozen."""
    scope: Literal["head", "layer", "model"] = "head"
    """Where the share is taken: in every head's map, in every layer, or in the whole model. EAM's equation is per head."""
    ties: Literal["rank", "strict", "le"] = "rank"
    """`rank`: exactly floor(share n) weights (ties by variance, mean, position). With a threshold, `strict` as printed in EAM equation 15
    makes the weights at the threshold zero, `le` freezes them."""
    protect: Annotated[Protected, Flag(form="words")] = ()
    """Rows (queries) or columns (keys) of prefix tokens that are never frozen."""
    renormalize: Literal["none", "mass", "renorm"] = "none"
    """EAM equation 15 leaves rows that do not sum to one. `mass` scales the computed weights to what the frozen ones leave (a partial
    softmax); `renorm` divides the merged row by its sum."""
    bits: Annotated[Bits, Flag("frozen-bits")] = 4
    """Bits of the frozen constants on the log-sqrt2 grid, or 32 for floating point."""
    grid: Annotated[Literal["layer", "head"], Flag("frozen-grid")] = "layer"
    """Step of that grid: that of the layer's own map quantizer, or one fitted to each head's constants."""
    order: Literal["quantize-merge", "merge-quantize"] = "quantize-merge"
    """Whether maps are quantized before the constants are merged in, or after."""
    seed: Seed = 0
    """Seed of the criterion `random`."""

    @staticmethod
    def of_file(data: dict[str, Any]) -> dict[str, Any]:
        """The fields out of the part of a plan file, which also names the unit."""
        if data.get("unit", "entry") != "entry":
            raise ValueError(f"unit is '{data['unit']}'; it should be 'entry' (whole heads stand in constants)")
        if "ratio" not in data:
            raise ValueError("ratio is missing")
        return {key: value for key, value in data.items() if key != "unit"}

    @model_validator(mode="after")
    def _criterion_is_known(self) -> FreezeEntries:
        _known(self.by)
        return self

    @model_serializer(mode="wrap")
    def _as_in_files(self, handler: Any) -> dict[str, Any]:
        data = handler(self)
        return {"unit": "entry", "by": data["by"]} | data if "by" in data else data

    def idle(self) -> dict[str, str]:
        """Fields without effect."""
        return idle_seed(self.by) | ({"grid": "bits"} if self.bits == FULL_PRECISION else {})


@config
class FreezeHeads:
    """Freeze whole heads or layers to constant maps; they lose queries, keys and logits, which saves time."""

    TITLE: ClassVar[str] = "heads and layers frozen whole"
    SWITCH: ClassVar[str] = "ratio"

    ratio: Annotated[Share | None, Flag("freeze", "SHARE")] = None
    """Share of the model's heads or layers that are frozen, 0 to 1; a search finds it itself."""
    unit: Literal["head", "layer"] = "head"
    """Single heads, or layers with all their heads."""
    by: Annotated[str | None, Flag(choices=_criteria)] = None
    """Criterion, summed up or averaged over a head's map; the lowest are frozen. If not given: `fisher` where the statistics have
    sensitivity, else `entropy`; without statistics the first heads."""
    kind: Annotated[KindOrAuto, Flag("constants", choices=lambda: (*KINDS, "auto"))] = "auto"
    """`dense` maps, `toeplitz` (by relative position on the patch grid), `local` (a window and a uniform rest), or `auto`: the cheapest of
    them that the tolerance allows."""
    window: Window | None = None
    """Side of local kernels in patches, odd; 7, or what the tolerance allows, if not given."""
    tolerance: Nonnegative = 0.1
    """How much a constant's structure may add to the error at the layer's output, relative to what freezing itself does."""
    seed: Seed = 0
    """Seed of the criterion `random`."""

    @model_serializer(mode="wrap")
    def _as_in_files(self, handler: Any) -> dict[str, Any]:
        data = handler(self)
        return {key: data[key] for key in ("unit", "by") if key in data} | data

    def idle(self) -> dict[str, str]:
        """Fields without effect."""
        found = idle_seed(self.by) | ({} if self.kind == "auto" or KINDS[self.kind].has_window else {"window": "kind"})
        return found if self.kind == "auto" else found | {"tolerance": "kind"}


@config
class WindowHeads:
    """Let heads look only at a window of the patch grid around every patch, and at prefix tokens; they keep their queries and keys."""

    TITLE: ClassVar[str] = "windowed heads"
    SWITCH: ClassVar[str] = "ratio"

    ratio: Annotated[Share | None, Flag("windowed", "SHARE")] = None
    """Share of the model's heads that are windowed, 0 to 1: of those that nothing else is done to, those with the least mass outside; a
    search finds it itself."""
    window: Annotated[Window, Flag("windowed-side")] = 15
    """Side of the window in patches, odd."""
    outside: Annotated[Literal["none", "mean"], Flag("windowed-outside")] = "none"
    """`mean`: what a head gives to patches outside on average stays, spread over all patches; `none`: the window has all the mass."""


@config
class Hallucinate:
    """Make the maps of some heads out of the others' (hMHSA, arXiv 2306.10875; its open points are fields)."""

    TITLE: ClassVar[str] = "hallucinated heads"
    SWITCH: ClassVar[str] = "share"

    share: Annotated[float, Field(strict=True, ge=0, lt=1), Flag("hallucinate", "SHARE")]
    """Share of every layer's heads, rounded down, that lose their queries and keys; their maps are made of the other heads'."""
    by: Annotated[Literal["medoids", "explained", "first", "random"] | None, Flag("hallucinate-by")] = None
    """Which heads are computed: medoids of the heads' similarity, those that explain the others' logits best, the first ones, or a draw. If
    not given: medoids; without statistics the first ones."""
    mix: Literal["ridge", "copy"] = "ridge"
    """How the mix across heads starts where trained weights are there: ridge regression of logits, or a copy of one head."""
    ridge: Nonnegative = 1e-3
    """Penalty of the regression, relative to the mean energy of a head."""
    seed: Annotated[Seed, Flag("hallucinate-seed")] = 0
    """Seed of the draw of computed heads."""
    space: Space = "logits"
    """`logits`: hallucinated logits get a softmax of their own. `post-softmax`: the softmax is saved; a map is a convex mix of the computed
    ones, and its rows are made to sum to one again after the convolution."""
    inter_map: InterMap = "linear"
    """`linear`: a learned mix of all computed heads. `pair`: one source head each, times a learned scalar (logits only). `copy`: one source
    head each, as it is."""
    intra_map: IntraMap = "3x3"
    """Depthwise convolution that is added to the mixed map, zero at the start. `3x3` and `5x5` slide over (query, key); `key-grid` slides
    3x3 over the patch grid of each query's keys."""
    prefix: Literal["skip", "include"] = "skip"
    """Whether the convolution leaves out rows and columns of prefix tokens (CLS, registers)."""
    bias: Annotated[bool, Field(strict=True), Flag("map-bias", form="yes-no")] = True
    """Whether every hallucinated map has a learned constant; it can only be felt through the border of a convolution."""

    @model_validator(mode="after")
    def _scalar_has_an_effect(self) -> Hallucinate:
        if self.space == "post-softmax" and self.inter_map == "pair":
            raise ValueError(
                "inter_map is 'pair': a pair-wise scalar has no effect on maps after the softmax; take space logits, or inter_map copy or "
                "linear"
            )
        return self

    @property
    def compares_heads(self) -> bool:
        """Whether heads are chosen by second moments of their logits."""
        return self.by in (None, "medoids", "explained")

    @property
    def fits_mix(self) -> bool:
        """Whether the mix starts as a regression, which takes second moments of the heads' logits."""
        return self.mix == "ridge" and self.inter_map != "copy"

    @property
    def kernel(self) -> int:
        """Side of the convolution's kernel; 0 without one."""
        return KERNEL_SIZES[self.intra_map]

    @property
    def has_bias(self) -> bool:
        """Whether there is a constant per hallucinated map to learn."""
        return self.bias and self.space == "logits" and self.inter_map != "copy"

    def idle(self) -> dict[str, str]:
        """Fields without effect."""
        found = idle_seed(self.by) | ({"mix": "inter_map"} if self.inter_map == "copy" and self.mix == "ridge" else {})
        if not self.fits_mix and self.by != "explained":
            found["ridge"] = "inter_map" if self.inter_map == "copy" else "mix"
        if self.intra_map == "none":
            found["prefix"] = "intra_map"
        if self.space != "logits" or self.inter_map == "copy":
            found["bias"] = "space" if self.space != "logits" else "inter_map"
        return found


@config
class Compact:
    """Factorize second feed-forward projections, y = U V h (cFFN, arXiv 2306.10875; its open points are fields)."""

    TITLE: ClassVar[str] = "compact feed-forward blocks"
    SWITCH: ClassVar[str] = "ratio"

    ratio: Annotated[Annotated[float, Field(strict=True, gt=0, lt=1)] | None, Flag("compact", "RATIO")] = 0.5
    """Rank of every second feed-forward projection as a ratio of its width, between 0 and 1; a search finds ranks itself."""
    init: Annotated[Literal["activations", "weights", "random"], Flag("compact-init")] = "activations"
    """Where trained weights are there: factors that change the outputs least on images, plain SVD of the weights, or untrained ones."""
    blocks: Annotated[Literal["all", "transformer"], Flag("compact-blocks")] = "all"
    """All feed-forward blocks, or only those after attention."""
    branches: Annotated[int, Field(strict=True, ge=1, le=4)] = 2
    """Parallel branches of each factor while training, 1 to 4; afterwards they are merged."""
    norm: Annotated[Norm, Flag("branch-norm")] = "batch"
    """BatchNorm over tokens behind every branch while training, or none."""
    expand: Annotated[bool, Field(strict=True)] = False
    """Branches of two weights each while training."""
    identity: Annotated[bool, Field(strict=True)] = False
    """One more branch while training: a fixed average of channels, which starts at zero."""
    noise: Nonnegative = 0.01
    """How far branches differ at the start, relative to their weights."""

    @model_validator(mode="after")
    def _identity_is_scaled(self) -> Compact:
        if self.identity and self.norm == "none":
            raise ValueError("identity is true, which needs norm: batch to scale it; set norm to batch, or identity to false")
        return self


QUANTIZER_FOLDERS = [str(Path(__file__).parents[1] / "passes" / "quantizers")]


def quantizers() -> tuple[str, ...]:
    """The names of the quantizers, those of the files in their folder: nothing else has to name a new one."""
    return tuple(sorted(module.name for module in iter_modules(QUANTIZER_FOLDERS)))


@config
class Quantize:
    """Quantize weights and activations."""

    TITLE: ClassVar[str] = "bits"

    weights: Annotated[
        Bits,
        Field(validation_alias=AliasChoices("weights", "weight_bits"), serialization_alias="weight_bits"),
        Flag("weight-bits", default="4 where single weights are frozen, else 32"),
    ] = 4
    """Bits of the weights; 32 leaves them in floating point."""
    activations: Annotated[
        Bits,
        Field(validation_alias=AliasChoices("activations", "activation_bits"), serialization_alias="activation_bits"),
        Flag("activation-bits", default="4 where single weights are frozen, else 32"),
    ] = 4
    """Bits of the activations; 32 leaves them in floating point."""
    levels: Annotated[Literal["published", "strict"], Flag(default="published with repq, else strict")] = "published"
    """`published`: as RepQ-ViT's code, 17 values at 4 bits (a separate zero for maps, zero points that are no integers); `strict`: 16."""
    method: Annotated[str, Flag("quantizer", choices=quantizers)] = REPQ
    """`repq`: RepQ-ViT (arXiv 2212.08254), as published. `fast`: in closed form, in minutes: ranges by head, rotation, weights fitted
    behind the quantizers, rounding with propagation. `best`: the same, then gradient steps. With both, frozen maps are in place before, and
    what surely makes it worse on calibration images held out is taken back."""
    steps: Annotated[tuple[str, ...] | None, Flag("quantizer-steps", form="words")] = None
    """Of `fast` and `best`: which steps beside the ranges, of `rotation`, `ridge`, `rounding` and (`best`) `polish`; all if not given."""
    relu: bool = False
    """ReLU in place of the activation of feed-forward blocks (APHQ-ViT, arXiv 2504.02508), for 3 bits; `fast` and `best` fit to it."""
    map_base: Annotated[Literal["sqrt2", "searched"], Flag("map-base")] = "sqrt2"
    """Of `fast` and `best`, the log grid of maps of up to 4 bits: `sqrt2`, as in RepQ-ViT; `searched`: that of sqrt2, 2^(3/4) and 2 which
    leaves the smallest error at each head's outputs (AdaLog, arXiv 2407.12951)."""
    layers: Annotated[
        Mapping[str, tuple[int, int]] | tuple[str, ...] | None,
        BeforeValidator(layer_words),
        Field(validation_alias=AliasChoices("layers", "layer_bits"), serialization_alias="layer_bits"),
        Flag("layer-bits", "NAME=W/A ...", form="words"),
    ] = None
    """Other bits of single layers, of weights and input: `head=8/8`, `blocks.0=8/8`, `*.mlp.fc2=4/8`. A name may be that of a module
    around layers, or a shell pattern; later ones win. In Python also {"head": (8, 8)}. The stem's input has 8 bits whatever is given."""
    heads: Annotated[
        Mapping[str, int | Mapping[int, int]] | tuple[str, ...] | None,
        BeforeValidator(head_words),
        Field(validation_alias=AliasChoices("heads", "head_bits"), serialization_alias="head_bits"),
        Flag("head-bits", "NAME:HEAD,...=BITS ...", form="words"),
    ] = None
    """Other bits of queries, keys, values and maps of single heads: `blocks.3.attn:0,2=8`, or `blocks.3.attn=8` for all heads of a layer.
    In Python also {"blocks.3.attn": {0: 8, 2: 8}}."""

    @model_validator(mode="before")
    @classmethod
    def _levels_of_method(cls, data: Any) -> Any:
        given = (data.kwargs or {}) if isinstance(data, ArgsKwargs) else data
        if not isinstance(given, dict) or given.get("method", REPQ) == REPQ or "levels" in given:
            return data
        given = {**given, "levels": "strict"}
        return ArgsKwargs(data.args, given) if isinstance(data, ArgsKwargs) else given

    @model_validator(mode="after")
    def _method_is_known(self) -> Quantize:
        if self.method not in quantizers():
            raise ValueError(f"method is '{self.method}'; it should be one of {', '.join(quantizers())}")
        if self.method != REPQ and self.levels != "strict":
            raise ValueError(f"levels is 'published', which goes with the method repq; {self.method} has strict levels")
        if self.relu and (self.method == REPQ or not self.parts.any):
            raise ValueError("relu needs a quantizer that fits layers to it; take fast or best, and bits below 32")
        return self

    @model_serializer(mode="wrap")
    def _as_in_files(self, handler: Any) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        own = {"method": REPQ, "relu": False, "map_base": "sqrt2"} | dict.fromkeys(("steps", "layer_bits", "head_bits", "layers", "heads"))
        return {key: value for key, value in data.items() if key not in own or value != own[key]}

    @property
    def parts(self) -> BitsOfParts:
        """The bits of every layer and head."""
        layers, heads = tuple(map(layer_of, self.layers or ())), tuple(map(heads_of, self.heads or ()))
        return BitsOfParts(self.weights, self.activations, layers, heads)

    def idle(self) -> dict[str, str]:
        """Fields without effect."""
        if not self.parts.any:
            return dict.fromkeys(("method", "steps", "map_base"), "weights")
        found = {} if self.parts.any_bases else {"map_base": "activations"}
        return dict.fromkeys(("steps", "map_base"), "method") if self.method == REPQ else found


RepairMethod = Literal["ridge", "bias"]
Role = Literal["proj", "fc2"]


@config
class Repair:
    """Fit output projections and second feed-forward projections to the original's residual stream on images, which need no labels.

    Defaults were chosen on DeiT-Tiny with a third of its maps hallucinated, blocks of rank d/2 and a fifth of the other weights frozen,
    fitted on 200 calibration images and judged by the KL divergence on 200 others. Penalty 0.01 / 0.1 / 0.3 / 1 with equal rows: 1.18 /
    1.05 / 1.03 / 1.08 nats; 0.1 with prefix weight 20: 0.91. The last block fitted as well: 1.83 (0.01), 1.46 (0.1). The penalty of
    constants was not chosen among others (docs/results/freezing.md has what it does).
    """

    TITLE: ClassVar[str] = "repair"
    SWITCH: ClassVar[str] = "method"

    method: Annotated[RepairMethod, Flag("repair")] = "ridge"
    """`ridge`: dense constants of frozen heads, weights and biases by ridge regression; `bias`: biases only."""
    images: Annotated[Images, Flag("repair-images", "COUNT")] = 300
    """How many images are drawn for it."""
    penalty: Annotated[Nonnegative, Flag("repair-penalty")] = 0.1
    """Holds the weights to what they were, relative to the mean variance of an input."""
    prefix_weight: Annotated[Nonnegative, PYTHON_ONLY] = 20.0
    """What the row of a prefix token counts, where that of a patch counts 1."""
    roles: Annotated[tuple[Role, ...], PYTHON_ONLY] = get_args(Role)
    """Which projections are fitted: output projections of attention, second feed-forward projections."""
    skip_last: Annotated[int | None, Field(ge=0), PYTHON_ONLY] = None
    """How many of the last blocks are left as they are. None leaves the last one where the classifier reads prefix tokens only: its patches
    then mean nothing, and a few hundred class tokens do not determine a layer."""
    constants_penalty: Annotated[Nonnegative | None, PYTHON_ONLY] = 0.01
    """Holds dense constants to the mean maps, relative to the mean square of a value; None leaves them."""

    def idle(self) -> dict[str, str]:
        """Fields without effect."""
        return {"penalty": "method", "constants_penalty": "method"} if self.method == "bias" else {}
