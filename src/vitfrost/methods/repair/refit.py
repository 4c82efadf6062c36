"""A changed model repaired layer by layer: what its blocks put out is fitted to what the original's put out for the same pictures.

In an attention the dense constants of frozen heads come first, then the output projection.

Both models run block by block on kept streams, so that every layer is fitted to what the repaired layers before it really give it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...configs import Repair
from ...errors import VitfrostError
from ...progress import track
from ...vit.sites import LinearSite, ModelSites
from ...vit.stream import Landing, ResidualStream, output_in_place_of, read_by, tokens_of
from .constants import ValueSums
from .head_constants import DenseConstants
from .ridge import Correction, RidgeSums

ROLES = ("proj", "fc2")
log = logging.getLogger("vitfrost")


@dataclass
class FittedLayer:
    """A layer that is fitted: its name below its block, where its outputs land, and whether that is right after attention."""

    name: str
    block: int
    path: str
    at_mid: bool


@dataclass
class _Spread:
    """How much a stream varies: sums over rows, for the scale of what is left."""

    rows: int = 0
    sums: Any = 0.0
    squares: float = 0.0

    def add(self, stream: Float[Tensor, "images positions channels"]) -> None:
        wide = stream.flatten(0, 1).double()
        self.rows, self.sums, self.squares = self.rows + len(wide), self.sums + wide.sum(0), self.squares + float(wide.square().sum())

    @property
    def variance(self) -> float:
        """Mean squared distance of a row to the mean row."""
        return self.squares / self.rows - float((self.sums / self.rows).square().sum())


@dataclass
class _Streams:
    """The streams of both models before a block, batch by batch."""

    original: list[Tensor] = field(default_factory=list)
    changed: list[Tensor] = field(default_factory=list)


@dataclass
class _Block:
    """What is kept of a block while its layers are fitted, batch by batch: what the original's puts out, and what the changed one's
    output projection (of `attention`) reads."""

    index: int
    attention: str = ""
    original: list[Tensor] = field(default_factory=list)
    mixed: list[Tensor] = field(default_factory=list)


def first_changed_block(changed: nn.Module, original: nn.Module, names: list[str]) -> int | None:
    """The first block whose state (weights, frozen maps, mixes) is not bit for bit that of the original; None where all are equal."""
    for index, name in enumerate(names):
        own, other = changed.get_submodule(name).state_dict(), original.get_submodule(name).state_dict()
        if own.keys() != other.keys():
            return index
        for key, value in own.items():
            if value.shape != other[key].shape or not torch.equal(value, other[key].to(value.device)):
                return index
    return None


def layers_to_fit(sites: ModelSites, stream: ResidualStream, first: int, end: int, options: Repair) -> list[list[FittedLayer]]:
    """The layers of the blocks `first` to `end` (excluded), by block. Of a compact projection it is the last factor."""
    found: list[list[FittedLayer]] = [[] for _ in stream.names]
    for index in range(first, end):
        block = f"{stream.names[index]}."
        for linear in sites.linears:
            if linear.name.startswith(block) and _is_last_factor(linear, options):
                found[index].append(FittedLayer(linear.name, index, linear.name.removeprefix(block), linear.role == "proj"))
    return found


def _is_last_factor(linear: LinearSite, options: Repair) -> bool:
    return linear.role in options.roles and not linear.name.endswith(".down")


class Refit:
    """One repair of `changed`, in place, after `original`. `sites` are those of the changed model, with its compact blocks.

    Raises VitfrostError where the models are equal, or have no stream that can be compared. A search may find a plan that changes the
    last block alone, which is left as it is: then a warning says so, and nothing is fitted.
    """

    def __init__(self, changed: nn.Module, original: nn.Module, sites: ModelSites, options: Repair):
        self.changed, self.original = ResidualStream(changed), ResidualStream(original)
        names = self.changed.names
        first = first_changed_block(changed, original, names)
        if first is None:
            raise VitfrostError(
                "there is nothing to repair: the plan changes no layer (frozen maps count only where activations stay in fp32)"
            )
        self.first, self.sites, self.options = first, sites, options
        self.prefix = {site.name.rpartition(".")[0]: site.prefix_tokens for site in sites.attention}
        by_default = int(self.original.reads_only_prefix(self.prefix.get(names[-1], 0)))
        self.skipped = by_default if options.skip_last is None else options.skip_last
        self.layers = layers_to_fit(sites, self.changed, first, len(names) - self.skipped, options)
        if not any(self.layers):
            log.warning("nothing is repaired: only %s and later blocks are changed, and the last one is left as it is", names[first])
        self.record: dict[str, dict[str, float]] = {}

    @torch.no_grad()
    def run(self, batches: Iterable[Float[Tensor, "_ 3 height width"]], total: int | None, progress: bool = False) -> dict[str, Any]:
        """Fit to the pictures, `total` batches of them (None: not known). Returns by layer what was left of the stream before and after,
        relative to how much the original's stream varies, on these pictures."""
        if not any(self.layers):
            return {}
        streams = _Streams()
        for pixels in track(batches, total, "repair: first layers", progress):
            stream = self.original.enter(pixels.to(self.original.device))
            for index in range(self.first):
                stream = self.original.cross(index + 1, self.original.through(index, stream))
            streams.original.append(stream)
        streams.changed = list(streams.original)
        steps = track(self._steps(streams), sum(len(layers) for layers in self.layers), "repair: layers", progress)
        for _ in steps:
            pass
        return self.record

    def _steps(self, streams: _Streams) -> Iterator[None]:
        last = max((index for index, layers in enumerate(self.layers) if layers), default=-1)
        for index in range(self.first, last + 1):
            block = _Block(index)
            for layer in self.layers[index]:
                self._fit(layer, streams, block)
                yield
            if index < last:
                self._advance(streams, block)

    def _advance(self, streams: _Streams, block: _Block) -> None:
        index = block.index
        for number, stream in enumerate(streams.original):
            out = block.original[number] if block.original else self.original.through(index, stream)
            streams.original[number] = self.original.cross(index + 1, out)
            streams.changed[number] = self.changed.cross(index + 1, self._changed_output(streams, block, number))

    def _changed_output(self, streams: _Streams, block: _Block, number: int) -> Tensor:
        """What the changed block puts out for a batch; its attention is not done again once its projection has been fitted."""
        if not block.mixed:
            return self.changed.through(block.index, streams.changed[number])
        changed = self.changed.blocks[block.index]
        mixed = changed.get_submodule(f"{block.attention}.proj")(block.mixed[number])
        with output_in_place_of(changed, block.attention, mixed):
            return self.changed.through(block.index, streams.changed[number])

    def _original_outputs(self, streams: _Streams, block: _Block, number: int, at_mid: bool) -> Tensor:
        """The original's stream after a block's attention, or after the block, for a batch; the latter is kept."""
        if number < len(block.original) and not at_mid:
            return block.original[number]
        if not at_mid:
            block.original.append(self.original.through(block.index, streams.original[number]))
            return block.original[number]
        with read_by(self.original.after_attention(block.index)) as seen:
            block.original.append(self.original.through(block.index, streams.original[number]))
        return seen[0]

    def _fit(self, layer: FittedLayer, streams: _Streams, block: _Block) -> None:
        """One layer, from all batches."""
        index = layer.block
        penalty = self.options.constants_penalty
        if layer.at_mid and self.options.method == "ridge" and penalty is not None:
            self._fit_constants(index, layer.path.rpartition(".")[0], streams, penalty)
        landing = self.changed.landing(index, layer.path, layer.at_mid, streams.changed[0])
        module = self.changed.blocks[index].get_submodule(layer.path)
        assert isinstance(module, nn.Linear | nn.Conv2d)
        sums, spread = RidgeSums(module.weight.shape[1], len(module.weight), self.changed.device), _Spread()
        channels_first = self.changed.parts.is_map(layer.at_mid)
        for number, stream in enumerate(streams.changed):
            with read_by(module) as seen:
                if layer.at_mid:
                    got = self.changed.through(index, stream, self.changed.after_attention(index))
                    block.mixed.append(seen[0])
                else:
                    got = self._changed_output(streams, block, number)
            wanted = self._original_outputs(streams, block, number, layer.at_mid).to(got.device)
            got, wanted = tokens_of(got, channels_first), tokens_of(wanted, channels_first)
            inputs = tokens_of(seen[0], isinstance(module, nn.Conv2d)).reshape(len(got), -1, module.weight.shape[1])[:, landing.rows]
            spread.add(wanted)
            sums.add(inputs.flatten(0, 1), (wanted - got).flatten(0, 1), self._weights(index, got))
        block.attention = layer.path.rpartition(".")[0] if layer.at_mid else block.attention
        self._take(layer, module, landing, sums, spread)

    def _fit_constants(self, index: int, path: str, streams: _Streams, penalty: float) -> None:
        """Dense constants of an attention, from all batches, to the outputs of the original's heads for the original's stream."""
        found = DenseConstants.of(self.changed.blocks[index].get_submodule(path), self.original.blocks[index].get_submodule(path))
        if found is None:
            return
        sums, spread = ValueSums(), _Spread()
        for changed, original in zip(streams.changed, streams.original, strict=True):
            wanted = found.add(
                sums,
                lambda stream=changed: self.changed.through(index, stream, self.changed.after_attention(index)),  # type: ignore[misc]
                lambda stream=original: self.original.through(index, stream, self.original.after_attention(index)),  # type: ignore[misc]
            )
            spread.add(wanted.flatten(1)[:, None])
        fitted = sums.solve(penalty)
        found.take(fitted)
        unit = spread.variance * fitted.maps.shape[0] or 1.0
        self.record[f"{self.changed.names[index]}.{path}.constants"] = {"before": fitted.before / unit, "after": fitted.after / unit}

    def _weights(self, index: int, stream: Float[Tensor, "images positions channels"]) -> Float[Tensor, " rows"] | None:
        prefix = self.prefix.get(self.sites.feed_forward[index].name.rpartition(".")[0], 0)
        if not prefix or self.options.prefix_weight == 1:
            return None
        weights = stream.new_ones(stream.shape[:2])
        weights[:, :prefix] = self.options.prefix_weight
        return weights.flatten()

    def _take(self, layer: FittedLayer, module: nn.Linear | nn.Conv2d, landing: Landing, sums: RidgeSums, spread: _Spread) -> None:
        fitted: Correction = sums.solve(float("inf") if self.options.method == "bias" else self.options.penalty)
        scale = landing.scale.to(fitted.bias)
        inverse = torch.where(scale == 0, 0.0, 1 / scale)  # a channel that LayerScale shuts off stays as it is
        change = (inverse[:, None] * fitted.weight).view(module.weight.shape)
        module.weight.copy_(module.weight.double() + change)
        if module.bias is not None:
            module.bias.copy_(module.bias.double() + inverse * fitted.bias)
        unit = spread.variance or 1.0
        self.record[layer.name] = {"before": fitted.before / unit, "after": fitted.after / unit}
