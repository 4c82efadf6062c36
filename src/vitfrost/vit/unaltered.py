"""What a module in memory may hide behind known classes: hooks, a forward pass of its own, adapters, parametrizations."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..errors import UnsupportedModel
from .kinds import is_kind
from .sites import ModelSites

_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called",
)  # fmt: skip


@torch.no_grad()
def take_hooks_off(model: nn.Module, size: tuple[int, int]) -> None:
    """Take hooks, and forward passes that single modules have of their own, off a model, in place.

    Raises UnsupportedModel where the outputs of an image of noise are others without them.
    """
    altered = [
        name for name, module in model.named_modules() if "forward" in vars(module) or any(getattr(module, each) for each in _HOOKS[:2])
    ]
    if not altered:
        return
    pixels = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    before = model(pixels)
    for name in altered:
        module = model.get_submodule(name)
        vars(module).pop("forward", None)
        for each in _HOOKS:
            getattr(module, each).clear()
    after = model(pixels)
    if before.shape != after.shape or not torch.allclose(before, after, rtol=1e-4, atol=1e-5, equal_nan=True):
        where = f"'{altered[0]}'" if altered[0] else f"this {type(model).__name__}"
        raise UnsupportedModel(f"{where} has a hook or a forward pass of its own, which changes what the model gives; take it off first")


def check_layers(model: nn.Module, sites: ModelSites) -> None:
    """Raise UnsupportedModel naming the first linear layer that is none of torch's, such as one with an adapter, or is parametrized."""
    for site in sites.linears:
        layer = model.get_submodule(site.name)
        if parametrize.is_parametrized(layer):
            raise UnsupportedModel(
                f"{site.name} is parametrized; make its weights plain with torch.nn.utils.parametrize.remove_parametrizations first"
            )
        if not is_kind(layer, nn.Linear, nn.Conv2d):
            raise UnsupportedModel(f"{site.name} is a {type(layer).__name__}, not a plain layer; merge an adapter into the weights first")
