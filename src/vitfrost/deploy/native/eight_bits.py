"""A model in floating point made ready for the native engine: its layers in 8 bits, unless they have integer weights already."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import nn

from ...artifact import Artifact
from ...configs.mixed import BitsOfParts
from ...errors import VitfrostError
from ...evaluation.description import FULL_PRECISION_BITS
from ...evaluation.inspect import skeleton
from ...methods.frozen_entries import FrozenMaps
from ...methods.quantize.modules import UniformQuantizer
from ...methods.quantize.repq import QuantizationSettings, quantize_model
from ...model import Model
from ...passes.structure import merge_structure
from ...vit.attention import MapAttention
from ...vit.families import find_sites, install_map_attention

BITS = 8
MOST_IMAGES, MOST_TOKENS = 32, 2**15  # images pass in one batch, as in RepQ-ViT


def bits_of(loaded: Model) -> str:
    """Bits of weights and activations in the native file, such as W4/A8: the artifact's own, 8 for what is in floating point."""
    if not isinstance(loaded, Artifact):
        return BitsOfParts(BITS, BITS).label
    own = loaded.plan.quantize.parts
    weights, activations = (BITS if bits == FULL_PRECISION_BITS else bits for bits in (own.weights, own.activations))
    return replace(own, weights=weights, activations=activations).label


def needs_images(loaded: Model) -> bool:
    """Whether activations have no ranges yet."""
    return not isinstance(loaded, Artifact) or loaded.plan.quantize.activations == FULL_PRECISION_BITS


def images_for(loaded: Model) -> int:
    """How many images are enough to calibrate on: fewer where each has many tokens, since they pass at once."""
    tokens = find_sites(loaded.blank()).attention[0].queries
    return max(4, min(MOST_IMAGES, MOST_TOKENS // tokens))


@torch.no_grad()
def in_integers(loaded: Model, pixels: Float[torch.Tensor, "images 3 height width"] | None) -> nn.Module:
    """A copy of the model's module on the CPU in which every layer has integer weights.

    An artifact with quantized activations stays as it is. Weights in floating point are quantized with RepQ-ViT to 8 bits, with the
    activations' ranges from `pixels`. Weights that are quantized alone stay as they are; their inputs then get 8 bits of every token's
    range, queries, keys and values ranges from `pixels`. Maps without a quantizer of the plan's have none here either.
    """
    module = merge_structure(copy.deepcopy(loaded.module).cpu().float().eval())
    if not needs_images(loaded):
        if isinstance(loaded, Artifact) and loaded.plan.quantize.weights == FULL_PRECISION_BITS:
            raise VitfrostError(f"{loaded.name} has quantized activations and weights in floating point; plan with Quantize(weights=8)")
        return module
    if isinstance(loaded, Artifact) and loaded.plan.quantize.weights == FULL_PRECISION_BITS and loaded.plan.quantize.parts.any:
        raise VitfrostError(
            f"{loaded.name} has some layers in few bits and others in floating point, which the native engine does not run; plan with "
            "Quantize(weights=8), and give single layers less"
        )
    attention = install_map_attention(module)
    for name, each in attention.items():
        if isinstance(each.frozen, FrozenMaps) and each.frozen.bits == FULL_PRECISION_BITS:
            raise VitfrostError(
                f"{name} has frozen entries in floating point, which the native engine does not run; plan with "
                "FreezeEntries(bits=4), or freeze whole heads"
            )
    if isinstance(loaded, Artifact) and loaded.plan.quantize.weights != FULL_PRECISION_BITS:
        _calibrate_attention(module, attention, pixels)
    else:
        quantize_model(module, skeleton(loaded)[1], QuantizationSettings(BITS, BITS, "strict", maps=False), pixels)
    return module


def _calibrate_attention(module: nn.Module, attention: dict[str, MapAttention], pixels: torch.Tensor | None) -> None:
    quantizers: list[UniformQuantizer] = []

    def make() -> UniformQuantizer:
        quantizers.append(UniformQuantizer(BITS))
        return quantizers[-1]

    for each in attention.values():
        if each.value_quantizer is None:
            each.quantize(make, lambda: None)
    if pixels is None or not len(pixels):
        raise VitfrostError("quantizing activations needs calibration images; give images (--images DIR)")
    for quantizer in quantizers:
        quantizer.calibrating = True
    module(pixels)
    for quantizer in quantizers:
        quantizer.calibrating = False
