"""What of a module timm's registry can make again, and what its classifier looks like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import VitfrostError
from .classifier import classifier_of
from .compat import import_timm
from .load import create_model

timm = import_timm()
from timm.layers import DropPath  # noqa: E402  (timm must be imported through the guard)

_SIMPLE = (int, float, str, bool, tuple, type(None))


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside torch.compile's, DataParallel's and DistributedDataParallel's wrappers."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def classes_of(module: Any, state: Mapping[str, torch.Tensor] | None = None) -> int:
    """How many outputs the head has; with `state`, how many that state dict has for it."""
    head = classifier_of(module)
    if head is None:
        return int(getattr(module, "num_classes", 0))
    weight = None if state is None else state.get(f"{head[0]}.weight")
    fits = weight is not None and weight.ndim == 2 and weight.shape[1] == head[1].in_features
    return int(weight.shape[0]) if weight is not None and fits else head[1].out_features


def registry_options(module: Any, name: str, size: tuple[int, int], classes: int) -> dict[str, Any] | None:
    """The options with which timm makes a module of the same layers; None where it cannot."""
    if not timm.is_model(name):
        return None
    pool = getattr(module, "global_pool", None)
    for options in ({}, {"num_classes": classes}, {"num_classes": classes, "global_pool": pool}):
        try:
            with torch.device("meta"):  # layers without memory for their weights
                made = create_model(name, size, **options)
        except VitfrostError:
            continue
        if alike(module, made):
            return options
    return None


def alike(one: nn.Module, other: nn.Module) -> bool:
    """The same kinds of layers under the same names, with tensors of the same shapes and the same plain settings."""
    mine, theirs = dict(one.named_modules()), dict(other.named_modules())
    return mine.keys() == theirs.keys() and all(_settings(mine[name]) == _settings(theirs[name]) for name in mine)


def _settings(module: nn.Module) -> tuple[Any, ...]:
    """What a module is and does when it is evaluated; what training drops makes no difference."""
    if isinstance(module, nn.Identity | nn.Dropout | DropPath):
        return (nn.Identity,)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    own = {
        name: repr(value)
        for name, value in vars(module).items()
        if isinstance(value, _SIMPLE) and not name.startswith("_") and "drop" not in name and name not in ("training", "num_classes")
    }
    return type(module), shapes, own
