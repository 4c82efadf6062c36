"""A model quantized layer by layer in the order of data: each layer sees what the quantized layers before it give.

The targets are the original's: its residual stream for layers that add to it, else what the layer's float weights make of the original's
inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ...configs.mixed import FULL
from ...errors import UnsupportedModel
from ...vit.attention import MapAttention
from ...vit.sites import LinearSite, ModelSites
from ...vit.stream import Landing, ResidualStream, first_read_by, read_by, tokens_of
from ..repair.constants import ValueSums, best_penalty
from ..repair.head_constants import DenseConstants
from ..repair.ridge import RidgeSums
from .attention_ranges import quantize_attention
from .halves import penalty_by_halves
from .modules import QuantizedLayer, UniformQuantizer
from .quantizers import uniform_codes
from .ranges import tail_quantiles
from .reparameterize import reparameterize
from .repq import QuantizationSettings
from .rounding import Rounding
from .search import input_range, integer_parameters, weight_parameters

Run = Callable[[ResidualStream, Tensor], Tensor]
RANGE_ROWS, CHANNEL_ROWS, ATTENTION_IMAGES = 1024, 8192, 8
TAIL = 0.001  # of a channel's values on either side, which its own range leaves out


@dataclass(frozen=True)
class LayerOptions:
    """What is done at a layer beside its ranges. `reparameterize`: channels of LayerNorms get ranges alike (RepQ-ViT); `ridge`: weights are
    fitted behind the input's quantizer; `rounding`: weights are rounded with propagation, and biases corrected."""

    settings: QuantizationSettings
    reparameterize: bool = True
    ridge: bool = False
    rounding: bool = False


@dataclass
class Segment:
    """A part of the forward pass, and the layers that it runs."""

    run: Run
    block: int | None
    layers: list[LinearSite] = field(default_factory=list)


def segments_of(stream: ResidualStream, sites: ModelSites) -> list[Segment]:
    """The forward pass in parts: what leads to block 0, the blocks with what lies between them, the head."""
    made = [Segment(lambda of, x: of.enter(x), None)]
    start: dict[int, Segment] = {}
    for index in range(len(stream.names)):
        if index and stream.parts.blocks[index].before is not None:
            made.append(Segment(lambda of, x, index=index: of.cross(index, x), None))  # type: ignore[misc]
        made.append(Segment(lambda of, x, index=index: of.through(index, x), index))  # type: ignore[misc]
        start[index] = made[-1]
    made.append(Segment(lambda of, x: of.leave(x), None))
    place = 0
    blocks = [next((n for n, name in enumerate(stream.names) if linear.name.startswith(f"{name}.")), None) for linear in sites.linears]
    for number, (linear, block) in enumerate(zip(sites.linears, blocks, strict=True)):
        if block is not None:
            place = made.index(start[block])
            made[place].layers.append(linear)
        elif place == 0:
            made[0].layers.append(linear)
        elif all(later is None for later in blocks[number:]):
            made[-1].layers.append(linear)
        else:
            made[place + 1].layers.append(linear)
    return made


