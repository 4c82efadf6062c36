"""Feed-forward blocks as timm has them: fc1, activation and fc2; gated ones (SwiGLU, GeGLU), whose first layer makes gate and input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..errors import UnsupportedModel
from .compat import import_timm
from .kinds import is_kind, named
from .sites import FeedForwardSite, LinearSite

import_timm()
from timm.layers import GluMlp, Mlp, SwiGLU  # noqa: E402  (timm must be imported through the guard)
from timm.models.tiny_vit import NormMlp  # noqa: E402
from timm.models.vitamin import GeGluMlp  # noqa: E402

# By kind: the names of the layers that read the block's input (and the norm before it), and of the one that makes its output.
_LAYERS: dict[type[nn.Module], tuple[tuple[str, ...], str]] = {
    Mlp: (("fc1",), "fc2"),
    GluMlp: (("fc1",), "fc2"),
    NormMlp: (("fc1",), "fc2"),
    SwiGLU: (("fc1_g", "fc1_x"), "fc2"),
    GeGluMlp: (("w0", "w1"), "w2"),
}
KINDS = tuple(_LAYERS)
GATED = (GluMlp, SwiGLU, GeGluMlp)


def check_feed_forward(mlp: Any, name: str) -> None:
    """Raise UnsupportedModel for a block that is none of these, or made of convolutions."""
    if not is_kind(mlp, *KINDS) or isinstance(getattr(mlp, "fc2", None), nn.Conv2d):
        raise UnsupportedModel(f"{name} is a {named(mlp, *KINDS)} feed-forward block; only fc1-activation-fc2, gated or not, is supported")


def feed_forward(mlp: Any, name: str, index: int, tokens: int, norm: str | None) -> tuple[FeedForwardSite, list[LinearSite]]:
    """The site of a block, and its linear layers. `norm`: the LayerNorm before it, where only this block reads it.

    `hidden` is what the last layer reads; the first of a gated block makes twice as much, or there are two of them. Raises
    UnsupportedModel.
    """
    check_feed_forward(mlp, name)
    firsts, last = next(layers for kind, layers in _LAYERS.items() if isinstance(mlp, kind))
    second = getattr(mlp, last)
    alone = norm if len(firsts) == 1 else None
    linears = [LinearSite(f"{name}.{first}", "fc1", tokens, alone) for first in firsts]
    width, hidden = (second.outputs, second.inputs) if hasattr(second, "inputs") else (second.out_features, second.in_features)  # compact
    return FeedForwardSite(name, index, width, hidden, tokens), [
        *linears,
        LinearSite(f"{name}.{last}", "fc2", tokens),
    ]


def second_projection(model: nn.Module, site: str) -> str:
    """The name of the layer that makes the output of the feed-forward block `site`."""
    return f"{site}.w2" if hasattr(model.get_submodule(site), "w2") else f"{site}.fc2"


def check_relu(model: nn.Module, sites: Sequence[FeedForwardSite]) -> None:
    """Raise UnsupportedModel for a block that `use_relu` cannot change: one with a gate."""
    for site in sites:
        block = model.get_submodule(site.name)
        if isinstance(block, GATED) or not isinstance(getattr(block, "act", None), nn.Module):
            raise UnsupportedModel(
                f"{site.name} is a {named(block)} feed-forward block, whose activation is part of a gate and cannot become ReLU"
            )


def use_relu(model: nn.Module, sites: Sequence[FeedForwardSite]) -> None:
    """Put ReLU in place of the activation between the two layers of every feed-forward block, in place; raises as `check_relu`."""
    check_relu(model, sites)
    for site in sites:
        model.get_submodule(site.name).act = nn.ReLU()


def has_bare_hidden_layer(mlp: Any) -> bool:
    """Whether the block is fc1, an activation and fc2, and nothing else."""
    return is_kind(mlp, Mlp) and isinstance(mlp.norm, nn.Identity)
