"""A model's forward pass cut at its blocks, as its family describes it: pixels -> stem -> block after block -> head -> outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class BlockCall:
    """How one block is called.

    `before` leads from the output of the block before to the stream into this one (None: they are the same). `arguments` are given
    to the block beside the stream.
    """

    name: str
    before: Step | None = None
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class ForwardPass:
    """The parts of a forward pass, for images of `image_size` (height, width) in pixels.

    `stem` leads from pixels [B, 3, height, width] to the stream into the first block, `head` from the output of the last block to
    what the model puts out. `after_attention` names the module below a block that reads the stream right after attention.
    `channels_first`: the stream is [B, C, H, W]. What stands right after attention is so, too, or alone (`mid_channels_first`); so
    is what timm's `forward_features` gives (`tokens_channels_first`).
    """

    image_size: tuple[int, int]
    stem: Step
    blocks: tuple[BlockCall, ...]
    head: Step
    after_attention: str = "norm2"
    channels_first: bool = False
    mid_channels_first: bool = False
    tokens_channels_first: bool = False

    def is_map(self, at_mid: bool) -> bool:
        """Whether the stream has its channels first, right after attention (`at_mid`) or after a block."""
        return self.channels_first or (at_mid and self.mid_channels_first)

    @property
    def gives_maps(self) -> bool:
        """Whether the model's tokens have their channels first."""
        return self.channels_first or self.tokens_channels_first

    @property
    def norms_behind(self) -> bool:
        """Whether norms stand behind the layers, so that no layer's outputs reach the stream as they are."""
        return self.after_attention == "mlp"


def through_convolution(module: nn.Module, channels_last: bool) -> Step:
    """What leads through a module over maps with their channels first into a stream with them last; `channels_last`: from such a one."""

    def convolved(stream: Tensor) -> Tensor:
        found: Tensor = module(stream.permute(0, 3, 1, 2) if channels_last else stream).permute(0, 2, 3, 1)
        return found

    return convolved
