"""A rotated model computes the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from vitfrost.methods.quantize.hadamard import rotation_of_stream
from vitfrost.methods.quantize.rotate import can_rotate, rotate
from vitfrost.methods.quantize.turn import turned_places
from vitfrost.vit.families import find_sites, install_map_attention

from ...models import random_model

SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 7}
MODELS: dict[str, dict[str, Any]] = {
    "deit_tiny_patch16_224": SMALL,
    "deit_tiny_distilled_patch16_224": SMALL,
    "vit_small_patch16_224": SMALL | {"qkv_bias": False},
    "deit3_small_patch16_224": SMALL,  # LayerScale
    "vit_tiny_patch16_224": SMALL | {"qk_norm": True, "reg_tokens": 2, "global_pool": "avg", "fc_norm": False},
}


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("installed", [True, False])
def test_outputs_and_the_mean_of_the_stream_stay(name: str, installed: bool) -> None:
    model = random_model(name, 32, **MODELS[name]).module
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    model.blocks[0].norm1.weight[3] = 0.0
    turned = copy.deepcopy(model)
    sites = find_sites(turned)
    if installed:
        install_map_attention(turned)
    assert can_rotate(turned, sites)
    rotate(turned, sites, 0)
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.allclose(turned(pixels), model(pixels), atol=1e-5, rtol=1e-5)
    seen: list[torch.Tensor] = []
    turned.blocks[1].register_forward_hook(lambda *args: seen.append(args[2]))
    turned(pixels)
    assert seen[0].mean(-1).abs().max() < 1e-5
    assert not torch.equal(turned.blocks[1].mlp.fc1.weight, model.blocks[1].mlp.fc1.weight)


CLIP = "vit_base_patch16_clip_224.openai"
REGISTERS = "vit_small_patch14_reg4_dinov2.lvd142m"
NO_CLASSES = SMALL | {"num_classes": 0}
# Beside which norms the stream is turned by a layer of its own.
TURNED: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "CLIP": (CLIP, SMALL, ["norm_pre"]),
    "CLIP, projection without bias": (CLIP, SMALL, ["norm_pre"]),
    "CLIP, no projection": (CLIP, NO_CLASSES, ["norm_pre", "norm"]),
    "CLIP, tokens": (CLIP, NO_CLASSES | {"global_pool": ""}, ["norm_pre", "norm"]),
    "a norm in the embedding": ("vit_tiny_patch16_224", SMALL, ["norm_pre"]),
    "class token": ("vit_tiny_patch16_224", NO_CLASSES, ["norm"]),
    "tokens": ("vit_tiny_patch16_224", NO_CLASSES | {"global_pool": ""}, ["norm"]),
    "DINOv2": (REGISTERS, NO_CLASSES, ["norm"]),
    "mean, norm before": ("vit_tiny_patch16_224", NO_CLASSES | {"global_pool": "avg", "fc_norm": False}, ["norm"]),
    "mean, norm behind": ("vit_tiny_patch16_224", NO_CLASSES | {"global_pool": "avg", "fc_norm": True}, ["norm"]),
    "maximum": ("vit_tiny_patch16_224", SMALL | {"global_pool": "max", "fc_norm": False}, ["norm"]),
    "attention pooling": ("vit_base_patch16_siglip_224", SMALL | {"global_pool": "map"}, ["norm"]),
    "mean, norm behind, classes": ("vit_tiny_patch16_224", SMALL | {"global_pool": "avg", "fc_norm": True}, []),
}


def build(case: str) -> Any:
    """The model of a row of TURNED, in float64, all its parameters stirred."""
    name, options, _ = TURNED[case]
    model: Any = random_model(name, 28 if name == REGISTERS else 32, **options).module.double()
    if case.endswith("without bias"):
        model.head.bias = None
    if case == "a norm in the embedding":
        model.patch_embed.norm = torch.nn.LayerNorm(48).double()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return model


@torch.no_grad()
@pytest.mark.parametrize("case", TURNED)
def test_streams_are_turned_at_their_ends(case: str) -> None:
    model = build(case)
    turned = copy.deepcopy(model)
    sites = find_sites(turned)
    install_map_attention(turned)
    assert can_rotate(turned, sites)
    rotate(turned, sites, 0)
    assert turned_places(turned) == TURNED[case][2]
    pixels = torch.randn(2, 3, *sites.image_size, dtype=torch.float64)
    torch.testing.assert_close(turned(pixels), model(pixels), atol=1e-10, rtol=1e-10)
    if "norm" in TURNED[case][2]:
        torch.testing.assert_close(turned.forward_features(pixels), model.forward_features(pixels), atol=1e-10, rtol=1e-10)
    seen: list[torch.Tensor] = []
    for each in (turned, model):
        each.blocks[1].register_forward_hook(lambda *args: seen.append(args[2]))
        each(pixels)
    wanted = seen[1] @ rotation_of_stream(48, torch.Generator().manual_seed(0))
    keeps_mean = case == "mean, norm behind"
    torch.testing.assert_close(seen[0], wanted if keeps_mean else wanted - wanted.mean(-1, keepdim=True), atol=1e-10, rtol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("case", ["CLIP", "CLIP, no projection", "mean, norm behind"])
def test_turns_in_float32(case: str) -> None:
    model = build(case).float()
    turned = copy.deepcopy(model)
    rotate(turned, find_sites(turned), 0)
    pixels = torch.randn(2, 3, 32, 32)
    wanted = model(pixels)
    torch.testing.assert_close(turned(pixels), wanted, atol=1e-5 * float(wanted.abs().max()), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}),
        ("vit_tiny_patch16_224", SMALL | {"num_classes": 0, "embed_dim": 36}),  # no Hadamard matrix
        ("vit_tiny_patch16_224", SMALL | {"embed_dim": 36, "pre_norm": True}),
        ("vit_relpos_small_patch16_224", SMALL | {"init_values": None}),
    ],
)
def test_models_that_cannot_be_rotated(name: str, options: dict[str, Any]) -> None:
    model = random_model(name, 56 if "swin" in name else 32, **options).module
    sites = find_sites(model)
    assert not can_rotate(model, sites)
    with pytest.raises(ValueError, match="cannot be rotated"):
        rotate(model, sites, 0)
