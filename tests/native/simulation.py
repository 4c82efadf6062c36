"""The simulation in PyTorch in double precision, and files that are written from it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vitfrost.deploy.native.families import to_native
from vitfrost.deploy.native.format import write_model
from vitfrost.methods.quantize.modules import QuantizedLayer
from vitfrost.methods.quantize.quantizers import uniform_codes, uniform_values
from vitfrost.methods.quantize.repq import QuantizationSettings, quantize_model
from vitfrost.methods.quantize.rotate import rotate
from vitfrost.model import Model
from vitfrost.vit.families import find_sites
from vitfrost.vit.grids import image_size_of


class PixelQuantizer(nn.Module):
    """Of pixels, whose codes come from float32 quotients."""

    def __init__(self, quantizer: Any):
        super().__init__()
        self.bits, self.scale, self.zero_point = quantizer.bits, quantizer.scale, quantizer.zero_point

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes = uniform_codes(x.float(), self.scale.float(), self.zero_point.float(), self.bits)
        return uniform_values(codes.double(), self.scale, self.zero_point)


def exact(module: nn.Module) -> nn.Module:
    """A copy in float64 with weights that are exactly what their codes stand for: what any other order of operations comes to."""
    made = copy.deepcopy(module).double()
    for layer in made.modules():
        if isinstance(layer, QuantizedLayer):
            shape = (-1,) + (1,) * (layer.codes.ndim - 1)
            layer.weight = uniform_values(layer.codes.double(), layer.scale.view(shape), layer.zero_point.view(shape))
            if layer.is_convolution and layer.codes.shape[1] == 3 and layer.input_quantizer is not None:
                layer.input_quantizer = PixelQuantizer(layer.input_quantizer)
    return made


def quantized(
    weight_bits: int, activation_bits: int, *, levels: Any = "strict", size: Any = 48, seed: int = 0, **options: Any
) -> nn.Module:
    """A small ViT with random weights, quantized on noise."""
    name = options.pop("name", "vit_tiny_patch16_224")
    given: dict[str, Any] = {"depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 7} | options
    return quantized_model(name, size, given, QuantizationSettings(weight_bits, activation_bits, levels), seed)


def stirred(name: str, size: Any, options: dict[str, Any], seed: int = 0) -> Model:
    """A model with random weights in which all layers matter, and norms and scales are no ones."""
    model = Model.open(name, weights="random", image_size=size, options=options, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each in model.module.parameters():
            spread = 0.3 if each.ndim > 1 else 0.2
            each.add_(spread * torch.randn(each.shape, generator=generator) * (each.ndim == 1 or 1 / each.shape[-1] ** 0.5 / 0.3))
    return model


def quantized_model(name: str, size: Any, options: dict[str, Any], settings: QuantizationSettings, seed: int = 0) -> nn.Module:
    """A model of any family with random weights, quantized on noise."""
    model = stirred(name, size, options, seed).module
    return quantize_model(model, find_sites(model), settings, noise(model, 4, seed=1))


def turned(name: str, size: Any, options: dict[str, Any], settings: QuantizationSettings | None = None) -> nn.Module:
    """A plain ViT, rotated by layers of its own where no weights can hold it, and then quantized on noise (None: as it is)."""
    model = stirred(name, size, options).module
    sites = find_sites(model)
    rotate(model, sites, 0)
    return model if settings is None else quantize_model(model, sites, settings, noise(model, 4, seed=1))


def with_scales_of_heads(module: Any) -> nn.Module:
    """The model of two heads with a grid of queries, keys and values for each."""
    for block in module.blocks:
        for name in ("query_quantizer", "key_quantizer", "value_quantizer"):
            quantizer = getattr(block.attn, name)
            quantizer.scale = quantizer.scale * torch.tensor([1.0, 1.3]).view(2, 1, 1)
            quantizer.zero_point = quantizer.zero_point + torch.tensor([0.0, 1.0]).view(2, 1, 1)
    return module


def noise(model: Any, count: int, seed: int = 0) -> torch.Tensor:
    """Pixels of the model's size."""
    size = getattr(model.patch_embed, "img_size", None) or image_size_of(model)
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def write(module: nn.Module, path: Path) -> Path:
    """The model as a file."""
    write_model(to_native(module, "the model"), path)
    return path


@torch.no_grad()
def logits(module: nn.Module, pixels: torch.Tensor) -> np.ndarray:
    """Of the simulation in double precision."""
    found: np.ndarray = exact(module)(pixels.double()).numpy()
    return found
