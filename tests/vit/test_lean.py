"""A lean model computes what the original does, and does less for it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import vitfrost
from vitfrost.configs import Compact, FreezeHeads, Hallucinate, Quantize
from vitfrost.deploy.graph import inference_form, with_float_weights
from vitfrost.model import Model
from vitfrost.plans.schema import HeadPlan
from vitfrost.vit.lean import LastBlock, PatchProduct, SeparateAttention, cuts_patches, is_lean, make_lean


def small(name: str = "vit_tiny_patch16_224", image_size: int | tuple[int, int] = (32, 48), **options: Any) -> Model:
    return Model.open(name, weights="random", image_size=image_size, options={"num_classes": 7, **{"depth": 2} | options})


def lean_and_original(loaded: Model) -> tuple[torch.nn.Module, torch.nn.Module]:
    original = inference_form(loaded).double()
    return make_lean(with_float_weights(copy.deepcopy(original))), original


@torch.no_grad()
def assert_alike(lean: torch.nn.Module, original: torch.nn.Module, size: tuple[int, int]) -> None:
    pixels = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(lean(pixels), original(pixels), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "options", "read"),
    [
        ("vit_tiny_patch16_224", {}, 1),
        ("vit_tiny_patch16_224", {"reg_tokens": 3, "init_values": 0.5, "qk_norm": True}, 1),
        ("vit_tiny_patch16_224", {"scale_attn_norm": True, "qkv_bias": False, "pre_norm": True}, 1),
        ("deit_tiny_distilled_patch16_224", {}, 2),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}, None),
        ("vit_tiny_patch16_224", {"global_pool": "map"}, None),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, None),
    ],
)  # fmt: skip
def test_a_lean_model_computes_the_same(name: str, options: dict[str, Any], read: int | None) -> None:
    loaded = small(name, **options)
    lean, original = lean_and_original(loaded)
    assert_alike(lean, original, loaded.image_size)
    assert is_lean(lean)
    assert not is_lean(original)
    assert sum(isinstance(module, SeparateAttention) for module in lean.modules()) == 2
    assert isinstance(lean.patch_embed, PatchProduct)
    seen: list[int] = []
    lean.blocks[-1].mlp.register_forward_hook(lambda _, inputs, output: seen.append(output.shape[1]))
    lean(torch.zeros(1, 3, *loaded.image_size, dtype=torch.float64))
    assert isinstance(lean.blocks[-1], LastBlock) == (read is not None)
    assert seen == [original.pos_embed.shape[1] if read is None else read]


@pytest.mark.parametrize("heads", ["ccf", "fff", "cfc"])
@pytest.mark.parametrize(("constant", "window"), [("dense", None), ("local", 3), ("toeplitz", None)])
def test_frozen_heads_stay_what_they_are_in_every_layer(heads: str, constant: str, window: int | None) -> None:
    """Also where the last layer asks for one token only."""
    loaded = small(image_size=160 if constant == "local" else 48)
    plan = vitfrost.plan(loaded, FreezeHeads(1.0, "layer", kind="dense"))
    kinds = {"c": HeadPlan(source="computed"), "f": HeadPlan(source="frozen", constant=constant, window=window)}
    layers = tuple(layer.model_copy(update={"heads": tuple(kinds[letter] for letter in heads)}) for layer in plan.layers)
    artifact = vitfrost.compress(loaded, plan.model_copy(update={"layers": layers}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in artifact.module.named_parameters():
            if "constants" in name:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) / 50)
    lean, original = lean_and_original(artifact)
    assert_alike(lean, original, loaded.image_size)
    assert sum(isinstance(module, SeparateAttention) for module in lean.modules()) == 2
    queries = lean.blocks[0].attn.q
    assert (queries is None) == (heads == "fff")
    if queries is not None:
        assert queries.out_features == 64 * heads.count("c")


def test_hallucinated_heads_and_compact_blocks_keep_their_attention(shallow: Any, tmp_path: Any) -> None:
    made = shallow.compress(tmp_path / "made", Hallucinate(0.5, by="first", mix="copy"), Compact(0.5))
    lean, original = lean_and_original(made)
    assert_alike(lean, original, made.image_size)
    assert isinstance(lean.blocks[-1], LastBlock)
    assert not any(isinstance(module, SeparateAttention) for module in lean.modules())


def test_weights_of_four_bits_are_the_values_that_they_stand_for(shallow: Any, tmp_path: Any) -> None:
    made = shallow.compress(tmp_path / "made", Quantize(4, 32))
    lean, original = lean_and_original(made)
    assert_alike(lean, original, made.image_size)
    assert sum(isinstance(module, SeparateAttention) for module in lean.modules()) == 2
    assert isinstance(lean.patch_embed, PatchProduct)


def test_other_families_stay_as_they_are() -> None:
    loaded = Model.open(
        "swin_tiny_patch4_window7_224", weights="random", image_size=56, options={"num_classes": 7, "depths": (1,), "num_heads": (3,)}
    )
    lean, original = lean_and_original(loaded)
    assert not is_lean(lean)
    assert lean.state_dict().keys() == original.state_dict().keys()


def test_only_convolutions_that_read_every_pixel_once_become_products() -> None:
    embedding = small().module.patch_embed
    assert cuts_patches(embedding)
    for change in ({"stride": (8, 8)}, {"padding": (1, 1)}, {"dilation": (2, 2)}):
        changed = copy.deepcopy(embedding)
        for name, value in change.items():
            setattr(changed.proj, name, value)
        assert not cuts_patches(changed), change
    uneven = copy.deepcopy(embedding)
    uneven.img_size = (40, 48)
    assert not cuts_patches(uneven)
    uneven.img_size = None
    assert not cuts_patches(uneven)
