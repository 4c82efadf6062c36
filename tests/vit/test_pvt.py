"""Pyramid Vision Transformers: our version 1 against a second way of computing it, and the sites of both versions against a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from vitfrost.errors import UnsupportedModel, VitfrostError
from vitfrost.model import Model
from vitfrost.vit.families import find_sites
from vitfrost.vit.load import create_model

from ..models import random_model
from ..shapes import shapes_only

SMALL: dict[str, Any] = {"depths": (1, 2, 1, 1), "embed_dims": (8, 16, 20, 32), "num_heads": (1, 2, 5, 4), "num_classes": 7}
OUR_SMALL: dict[str, Any] = {**SMALL, "position_size": 64}
MODELS = [("vitfrost_pvt_tiny", OUR_SMALL), ("pvt_v2_b0", SMALL), ("pvt_v2_b2_li", SMALL)]


def seen_by_a_run(model: nn.Module, image_size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Heads, queries, keys and head width of every attention that a forward pass computes, in order."""
    seen = []
    fused = F.scaled_dot_product_attention

    def record(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        seen.append((q.shape[1], q.shape[2], k.shape[2], q.shape[3]))
        return fused(q, k, v, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", record)
        model.eval()(torch.zeros(1, 3, *image_size))
    return seen


@pytest.mark.parametrize(("name", "options"), MODELS)
@settings(max_examples=12)
@given(image_size=st.tuples(st.integers(32, 150), st.integers(32, 150)))
def test_sites_are_what_a_run_shows_at_any_image_size(name: str, options: dict[str, Any], image_size: tuple[int, int]) -> None:
    with shapes_only():
        model = create_model(name, image_size, **options)
        sites = find_sites(model)
        assert sites.image_size == image_size
        assert [(site.heads, site.queries, site.keys, site.head_dim) for site in sites.attention] == seen_by_a_run(model, image_size)
    for site in sites.attention:
        assert site.queries == site.prefix_tokens + site.grid[0] * site.grid[1]
        key_grid = site.key_grid or site.grid
        assert site.keys == site.prefix_tokens + key_grid[0] * key_grid[1]


def test_version_1_at_its_published_size() -> None:
    with shapes_only():
        sites = find_sites(create_model("vitfrost_pvt_tiny"))
    assert sites.family == "pvt"
    found = [(site.heads, site.queries, site.keys, site.prefix_tokens, site.grid, site.key_grid) for site in sites.attention[::2]]
    assert found == [
        (1, 3136, 49, 0, (56, 56), (7, 7)),
        (2, 784, 49, 0, (28, 28), (7, 7)),
        (5, 196, 49, 0, (14, 14), (7, 7)),
        (8, 50, 50, 1, (7, 7), None),
    ]
    blocks = [(site.width, site.hidden, site.tokens, site.block) for site in sites.feed_forward[::2]]
    assert blocks == [
        (64, 512, 3136, "transformer"), (128, 1024, 784, "transformer"), (320, 1280, 196, "transformer"), (512, 2048, 50, "transformer"),
    ]  # fmt: skip
    norms = {linear.name: linear.norm for linear in sites.linears}
    assert norms["stages.0.blocks.0.attn.q"] is None  # norm1 is also read by the reduction
    assert norms["stages.0.blocks.0.attn.kv"] == "stages.0.blocks.0.attn.norm"
    assert norms["stages.3.blocks.0.attn.kv"] is None
    assert norms["stages.0.blocks.0.mlp.fc1"] == "stages.0.blocks.0.norm2"


def test_linear_attention_has_a_fixed_number_of_keys() -> None:
    with shapes_only():
        sites = find_sites(create_model("pvt_v2_b2_li", 320))
    assert {(site.keys, site.key_grid) for site in sites.attention} == {(49, (7, 7))}
    assert next(linear for linear in sites.linears if linear.role == "key_value").norm is None  # an activation comes between


def reference_attention(attn: Any, x: Tensor, grid: tuple[int, int], sr_ratio: int) -> Tensor:
    """Softmax attention with explicit maps; the strided convolution as one product over patches of tokens."""
    images, _, width = x.shape
    reduced = x
    if sr_ratio > 1:
        high, wide = grid[0] // sr_ratio, grid[1] // sr_ratio
        patches = x.reshape(images, *grid, width)[:, : high * sr_ratio, : wide * sr_ratio]
        patches = patches.reshape(images, high, sr_ratio, wide, sr_ratio, width)
        reduced = torch.einsum("bhiwjc,ocij->bhwo", patches, attn.sr.weight).flatten(1, 2) + attn.sr.bias
        reduced = F.layer_norm(reduced, (width,), attn.norm.weight, attn.norm.bias)
    wq, (wk, wv) = attn.q.weight, attn.kv.weight.split(width)
    bq, (bk, bv) = attn.q.bias, attn.kv.bias.split(width)
    heads = []
    for part in torch.arange(width).chunk(attn.num_heads):
        logits = (x @ wq[part].T + bq[part]) @ (reduced @ wk[part].T + bk[part]).transpose(1, 2)
        heads.append((logits / len(part) ** 0.5).softmax(-1) @ (reduced @ wv[part].T + bv[part]))
    return torch.cat(heads, -1) @ attn.proj.weight.T + attn.proj.bias


def reference_logits(model: Any, x: Tensor, position_size: int) -> Tensor:
    """PVT v1 step by step from its parameters."""

    def norm(x: Tensor, layer: Any, eps: float) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + eps).sqrt() * layer.weight + layer.bias

    reduction = 1
    for index, (stage, sr_ratio) in enumerate(zip(model.stages, (8, 4, 2, 1), strict=True)):
        patch = 4 if index == 0 else 2
        reduction *= patch
        grid = (x.shape[2] // patch, x.shape[3] // patch)
        patches = F.unfold(x, patch, stride=patch).transpose(1, 2)
        x = norm(patches @ stage.patch_embed.proj.weight.flatten(1).T + stage.patch_embed.proj.bias, stage.patch_embed.norm, 1e-5)
        positions, own = stage.pos_embed, position_size // reduction
        of_class, of_grid = positions[:, : int(index == 3)], positions[:, int(index == 3) :]
        if grid != (own, own):
            of_grid = F.interpolate(of_grid.unflatten(1, (own, own)).movedim(3, 1), grid, mode="bilinear").flatten(2).transpose(1, 2)
        if index == 3:
            x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], 1)
        x = x + torch.cat([of_class, of_grid], 1)
        for block in stage.blocks:
            x = x + reference_attention(block.attn, norm(x, block.norm1, 1e-6), grid, sr_ratio)
            hidden = F.gelu(norm(x, block.norm2, 1e-6) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias)
            x = x + hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
        if index < 3:
            x = x.transpose(1, 2).unflatten(2, grid)
    return norm(x[:, 0], model.norm, 1e-6) @ model.head.weight.T + model.head.bias


