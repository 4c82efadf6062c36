"""Position embeddings tell their grid, and are carried over to another with a word."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed

from vitfrost.errors import VitfrostError
from vitfrost.model import Model
from vitfrost.vit.load import create_model
from vitfrost.vit.position_grid import grid_of_positions


def smooth(height: int, width: int) -> torch.Tensor:
    """Waves over a grid, as trained embeddings are."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    waves = [torch.sin(2 * (a * x + b * y) + a + 2 * b) for a in range(1, 5) for b in range(1, 5)]
    return torch.stack(waves, -1).flatten(0, 1)


@pytest.mark.parametrize("grid", [(8, 32), (32, 8), (16, 16), (12, 48), (40, 10)])
def test_a_grid_is_found_among_all_of_as_many_patches(grid: tuple[int, int]) -> None:
    assert grid_of_positions(smooth(*grid)) == grid


@given(st.integers(6, 20), st.integers(6, 20))
def test_what_is_not_clear_is_not_guessed(height: int, width: int) -> None:
    assert grid_of_positions(smooth(height, width)) in ((height, width), None)


@given(st.integers(2, 16))
def test_of_noise_the_assumption_stays(side: int) -> None:
    values = torch.randn(side * side, 64, generator=torch.Generator().manual_seed(side))
    assert grid_of_positions(values) == (side, side)
    assert grid_of_positions(values, (side * side, 1)) == (side * side, 1)


def test_real_embeddings_stretched_to_a_wide_grid_are_not_taken_for_a_square(shared_data: Path) -> None:
    given = load_file(shared_data / "deit_tiny_patch16_224" / "model.safetensors")["pos_embed"]
    assert grid_of_positions(given[0, 1:]) == (14, 14)
    for grid in ((8, 32), (16, 16), (32, 8), (24, 24), (7, 28)):
        wide = resample_abs_pos_embed(given, grid, old_size=(14, 14), num_prefix_tokens=1)
        assert grid_of_positions(wide[0, 1:]) == grid


def test_a_model_of_another_shape_is_carried_over_with_a_word(tmp_path: Path, messages) -> None:
    wide = create_model("vit_tiny_patch16_224", (128, 512), depth=1)
    wide.pos_embed.data[0, 1:] = smooth(8, 32).repeat(1, 12)
    save_file(wide.state_dict(), tmp_path / "wide.safetensors")
    Model.open("vit_tiny_patch16_224", weights=tmp_path / "wide.safetensors", image_size=(128, 512), options={"depth": 1})
    assert "resized" not in messages()
    Model.open("vit_tiny_patch16_224", weights=tmp_path / "wide.safetensors", image_size=256, options={"depth": 1})
    assert "position embeddings of 8 x 32 patches are resized to 16 x 16" in messages()


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vit_tiny_patch16_224", 230, "230x230 is no multiple of the patch size 16; give 224 or 240"),
        ("vit_tiny_patch16_224", (224, 250), "224x250 is no multiple of the patch size 16; give 224x240 or 240x256"),
        ("swin_tiny_patch4_window7_224", 226, "226x226 is no multiple of the patch size 4; give 224 or 228"),
    ],
)
def test_sizes_that_cut_pixels_off_are_refused(name: str, size, message: str) -> None:
    with pytest.raises(VitfrostError, match=message):
        Model.open(name, weights="random", image_size=size)


def test_a_module_that_cuts_pixels_off_is_warned_of(messages) -> None:
    Model.of(create_model("vit_tiny_patch16_224", 230, depth=1))
    assert "the rest of an image is cut off" in messages()


def test_weights_of_another_resolution_are_carried_over_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_file(create_model("vit_tiny_patch16_384", depth=1).state_dict(), tmp_path / "large.safetensors")
    with caplog.at_level(logging.WARNING, logger="vitfrost"):
        Model.open("vit_tiny_patch16_224", weights=tmp_path / "large.safetensors", options={"depth": 1})
    (said,) = [record for record in caplog.records if "resized" in record.message]
    assert said.levelname == "WARNING"
    assert said.message == "position embeddings of 24 x 24 patches are resized to 14 x 14"


def test_relative_positions_of_another_resolution_are_carried_over(tmp_path: Path, messages: Callable[[], str]) -> None:
    options = {"embed_dim": 48, "depth": 1, "num_heads": 2}
    save_file(create_model("beit_base_patch16_224", 64, **options).state_dict(), tmp_path / "small.safetensors")
    Model.open("beit_base_patch16_224", weights=tmp_path / "small.safetensors", image_size=96, options=options)
    assert "relative position biases of 1 layers are resized to other windows" in messages()


def test_a_projection_without_bias_is_a_head(tmp_path: Path) -> None:
    """As CLIP has it."""
    options = {"embed_dim": 48, "depth": 1, "num_heads": 2, "num_classes": 8}
    state = create_model("vit_base_patch16_clip_224", 64, **options).state_dict()
    weight = state["head.weight"]
    save_file({name: value for name, value in state.items() if name != "head.bias"}, tmp_path / "clip.safetensors")
    model = Model.open("vit_base_patch16_clip_224", weights=tmp_path / "clip.safetensors", image_size=64, options=options)
    assert torch.equal(model.module.head.weight, weight)
    assert not model.module.head.bias.any()
