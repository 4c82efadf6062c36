"""A model's residual stream, block by block: run a model from any block on, and find where a layer's outputs land in the stream.

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
from .families import forward_pass
from .load import device_of


class _Stop(Exception):
    """Ends a forward pass once what is wanted has been seen."""


@dataclass(frozen=True)
class Landing:
    """Where a layer's outputs are added to the stream: position n takes `scale` (LayerScale, else ones) times the output `rows[n]`."""

    scale: Float[Tensor, " channels"]
    rows: Int[Tensor, " positions"]


def tokens_of(activations: Float[Tensor, "images ..."], channels_first: bool) -> Float[Tensor, "images positions channels"]:
    """Channels last, positions side by side."""
    if channels_first:
        activations = activations.movedim(1, -1)
    return activations.flatten(1, -2)


class ResidualStream:
    """Runs a model's blocks one by one, on streams that the caller keeps, so that nothing before a block has to run again.

    `names` are the blocks in order; each has one feed-forward block, and attention or a convolution before it. The stream into block
    0 comes from `enter`, that into a later block from `advance`, the outputs from `leave`.

    Raises UnsupportedModel for a model of no known family, and for one that computes anything else than its family's blocks do.
    """

    def __init__(self, model: nn.Module):
        self.model, self.parts = model, forward_pass(model)
        self.names = [call.name for call in self.parts.blocks]
        self.blocks = [model.get_submodule(name) for name in self.names]
        self.device = device_of(model)
        self._check()

    @torch.no_grad()
    def _check(self) -> None:
        """Compare with the model as a whole on one image of noise."""
        drawn = torch.randn(1, 3, *self.parts.image_size, generator=torch.Generator().manual_seed(0))
        pixels = drawn.to(next(self.model.parameters(), drawn))
        whole, parts = self.model(pixels), self.run(self.enter(pixels))
        if not bool(whole.isfinite().all()):
            raise VitfrostError(f"outputs of this {type(self.model).__name__} are not finite on an image of noise; look at its weights")
        if not torch.allclose(self.leave(parts), whole, rtol=1e-3, atol=1e-3 * float(whole.abs().max()), equal_nan=True):
            raise UnsupportedModel(f"this {type(self.model).__name__} computes something else than its blocks one after another")

    def block_of(self, name: str) -> int:
        """The number of the block that holds a layer. Raises ValueError for a layer outside the blocks."""
        for number, block in enumerate(self.names):
            if name.startswith(f"{block}."):
                return number
        raise ValueError(f"{name} is in no block")

    def after_attention(self, index: int) -> nn.Module:
        """The module of block `index` that reads the stream right after attention."""
        return self.blocks[index].get_submodule(self.parts.after_attention)

    @torch.no_grad()
    def enter(self, pixels: Float[Tensor, "images 3 height width"]) -> Tensor:
        """The stream into block 0."""
        return self.cross(0, self.parts.stem(pixels))

    @torch.no_grad()
    def cross(self, index: int, stream: Tensor) -> Tensor:
        """The stream into block `index`, from what the block before it put out; between stages the model's own layers run."""
        before = self.parts.blocks[index].before
        return stream if before is None else before(stream)

    @torch.no_grad()
    def through(self, index: int, stream: Tensor, until: nn.Module | None = None) -> Tensor:
        """What block `index` puts out; with `until`, what that module in it reads, and nothing after it runs."""
        arguments = self.parts.blocks[index].arguments
        if until is None:
            output: Tensor = self.blocks[index](stream, *arguments)
            return output
        return first_read_by(until, lambda: self.blocks[index](stream, *arguments))

    def run(self, stream: Tensor, first: int = 0, end: int | None = None) -> Tensor:
        """From the stream into block `first` to that into block `end`, or to what the last block puts out."""
        for index in range(first, len(self.blocks) if end is None else end):
            stream = self.through(index, stream)
            if index + 1 < len(self.blocks):
                stream = self.cross(index + 1, stream)
        return stream

    @torch.no_grad()
    def leave(self, stream: Tensor) -> Tensor:
        """The model's outputs, from what the last block put out."""
        return self.parts.head(stream)

    @torch.no_grad()
    def reads_only_prefix(self, prefix: int) -> bool:
        """Whether the model's outputs depend on the first `prefix` tokens that the last block puts out, and on no others."""
        if not prefix:
            return False
        shape = self.run(self.enter(torch.zeros(1, 3, *self.parts.image_size, device=self.device))).shape
        stream = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        changed = stream.clone()
        changed[:, prefix:] = changed[:, prefix:].flip(2)
        return torch.equal(self.leave(stream), self.leave(changed))

    @torch.no_grad()
    def landing(self, index: int, layer: str, at_mid: bool, like: Tensor) -> Landing:
        """Where the outputs of `layer` (a name below block `index`) land: in the stream after attention, or after the block. `like`: a
        stream into the block, for its shape.

        Found by letting a copy of the block run in float64 with zeros, ones and then row numbers as the layer's outputs. Raises
        UnsupportedModel where the outputs are not simply added to the stream, each channel with a scale of its own.
        """
        arguments, channels_first = self.parts.blocks[index].arguments, self.parts.channels_first
        found_as = self.parts.is_map(at_mid)
        twin = copy.deepcopy(self.blocks[index]).double()
        until = twin.get_submodule(self.parts.after_attention) if at_mid else None
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
                    found.append(twin(stream, *arguments))
                else:
                    found.append(first_read_by(until, lambda: twin(stream, *arguments)))
            finally:
                handle.remove()
        zeros, ones, rows = (tokens_of(each, found_as)[0] for each in found)
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


def first_read_by(module: nn.Module, run: Any) -> Tensor:
    """What `module` is given first when `run` is called, which is ended there. Raises VitfrostError where it is not reached."""
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


class _Constant(nn.Module):
    """Puts out one tensor, whatever it is given; a block that asks it for more gets what `original` has."""

    def __init__(self, output: Tensor, original: nn.Module):
        super().__init__()
        self.output, self.original = output, (original,)  # in a tuple it is no part of the model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["original"][0], name)

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self.output


@contextmanager
def output_in_place_of(model: nn.Module, name: str, output: Tensor) -> Iterator[None]:
    """Let the module `name` of `model` put out `output` meanwhile, without running."""
    module = model.get_submodule(name)
    model.set_submodule(name, _Constant(output, module))
    try:
        yield
    finally:
        model.set_submodule(name, module)
