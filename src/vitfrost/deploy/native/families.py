"""A quantized model as the tables of the native file, by its family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ...errors import VitfrostError
from ...vit import plain, swin
from . import pvt
from .format import ModelFile
from .parts import MEND
from .plain_vit import add_plain_vit
from .pvt import add_pvt
from .swin import add_swin

_WRITERS: tuple[tuple[Any, Callable[[ModelFile, nn.Module], None]], ...] = ((plain, add_plain_vit), (swin, add_swin), (pvt, add_pvt))
_KNOWN = "plain ViTs, DeiTs, Swin Transformers and PVT v2"


def check_family(module: nn.Module, name: str) -> None:
    """Raise VitfrostError for a model of a family that the engine does not run."""
    if not any(family.matches(module) for family, _ in _WRITERS):
        raise VitfrostError(f"{name} is a {type(module).__name__}, and the native engine runs {_KNOWN} so far; {MEND}")


def to_native(module: nn.Module, name: str) -> ModelFile:
    """The file of a model whose layers are QuantizedLayer and whose attention layers are MapAttention; maps without a quantizer are
    computed in 8 bits of each row's largest weight. Raises VitfrostError for what the engine does not run."""
    check_family(module, name)
    file = ModelFile()
    next(write for family, write in _WRITERS if family.matches(module))(file, module)
    return file
