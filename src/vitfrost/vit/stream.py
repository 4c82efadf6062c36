"""A model's residual stream, block by block: run one block on kept activations, and find where a layer's outputs land in the stream.

Shapes: B images, N positions of the stream, C channels, R outputs of a layer per image. The stream is [B, N, C], [B, H, W, C] or,
in channel-first form, [B, C, H, W]; it is kept as the blocks give it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import UnsupportedModel, VitfrostError
from .load import device_of
from .sites import ModelSites


class _Stop(Exception):
    """Ends a forward pass once what is wanted has been seen."""


@dataclass(frozen=True)
class Landing:
    """Where a layer's outputs are added to the stream: position n takes `scale` (LayerScale, else ones) times the output `rows[n]`."""

    scale: Float[Tensor, " channels"]
    rows: Int[Tensor, " positions"]


def block_names(sites: ModelSites) -> list[str]:
    """The blocks in the order in which data passes them; each has one feed-forward block, and attention or a convolution before it."""
    return [site.name.rpartition(".")[0] for site in sites.feed_forward]


def tokens_of(activations: Float[Tensor, "images ..."], channels_first: bool) -> Float[Tensor, "images positions channels"]:
    """Channels last, positions side by side."""
    if channels_first:
        activations = activations.movedim(1, -1)
    return activations.flatten(1, -2)


