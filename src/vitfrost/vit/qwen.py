"""timm's vision towers of Qwen3-VL and Qwen3.5: learned and rotary positions, no prefix tokens, patches merged 2 x 2 behind the blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .attention import MapAttention
from .compat import import_timm
from .forward import BlockCall, ForwardPass
from .global_attention import GlobalAttention
from .grids import Grid, convolved, image_size_of
from .kinds import is_kind
from .sites import AttentionSite, LinearSite, ModelSites
from .stacks import Stack, stack_sites

import_timm()
from timm.layers import AttentionRope  # noqa: E402  (timm must be imported through the guard)
from timm.models.eva import EvaBlock  # noqa: E402

try:
    from timm.models.qwen3_vit import Qwen3VitClassifier, Qwen3VitEncoder
except ImportError:  # an older timm
    KINDS: tuple[type[nn.Module], ...] = ()
else:
    KINDS = (Qwen3VitEncoder, Qwen3VitClassifier)
NAMES = ("qwen3_vit_*",)


def matches(model: nn.Module) -> bool:
    """True for timm's encoder and for the classifier around one."""
    return is_kind(model, *KINDS)


def map_attention(original: nn.Module, site: AttentionSite) -> MapAttention:
    """The run-time attention that takes over an attention layer of this family."""
    return GlobalAttention(original, site)


def _encoder(model: Any) -> tuple[Any, str]:
    """The encoder, and its name with a dot behind it."""
    return (model.encoder, "encoder.") if isinstance(model, Qwen3VitClassifier) else (model, "")


def _grid(model: Any) -> Grid:
    return convolved(_encoder(model)[0].patch_embed.proj, image_size_of(model))


def final_grid(model: Any) -> Grid:
    """Rows and columns of the tokens that the encoder gives: squares of patches, where it merges them."""
    encoder, (height, width) = _encoder(model)[0], _grid(model)
    side = 1 if encoder.merger is None else encoder.merge_size
    return (height // side, width // side)


@torch.no_grad()
def forward_pass(model: Any) -> ForwardPass:
    """How such a model runs block by block; every block is given the rotations too."""
    (encoder, root), grid = _encoder(model), _grid(model)
    angles = encoder.rope.get_embed(shape=grid)

    def head(tokens: Tensor) -> Tensor:
        patches: Tensor = tokens.reshape(len(tokens), *grid, -1)
        if encoder.merger is not None:
            patches = encoder.merger(patches)
        elif encoder.global_pool == "avg":
            patches = patches.mean(dim=(1, 2))
        return model.forward_head(patches) if encoder is not model else patches

    return ForwardPass(
        image_size=image_size_of(model),
        stem=lambda pixels: encoder._pos_embed(encoder.patch_embed(pixels))[0],
        blocks=tuple(BlockCall(f"{root}blocks.{index}", None, (angles,)) for index in range(len(encoder.blocks))),
        head=head,
    )


def find_sites(model: Any) -> ModelSites:
    """Attention, feed-forward and linear sites. Raises UnsupportedModel naming the first part that is not supported."""
    (encoder, root), (height, width) = _encoder(model), _grid(model)
    stack = Stack("qwen", (EvaBlock,), (), (AttentionRope,), "EVA's blocks", root)
    sites = stack_sites(model, stack, image_size_of(model), 0, (height, width))
    if encoder.merger is None:
        return sites
    merged = (height // encoder.merge_size) * (width // encoder.merge_size)
    names = [name for name, layer in encoder.merger.named_modules() if isinstance(layer, nn.Linear)]
    return sites.keeping([LinearSite(f"{root}merger.{name}", "head", merged) for name in names])
