"""RepQ-ViT on models with reduced keys: depthwise, grouped and strided convolutions, 1 x 1 convolutions, BatchNorm; then LayerNorms before
convolutions, and before pooling."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from vitfrost.methods.quantize.modules import LogQuantizer, QuantizedLayer
from vitfrost.methods.quantize.repq import QuantizationSettings, install_quantizers, map_quantizers, quantize_model
from vitfrost.model import Model
from vitfrost.vit.families import find_sites

SMALL: dict[str, Any] = {"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 40, 64), "num_heads": (1, 2, 5, 8), "num_classes": 7}
MODELS: dict[str, dict[str, Any]] = {
    "vitfrost_pvt_tiny": {**SMALL, "position_size": 64},
    "pvt_v2_b0": SMALL,
    "pvt_v2_b2_li": SMALL,
    "nextvit_small": {"depths": (1, 1, 5, 1), "num_classes": 7},
}


@pytest.fixture(scope="module", params=MODELS)
def loaded(request: pytest.FixtureRequest) -> Model:
    """A model whose BatchNorms know what they read."""
    made = Model.open(request.param, weights="random", image_size=64, seed=1, options=MODELS[request.param])
    norms = [module for module in made.module.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        made.module.train()(pictures(16))
    made.module.eval()
    return made


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    """Smooth colors: in noise, the means that Next-ViT takes of 2 x 2 and more would be all the same."""
    coarse = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, 64, mode="bilinear")


def quantized(loaded: Model, weight_bits: int, activation_bits: int) -> nn.Module:
    settings = QuantizationSettings(weight_bits, activation_bits)
    return quantize_model(copy.deepcopy(loaded.module), find_sites(loaded.module), settings, pictures(8))


@pytest.fixture(scope="module")
def four_bits(loaded: Model) -> nn.Module:
    """The model at W4/A4."""
    with torch.no_grad():
        return quantized(loaded, 4, 4)


@torch.no_grad()
def test_more_bits_are_closer_to_the_original(loaded: Model) -> None:
    pixels = pictures(16, seed=2)
    reference = loaded.module(pixels)
    errors = [float((quantized(loaded, bits, bits)(pixels) - reference).square().mean()) for bits in (3, 5, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05 * float(reference.var(0).mean())  # between pictures


@torch.no_grad()
def test_every_layer_of_every_role_is_quantized(loaded: Model, four_bits: nn.Module) -> None:
    sites, model = find_sites(loaded.module), four_bits
    for site in sites.linears:
        layer, original = model.get_submodule(site.name), loaded.module.get_submodule(site.name)
        assert isinstance(layer, QuantizedLayer)
        assert layer.codes.shape == original.weight.shape
        assert int(layer.codes.max()) <= 15
        assert layer.input_quantizer.scale.shape == ()  # layer-wise also where a LayerNorm's channels were observed
        assert layer.input_quantizer.bits == (8 if site.role == "stem" else 4)
        assert not layer.input_quantizer.channel_wise
        assert site.norm is None or isinstance(loaded.module.get_submodule(site.norm), nn.LayerNorm)
        assert site.norm is None or isinstance(original, nn.Linear)
    kinds = [module for module in loaded.module.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    assert len(kinds) == len(sites.linears)  # none is left out
    maps = map_quantizers(model)
    assert maps.keys() == {site.name for site in sites.attention}
    assert all(isinstance(quantizer, LogQuantizer) and 0 < float(quantizer.step) <= 1 for quantizer in maps.values())


@torch.no_grad()
def test_a_model_in_training_is_calibrated_as_in_evaluation(loaded: Model, four_bits: nn.Module) -> None:
    training = copy.deepcopy(loaded)
    training.module.train()
    one, other = four_bits, quantized(training, 4, 4)
    assert other.training
    assert not one.training
    state = other.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in one.state_dict().items())


@torch.no_grad()
def test_a_state_is_loaded_into_an_untrained_model(loaded: Model, four_bits: nn.Module) -> None:
    made, again = four_bits, copy.deepcopy(loaded.module)
    install_quantizers(again, find_sites(loaded.module), QuantizationSettings(4, 4))
    again.load_state_dict(made.state_dict(), strict=False)
    assert again.state_dict().keys() | made.state_dict().keys() == made.state_dict().keys()
    for module in again.modules():
        if isinstance(module, QuantizedLayer):
            module.restore_weight()
    assert torch.equal(again(pictures(2)), made(pictures(2)))


@torch.no_grad()
def test_ranges_of_channels_before_convolutions_become_alike() -> None:
    made = Model.open("test_coatnet", weights="random", image_size=64, options={"num_classes": 7})
    sites, pixels = find_sites(made.module), pictures(16, seed=2)
    norms = {site.norm for site in sites.linears if site.norm is not None}
    assert norms == {
        f"stages.{block}.{norm}"
        for block, first in (("2.blocks.0", "norm1.norm"), ("2.blocks.1", "norm1"), ("3.blocks.0", "norm1.norm"))
        for norm in (first, "norm2")
    }
    drawn = torch.Generator().manual_seed(0)
    for norm in sorted(norms):
        made.module.get_parameter(f"{norm}.weight").copy_(torch.randn(made.module.get_submodule(norm).weight.shape, generator=drawn).exp())
    by_layer = replace(sites, linears=tuple(replace(site, norm=None) for site in sites.linears))
    settings, reference = QuantizationSettings(32, 4), made.module(pixels)
    errors = [
        float((quantize_model(copy.deepcopy(made.module), each, settings, pictures(8))(pixels) - reference).square().mean())
        for each in (sites, by_layer)
    ]
    assert errors[0] < 0.7 * errors[1]