class LayerWise:
    """One pass over `changed`, in place; `teacher` has the same stream and float weights. `weights`: see `token_weights`."""

    def __init__(
        self, changed: nn.Module, teacher: nn.Module, sites: ModelSites, options: LayerOptions, weights: dict[str, tuple[float, float]]
    ):
        self.changed, self.teacher = ResidualStream(changed), ResidualStream(teacher)
        self.sites, self.options, self.weights = sites, options, weights
        self.prefix = {site.name.rpartition(".")[0]: site.prefix_tokens for site in sites.attention}
        self.segments = segments_of(self.changed, sites)
        self.penalties: dict[str, float | None] = {}  # None: infinite

    @property
    def count(self) -> int:
        """How many layers there are."""
        return len(self.sites.linears)

    def run(self, batches: Sequence[Float[Tensor, "_ 3 height width"]]) -> Iterator[str]:
        """Quantize layer by layer, and name each that is done."""
        own, aims = list(batches), list(batches)
        for segment in self.segments:
            reads: dict[str, list[Tensor]] = {}
            with torch.no_grad():
                aimed = self._teacher_reads(segment, aims, reads)
            for linear in segment.layers:
                with torch.no_grad():
                    if linear.role == "proj":
                        self._quantize_attention(segment, own[0], linear.name.rpartition(".")[0])
                        self._fit_constants(segment, own, aims, linear.name.rpartition(".")[0])
                    middle = reads.get(self._middle(segment), [])
                    self._quantize_layer(_Place(segment, linear, own, aims, aimed, reads.get(linear.name), middle))
                yield linear.name
            with torch.no_grad():
                own = [segment.run(self.changed, x) for x in own]
            aims = aimed

    def _middle(self, segment: Segment) -> str:
        """The name of the module that reads the stream between attention and feed-forward block; empty outside of blocks."""
        return "" if segment.block is None else f"{self.teacher.names[segment.block]}.{self.teacher.parts.after_attention}"

    def _teacher_reads(self, segment: Segment, aims: list[Tensor], reads: dict[str, list[Tensor]]) -> list[Tensor]:
        """What the original's segment puts out, and in `reads` what its layers and the module between its two halves read."""
        known = dict(self.teacher.model.named_modules())
        names = [*(linear.name for linear in segment.layers), *([self._middle(segment)] if segment.block is not None else [])]
        watched = {name: known[name] for name in names if name in known}
        outputs = []
        for x in aims:
            with ExitStack() as stack:
                seen = {name: stack.enter_context(read_by(module)) for name, module in watched.items()}
                outputs.append(segment.run(self.teacher, x))
            for name, inputs in seen.items():
                reads.setdefault(name, []).extend(inputs)
        return outputs

    def _quantize_attention(self, segment: Segment, batch: Tensor, name: str) -> None:
        attention = self.changed.model.get_submodule(name)
        settings = self.options.settings
        bits = settings.parts.of_heads(name, attention.order) if isinstance(attention, MapAttention) else ()
        if isinstance(attention, MapAttention) and FULL not in bits:
            images = batch[:ATTENTION_IMAGES]
            quantize_attention(attention, bits, settings.levels, lambda: segment.run(self.changed, images), settings.any_base)

    def _fit_constants(self, segment: Segment, own: list[Tensor], aims: list[Tensor], name: str) -> None:
        """Fit dense constants of frozen heads to what the original's heads put out, from quantized values."""
        known = dict(self.teacher.model.named_modules())
        if not self.options.ridge or segment.block is None or name not in known:
            return
        found, block = DenseConstants.of(self.changed.model.get_submodule(name), known[name]), segment.block
        if found is None:
            return
        halves = ValueSums(), ValueSums()
        until, aimed_until = self.changed.after_attention(block), self.teacher.after_attention(block)
        for number, (x, aim) in enumerate(zip(own, aims, strict=True)):
            found.add(
                halves[2 * number >= len(own)],
                lambda x=x: self.changed.through(block, x, until),  # type: ignore[misc]
                lambda aim=aim: self.teacher.through(block, aim, aimed_until),  # type: ignore[misc]
            )
        if not all(half.images for half in halves):
            return
        penalty = best_penalty(*halves)
        self.penalties[f"{name}.constants"] = penalty
        if penalty is not None:
            halves[0].merge(halves[1])
            found.take(halves[0].solve(penalty))

    def _quantize_layer(self, place: _Place) -> None:
        name, (weight_bits, bits) = place.linear.name, self.options.settings.of_layer(place.linear)
        layer: Any = self.changed.model.get_submodule(name)
        aim = _Aim(layer.weight.detach().clone(), None if layer.bias is None else layer.bias.detach().clone(), place.reads)
        if layer.bias is None and (self.options.ridge or self.options.rounding):
            layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)), requires_grad=False)
        quantizer, inputs = None, None
        if bits != FULL:
            if self.options.reparameterize and place.linear.norm is not None:
                self._even_out(place, layer, bits)
            quantizer, inputs = UniformQuantizer(bits), self._inputs(place, layer)
            self._set_range(layer, quantizer, inputs)
        self.changed.model.set_submodule(name, QuantizedLayer(layer, 32, quantizer))
        grouped = isinstance(layer, nn.Conv2d) and layer.groups > 1
        total = None
        if (self.options.ridge or self.options.rounding) and not grouped:
            landing = self._landing(place)
            halves = self._sums(place, layer, aim, inputs, landing)
            total = RidgeSums(*halves[0].crossed.shape)
            for half in halves:
                total.merge(half)
            self._fit(name, layer, halves, total, None if landing is None else landing.scale)
        made = QuantizedLayer(layer, weight_bits, quantizer)
        if weight_bits == FULL or grouped:
            made.set_weight(layer.weight)
        else:
            self._round(layer, made, total)
        self.changed.model.set_submodule(name, made)

    def _inputs(self, place: _Place, layer: nn.Module) -> list[Tensor]:
        return [first_read_by(layer, lambda x=x: place.segment.run(self.changed, x)) for x in place.own]  # type: ignore[misc]

    def _row_weights(self, place: _Place, x: Tensor, count: int) -> Tensor:
        weights = torch.ones(count)
        if place.linear.name in self.weights and x.ndim == 3:
            block = next(block for block in self.prefix if place.linear.name.startswith(f"{block}."))
            by_token = torch.full((x.shape[1],), self.weights[place.linear.name][1])
            by_token[: self.prefix[block]] = self.weights[place.linear.name][0]
            weights = by_token.repeat(len(x))
        return weights

    def _even_out(self, place: _Place, layer: Any, bits: int) -> None:
        """Give the channels of the LayerNorm before a layer ranges alike, and the layer the weights that make up for it."""
        norm: Any = self.changed.model.get_submodule(place.linear.norm or "")
        rows = sample(self._inputs(place, layer), layer, CHANNEL_ROWS)
        low, high = (ends[0] for ends in tail_quantiles(rows.T.contiguous(), (1 - TAIL,)))
        moved = reparameterize(norm.weight, norm.bias, layer.weight.flatten(1), layer.bias, low, high, bits, "strict")
        if all(bool(each.isfinite().all()) for each in (moved.gamma, moved.beta, moved.weight, moved.bias)):
            norm.weight.data, norm.bias.data, layer.weight.data = moved.gamma, moved.beta, moved.weight.view(layer.weight.shape)
            layer.bias = nn.Parameter(moved.bias, requires_grad=False)

    def _set_range(self, layer: Any, quantizer: UniformQuantizer, inputs: list[Tensor]) -> None:
        rows = sample(inputs, layer, RANGE_ROWS)
        weight = layer.weight.flatten(1)
        weight = weight if rows.shape[1] == weight.shape[1] else None  # which a grouped convolution does not have as one matrix
        quantizer.scale, quantizer.zero_point = integer_parameters(*input_range(rows, weight, quantizer.bits), quantizer.bits)

    def _sums(
        self, place: _Place, layer: Any, aim: _Aim, read: list[Tensor] | None, landing: Landing | None
    ) -> tuple[RidgeSums, RidgeSums]:
        """Sums over the quantized inputs and what is left of the targets: of one half of the rows, and of the other."""
        made: Any = self.changed.model.get_submodule(place.linear.name)
        size = (layer.weight[0].numel(), len(layer.weight))
        halves = (RidgeSums(*size), RidgeSums(*size))
        read = read or (self._inputs(place, made) if landing is None else [])
        for number, x in enumerate(place.own):
            if landing is None:
                seen = read[number]
                inputs = rows_of(made.input_quantizer(seen) if made.input_quantizer else seen, layer)
                left = aim.of(number, seen, layer) - F.linear(inputs, layer.weight.flatten(1), layer.bias)
            else:
                inputs, left, seen = self._left_of_stream(place, made, landing, number, x)
            weights = self._row_weights(place, seen, len(inputs))
            middle = len(inputs) // 2 if len(place.own) == 1 else len(inputs) * (2 * number < len(place.own))
            for half, part in zip(halves, (slice(middle), slice(middle, None)), strict=True):
                half.add(inputs[part], left[part], weights[part])
        return halves

    def _landing(self, place: _Place) -> Landing | None:
        """Where the layer's outputs land in the residual stream; None for one that does not write to it."""
        linear, block = place.linear, place.segment.block
        if block is None or linear.role not in ("proj", "fc2") or linear.name.endswith(".down"):
            return None
        path = linear.name.removeprefix(f"{self.changed.names[block]}.").removesuffix(".up")
        try:
            return self.teacher.landing(block, path, linear.role == "proj", place.aims[0])
        except UnsupportedModel:
            return None

    def _left_of_stream(self, place: _Place, made: Any, landing: Landing, number: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantized inputs, what is left of the original's stream in units of the layer's outputs, and the inputs as they are."""
        block, at_mid = place.segment.block, place.linear.role == "proj"
        first = self.changed.parts.is_map(at_mid)
        assert block is not None
        with read_by(made) as seen:
            if at_mid:
                got = self.changed.through(block, x, self.changed.after_attention(block))
                wanted = place.middle[number]
            else:
                got, wanted = self.changed.through(block, x), place.aimed[number]
        got, wanted = tokens_of(got, first), tokens_of(wanted, first)
        read = seen[0] if made.input_quantizer is None else made.input_quantizer(seen[0])
        inputs = tokens_of(read, made.is_convolution).reshape(len(got), -1, made.float_weight[0].numel())[:, landing.rows]
        scale = landing.scale.to(got)
        left = (wanted - got) * torch.where(scale == 0, 0.0, 1 / scale)
        return inputs.flatten(0, 1), left.flatten(0, 1), seen[0]

    def _fit(self, name: str, layer: Any, halves: tuple[RidgeSums, RidgeSums], total: RidgeSums, scale: Tensor | None) -> None:
        """`scale`: what the residual stream takes of each output."""
        penalty = float("inf")
        if self.options.ridge and all(half.weight for half in halves):
            penalty = penalty_by_halves(*halves, None if scale is None else scale.square())
            self.penalties[name] = penalty if math.isfinite(penalty) else None
        found = total.solve(penalty)
        layer.weight.data = (layer.weight.double() + found.weight.view(layer.weight.shape)).float()
        layer.bias = nn.Parameter((layer.bias.double() + found.bias).float(), requires_grad=False)

    def _round(self, layer: Any, made: QuantizedLayer, total: RidgeSums | None) -> None:
        rows, bits = layer.weight.flatten(1), made.bits
        importance = None if total is None else total.products.diagonal().float()
        if importance is not None and not bool((importance > 0).any()):
            importance = None
        scale, zero_point = weight_parameters(rows, bits, importance)
        if self.options.rounding and total is not None:
            codes, scale, zero_point = Rounding(total.products, bits).best(rows, scale, zero_point)
        else:
            codes = uniform_codes(rows, scale[:, None], zero_point[:, None], bits)
        made.set_codes(codes.reshape(layer.weight.shape), scale, zero_point)
        if self.options.rounding and total is not None and made.bias is not None:
            made.bias.data = (made.bias.double() + (rows - made.weight.flatten(1)).double() @ total.input_mean).float()


@dataclass
class _Place:
    """A layer on its turn: the streams into its segment, of both models, what the original's segment puts out, what its layer reads, and
    its stream between attention and feed-forward block."""

    segment: Segment
    linear: LinearSite
    own: list[Tensor]
    aims: list[Tensor]
    aimed: list[Tensor]
    reads: list[Tensor] | None
    middle: list[Tensor]


@dataclass
class _Aim:
    """What a layer should put out: its float weights on the original's inputs, or on its own where the original has no such layer."""

    weight: Tensor
    bias: Tensor | None
    reads: list[Tensor] | None

    def of(self, number: int, own: Tensor, layer: nn.Module) -> Tensor:
        return F.linear(rows_of(own if self.reads is None else self.reads[number], layer), self.weight.flatten(1), self.bias)


def sample(inputs: list[Tensor], layer: nn.Module, count: int) -> Float[Tensor, "rows inputs"]:
    """Some rows of a layer's inputs, as many of each batch; no more than one batch is unfolded at a time."""
    share, generator = -(-count // len(inputs)), torch.Generator().manual_seed(0)
    unfolded = (rows_of(x, layer) for x in inputs)
    return torch.cat([own[torch.randperm(len(own), generator=generator)[:share]] for own in unfolded])


def rows_of(x: Tensor, layer: nn.Module) -> Float[Tensor, "rows inputs"]:
    """A layer's inputs as rows that its weights are multiplied with; of a grouped convolution all channels side by side."""
    if isinstance(layer, nn.Conv2d):
        columns = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
        return columns.transpose(1, 2).flatten(0, 1)
    return x.reshape(-1, x.shape[-1])