@pytest.mark.parametrize(("size", "tolerance"), [((64, 64), 1e-12), ((96, 64), 1e-6), ((75, 110), 1e-6)])  # timm interpolates in float32
@torch.no_grad()
def test_version_1_equals_a_reference(size: tuple[int, int], tolerance: float) -> None:
    model = random_model("vitfrost_pvt_tiny", **OUR_SMALL).module.double()
    for parameter in model.parameters():  # timm's small weights would leave the maps even, zero biases untested
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    pixels = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert float((model(pixels) - reference_logits(model, pixels, 64)).abs().max()) < tolerance


def test_every_parameter_is_used_and_outputs_are_finite() -> None:
    model = Model.open("vitfrost_pvt_tiny", weights="random", image_size=80, options=OUR_SMALL).module.train()
    logits = model(torch.randn(2, 3, 80, 80))
    assert logits.shape == (2, 7)
    assert bool(torch.isfinite(logits).all())
    logits.square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []


def test_images_of_another_size_need_no_other_weights(tmp_path: Path) -> None:
    save_file(Model.open("vitfrost_pvt_tiny", weights="random", seed=3, options=OUR_SMALL).module.state_dict(), tmp_path / "w.safetensors")
    loaded = Model.open("vitfrost_pvt_tiny", weights=tmp_path / "w.safetensors", image_size=(64, 96), options=OUR_SMALL)
    assert loaded.image_size == (64, 96)
    assert loaded.preprocessing.input_size == (3, 64, 96)
    assert loaded.preprocessing.mean == (0.485, 0.456, 0.406)
    assert loaded.preprocessing.std == (0.229, 0.224, 0.225)
    assert loaded.state_hash == Model.open("vitfrost_pvt_tiny", weights="random", seed=3, options=OUR_SMALL).state_hash
    assert find_sites(loaded.module).image_size == (64, 96)


@pytest.mark.parametrize(("name", "options"), MODELS[:2])
def test_an_image_that_is_too_small_is_refused(name: str, options: dict[str, Any]) -> None:
    with shapes_only(), pytest.raises(VitfrostError, match=r"24x40 px is too small: .* at stages\.0\.blocks\.0\.attn"):
        find_sites(create_model(name, (24, 40), **options))


def test_what_version_1_does_not_have_is_refused_in_one_line() -> None:
    with pytest.raises(VitfrostError, match=r"give --weights FILE .* No pretrained weights exist"):
        Model.open("vitfrost_pvt_tiny")
    with pytest.raises(VitfrostError, match="class token"):
        create_model("vitfrost_pvt_tiny", sr_ratios=(8, 4, 2, 2))
    model = create_model("vitfrost_pvt_tiny", **OUR_SMALL)
    model.stages[1].blocks[1].mlp = nn.Identity()
    with pytest.raises(UnsupportedModel, match=r"stages\.1\.blocks\.1\.mlp is a Identity"):
        find_sites(model)
