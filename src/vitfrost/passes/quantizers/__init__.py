"""The quantizers: `Quantize(method=NAME)` is the module NAME here.

Each has `QUANTIZER`, a `Quantizer`. `configs` reads the names of the files, so that a new one is a new file and nothing else.
"""

from __future__ import annotations

from importlib import import_module

from ...configs import Compress, Quantize
from ...configs.methods import quantizers
from ...errors import VitfrostError
from ..quantize_method import Quantizer
from ..work import Pass


def find_quantizer(name: str) -> Quantizer:
    """The quantizer of that name. Raises VitfrostError where there is none."""
    if name not in quantizers():
        raise VitfrostError(f"there is no quantizer {name}; there are {', '.join(quantizers())}")
    made: Quantizer = import_module(f".{name}", __name__).QUANTIZER
    return made


def quantizing_pass(config: Quantize, images: Compress) -> Pass:
    """The pass that quantizes as the configuration says."""
    return find_quantizer(config.method).make(config, images)