class ResidualStream:
    """Runs a model's blocks one by one. The stream into block 0 comes from pixels, that into a later block from the one before.

    `names`: the blocks in order (`block_names`). Raises UnsupportedModel where a block does not run on one stream.
    """

    def __init__(self, model: nn.Module, names: list[str], image_size: tuple[int, int]):
        self.model, self.names, self.image_size = model, names, image_size
        self.blocks = [model.get_submodule(name) for name in names]
        self.device = device_of(model)
        self._extras: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._joined: list[bool] = []
        self._trace()

    def _pixels(self, images: int) -> Float[Tensor, "images 3 height width"]:
        return torch.zeros(images, 3, *self.image_size, device=self.device)

    @torch.no_grad()
    def _trace(self) -> None:
        """Note what the blocks are given beside the stream, and whether anything happens between them."""
        outputs: list[Any] = [None]

        def before(_: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            self._extras.append((inputs[1:], options))
            self._joined.append(inputs[0] is outputs[-1])

        handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in self.blocks]
        handles += [block.register_forward_hook(lambda _, inputs, output: outputs.append(output)) for block in self.blocks]
        try:
            self.model(self._pixels(1))
        finally:
            for handle in handles:
                handle.remove()
        if len(self._extras) != len(self.blocks) or not all(isinstance(output, Tensor) for output in outputs[1:]):
            raise UnsupportedModel(
                f"{type(self.model).__name__} does not pass one stream once through each of its {len(self.blocks)} blocks"
            )

    def mid(self, index: int) -> nn.Module:
        """The module of block `index` that reads the stream right after attention: Next-ViT's projection, else the second norm."""
        block: Any = self.blocks[index]
        found: nn.Module = block.projection if hasattr(block, "projection") else block.norm2
        return found

    @torch.no_grad()
    def enter(self, pixels: Float[Tensor, "images 3 height width"]) -> Tensor:
        """The stream into block 0."""
        return self._until(0, pixels)

    @torch.no_grad()
    def cross(self, index: int, stream: Tensor) -> Tensor:
        """The stream into block `index`, from what the block before it put out; between stages the model's own layers run."""
        if self._joined[index]:
            return stream
        skipped = self.blocks[:index]
        try:
            for number, block in enumerate(skipped):
                block.forward = (lambda x, *_, **__: x) if number < index - 1 else (lambda *_, **__: stream)
            return self._until(index, self._pixels(len(stream)))  # whatever is in the picture, `stream` takes its place
        finally:
            for block in skipped:
                del block.forward

    @torch.no_grad()
    def through(self, index: int, stream: Tensor, until: nn.Module | None = None) -> Tensor:
        """What block `index` puts out; with `until`, what that module in it reads, and nothing after it runs."""
        extras, options = self._extras[index]
        if until is None:
            output: Tensor = self.blocks[index](stream, *extras, **options)
            return output
        return _read(until, lambda: self.blocks[index](stream, *extras, **options))

    @torch.no_grad()
    def reads_only_prefix(self, prefix: int) -> bool:
        """Whether the model's outputs depend on the first `prefix` tokens that the last block puts out, and on no others."""
        if not prefix:
            return False
        shape = self.through(len(self.blocks) - 1, self._stream_into_last()).shape
        stream = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        changed = stream.clone()
        changed[:, prefix:] = changed[:, prefix:].flip(2)
        outputs = []
        for given in (stream, changed):
            handle = self.blocks[-1].register_forward_hook(lambda _, inputs, output, given=given: given)
            try:
                outputs.append(self.model(self._pixels(1)))
            finally:
                handle.remove()
        return torch.equal(*outputs)

    def _stream_into_last(self) -> Tensor:
        return self._until(len(self.blocks) - 1, self._pixels(1))

    def _until(self, index: int, pixels: Tensor) -> Tensor:
        return _read(self.blocks[index], lambda: self.model(pixels))

    @torch.no_grad()
    def landing(self, index: int, layer: str, at_mid: bool, channels_first: bool, like: Tensor) -> Landing:
        """Where the outputs of `layer` (a name below block `index`) land: in the stream after attention, or after the block. `like`: a
        stream into the block, for its shape.

        Found by letting a copy of the block run in float64 with zeros, ones and then row numbers as the layer's outputs. Raises
        UnsupportedModel where the outputs are not simply added to the stream, each channel with a scale of its own.
        """
        extras, options = self._extras[index]
        twin = copy.deepcopy(self.blocks[index]).double()
        until = twin.get_submodule(_name_in(self.blocks[index], self.mid(index))) if at_mid else None
        stream = torch.zeros(1, *like.shape[1:], dtype=torch.float64, device=self.device)
        found: list[Tensor] = []
        for kind in ("zeros", "ones", "rows"):

            def replace(_: nn.Module, inputs: tuple[Any, ...], output: Tensor, kind: str = kind) -> Tensor:
                if kind == "rows":
                    is_map = channels_first and output.ndim == 4
                    last = output.movedim(1, -1) if is_map else output
                    numbers = torch.arange(last[..., 0].numel(), dtype=output.dtype, device=output.device).view(*last.shape[:-1], 1)
                    rows = numbers.expand(last.shape)
                    return rows.movedim(-1, 1) if is_map else rows
                return torch.full_like(output, float(kind == "ones"))

            handle = twin.get_submodule(layer).register_forward_hook(replace)
            try:
                if until is None:
                    found.append(twin(stream, *extras, **options))
                else:
                    found.append(_read(until, lambda: twin(stream, *extras, **options)))
            finally:
                handle.remove()
        zeros, ones, rows = (tokens_of(each, channels_first)[0] for each in found)
        scale = (ones - zeros)[0]
        channel = int(scale.abs().argmax())
        places = ((rows - zeros)[:, channel] / scale[channel]).round()
        tolerance = 1e-9 * float(scale.abs().max())
        landed = places[:, None] * scale
        if (
            not tolerance
            or (ones - zeros - scale).abs().max() > tolerance
            or (rows - zeros - landed).abs().max() > 1e-3 * scale.abs().max()
        ):
            raise UnsupportedModel(
                f"the outputs of {self.names[index]}.{layer} are not added to the residual stream as they are, so it cannot be repaired"
            )
        return Landing(scale, places.long())


def _name_in(block: nn.Module, module: nn.Module) -> str:
    return next(name for name, each in block.named_modules() if each is module)


def _read(module: nn.Module, run: Any) -> Tensor:
    """What `module` is given first when `run` is called, which is ended there."""
    seen: list[Tensor] = []

    def stop(_: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        seen.append(inputs[0])
        raise _Stop

    handle = module.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        run()
    except _Stop:
        return seen[0]
    finally:
        handle.remove()
    raise VitfrostError(f"{type(module).__name__} was not reached in a forward pass")


@contextmanager
def read_by(layer: nn.Module) -> Iterator[list[Tensor]]:
    """A list that holds what `layer` was given last."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen[:] = [inputs[0]]

    handle = layer.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def output_from(module: nn.Module, layer: nn.Module, inputs: Tensor) -> Iterator[None]:
    """Let `module` put out what its last `layer` makes of `inputs`, without running what comes before it."""
    module.forward = lambda *_, **__: layer(inputs)
    try:
        yield
    finally:
        del module.forward
