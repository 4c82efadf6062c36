"""RepQ-ViT on a timm model: quantizers at every site, one calibration pass, scales re-parameterized into the LayerNorms.

As in the authors' code: weights per output channel for every linear layer and convolution; the stem's input
always at 8 bits; all other activations at `activation_bits` per tensor; q, k, v per tensor; attention maps on the
log-sqrt2 grid; LayerNorm arithmetic, softmax input, GELU input and residual additions stay in floating point.
The single calibration pass runs with quantization already on, so later layers see quantized inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...configs import Quantize
from ...configs.mixed import FULL, BitsOfParts, heads_of, layer_of
from ...errors import VitfrostError
from ...vit.attention import MapAttention
from ...vit.families import install_map_attention
from ...vit.sites import LinearSite, ModelSites
from .modules import LogQuantizer, QuantizedLayer, UniformQuantizer, quantize_heads
from .quantizers import Levels
from .reparameterize import reparameterize

STEM_INPUT_BITS = 8


@dataclass(frozen=True)
class QuantizationSettings:
    """Bits 2 to 8, or 32 for floating point; levels as in quantizers. `maps`: whether maps are quantized where activations are. `layers`,
    `heads`: words that give single layers and heads other bits (see Quantize). `any_base`: log grids of maps may have another base."""

    weight_bits: int = 4
    activation_bits: int = 4
    levels: Levels = "published"
    maps: bool = True
    layers: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    any_base: bool = False

    @classmethod
    def of(cls, config: Quantize) -> QuantizationSettings:
        """Those of a configuration."""
        layers, heads = (tuple(words or ()) for words in (config.layers, config.heads))
        return cls(config.weights, config.activations, config.levels, layers=layers, heads=heads, any_base=config.map_base == "searched")

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits"):
            bits = getattr(self, name)
            if bits != 32 and not 2 <= bits <= 8:
                raise VitfrostError(f"{name.replace('_', ' ')} must be 2 to 8, or 32 for floating point; got {bits}")

    @cached_property
    def parts(self) -> BitsOfParts:
        """The bits of every layer and head."""
        return BitsOfParts(self.weight_bits, self.activation_bits, tuple(map(layer_of, self.layers)), tuple(map(heads_of, self.heads)))

    @property
    def any(self) -> bool:
        """True where something is quantized."""
        return self.parts.any

    @property
    def activations(self) -> bool:
        """True where activations are quantized, which needs calibration images."""
        return self.parts.any_activations

    def of_layer(self, site: LinearSite) -> tuple[int, int]:
        """Bits of a layer's weights and of its input; the input of the stem has 8 where it is quantized."""
        weights, activations = self.parts.of_layer(site.name)
        return weights, STEM_INPUT_BITS if site.role == "stem" and activations != FULL else activations


def install_quantizers(model: nn.Module, sites: ModelSites, settings: QuantizationSettings) -> dict[str, QuantizedLayer]:
    """Put untrained quantizers at every site of `model`, in place. Returns the quantized layers by name.

    This is also how an artifact's model is rebuilt before its state is loaded.
    """
    attention = install_map_attention(model)
    layers: dict[str, QuantizedLayer] = {}
    if not settings.any:
        return layers
    for site in sites.linears:
        weight_bits, bits = settings.of_layer(site)
        original = model.get_submodule(site.name)
        first = isinstance(original, nn.Conv2d)
        quantizer = None if bits == FULL else UniformQuantizer(bits, channel_wise=site.norm is not None, channels_first=first)
        assert isinstance(original, nn.Linear | nn.Conv2d)
        layer = QuantizedLayer(original, weight_bits, quantizer)
        model.set_submodule(site.name, layer)
        layers[site.name] = layer
    for name, module in attention.items():
        quantize_heads(module, settings.parts.of_heads(name, module.order), settings.levels, settings.maps)
    return layers


def _calibrating(model: nn.Module, on: bool) -> None:
    for module in model.modules():
        if isinstance(module, UniformQuantizer | LogQuantizer):
            module.calibrating = on


def _reparameterize_site(model: nn.Module, site: LinearSite, layer: QuantizedLayer, weight: Tensor, settings: QuantizationSettings) -> None:
    quantizer = layer.input_quantizer
    assert site.norm is not None
    assert quantizer is not None
    assert quantizer.low is not None
    assert quantizer.high is not None
    norm = model.get_submodule(site.norm)
    assert isinstance(norm, nn.LayerNorm)
    ends = (quantizer.low, quantizer.high)
    moved = reparameterize(norm.weight, norm.bias, weight.flatten(1), layer.bias, *ends, quantizer.bits, settings.levels)
    norm.weight.data, norm.bias.data = moved.gamma, moved.beta
    layer.bias = nn.Parameter(moved.bias, requires_grad=False)
    quantizer.scale, quantizer.zero_point = moved.scale, moved.zero_point
    quantizer.channel_wise, quantizer.low, quantizer.high = False, None, None
    layer.set_weight(moved.weight.view(weight.shape))


@torch.no_grad()
def quantize_model(
    model: nn.Module,
    sites: ModelSites,
    settings: QuantizationSettings,
    pixels: Float[Tensor, "images 3 height width"] | None,
) -> nn.Module:
    """Quantize `model` in place with RepQ-ViT and return it.

    `pixels`: the calibration images, all in one batch (the authors use 32); needed where activations are quantized.
    Raises VitfrostError when they are missing.
    """
    weights = {site.name: model.get_parameter(f"{site.name}.weight").detach().clone() for site in sites.linears}
    layers = install_quantizers(model, sites, settings)
    for name, layer in layers.items():
        layer.set_weight(weights[name])
    if not settings.activations:
        return model
    if pixels is None or len(pixels) == 0:
        raise VitfrostError("quantizing activations needs calibration images; give --images DIR or set the activation bits to 32")
    was_training = model.training
    _calibrating(model.eval(), True)  # stored statistics of BatchNorm, nothing dropped
    model(pixels)
    _calibrating(model.train(was_training), False)
    for site in sites.linears:
        if site.norm is not None and layers[site.name].input_quantizer is not None:
            _reparameterize_site(model, site, layers[site.name], weights[site.name], settings)
    return model


def map_quantizers(model: nn.Module) -> dict[str, LogQuantizer]:
    """The attention-map quantizers by site name (empty where maps are not quantized)."""
    return {
        name: module.map_quantizer
        for name, module in model.named_modules()
        if isinstance(module, MapAttention) and isinstance(module.map_quantizer, LogQuantizer)
    }
