"""RepQ-ViT on whole models."""

from __future__ import annotations

import copy

import pytest
import torch

from vitfrost.errors import VitfrostError
from vitfrost.methods.quantize.modules import QuantizedLayer, UniformQuantizer
from vitfrost.methods.quantize.repq import QuantizationSettings, map_quantizers, quantize_model
from vitfrost.model import Model
from vitfrost.vit.families import find_sites


@pytest.fixture(scope="module")
def digits() -> Model:
    return Model.open("vitfrost_digits", weights="random", seed=1)


def quantized(loaded: Model, weight_bits: int, activation_bits: int, levels: str = "published") -> torch.nn.Module:
    pixels = torch.randn(8, 3, *loaded.image_size, generator=torch.Generator().manual_seed(0))
    settings = QuantizationSettings(weight_bits, activation_bits, levels)
    return quantize_model(copy.deepcopy(loaded.module), find_sites(loaded.module), settings, pixels)


@torch.no_grad()
def test_more_bits_are_closer_to_the_original(digits: Model) -> None:
    pixels = torch.randn(16, 3, 32, 32)
    reference = digits.module(pixels)
    errors = [float((quantized(digits, bits, bits)(pixels) - reference).square().mean()) for bits in (3, 4, 6, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02 * float(reference.square().mean())


@torch.no_grad()
def test_weights_only_leaves_activations_alone(digits: Model) -> None:
    model = quantize_model(copy.deepcopy(digits.module), find_sites(digits.module), QuantizationSettings(8, 32), None)
    assert not map_quantizers(model)
    assert not [module for module in model.modules() if isinstance(module, UniformQuantizer)]
    pixels = torch.randn(4, 3, 32, 32)
    assert torch.allclose(model(pixels), digits.module(pixels), atol=2e-2)


@torch.no_grad()
def test_activations_only_keeps_float_weights(digits: Model) -> None:
    model = quantized(digits, 32, 8)
    layers = [module for module in model.modules() if isinstance(module, QuantizedLayer)]
    assert layers
    assert all(layer.bits == 32 and layer.input_quantizer is not None for layer in layers)


def test_every_linear_site_is_quantized_and_layer_wise_afterwards(digits: Model) -> None:
    model = quantized(digits, 4, 4)
    for site in find_sites(digits.module).linears:
        layer = model.get_submodule(site.name)
        assert isinstance(layer, QuantizedLayer)
        assert layer.input_quantizer.scale.shape == ()
        assert layer.input_quantizer.bits == (8 if site.role == "stem" else 4)
        assert int(layer.codes.max()) <= 15


def test_strict_levels_have_integer_zero_points(digits: Model) -> None:
    zero_points = {
        levels: [m.zero_point for m in quantized(digits, 4, 4, levels).modules() if isinstance(m, UniformQuantizer)]
        for levels in ("strict", "published")
    }
    assert all(float(z) == round(float(z)) for z in zero_points["strict"])
    assert any(float(z) != round(float(z)) for z in zero_points["published"])


def test_same_images_same_bits(digits: Model) -> None:
    first, second = quantized(digits, 4, 4).state_dict(), quantized(digits, 4, 4).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@torch.no_grad()
def test_swin_reduction_gets_the_bias_that_the_move_needs() -> None:
    swin = Model.open(
        "swin_tiny_patch4_window7_224", weights="random", image_size=56, options={"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}
    )
    model = quantized(swin, 8, 8)
    assert swin.module.layers[1].downsample.reduction.bias is None
    assert model.layers[1].downsample.reduction.bias is not None
    pixels = torch.randn(2, 3, 56, 56)
    assert torch.allclose(model(pixels), swin.module(pixels), atol=0.1)


@pytest.mark.parametrize("bits", [1, 9, 0, 16])
def test_bits_out_of_range(bits: int) -> None:
    with pytest.raises(VitfrostError, match="must be 2 to 8, or 32"):
        QuantizationSettings(bits, 4)


def test_activations_without_images(digits: Model) -> None:
    with pytest.raises(VitfrostError, match="needs calibration images"):
        quantize_model(copy.deepcopy(digits.module), find_sites(digits.module), QuantizationSettings(4, 4), None)
