"""The picture is what the model sees, and the maps are the model's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitfrost.errors import VitfrostError
from vitfrost.images.preprocess import Preprocess
from vitfrost.model import Model
from vitfrost.studies.picture import load_picture, take_picture
from vitfrost.vit.load import hash_state


def attention_by_timm(loaded: Model, pixels: torch.Tensor) -> torch.Tensor:
    """The last layer's maps from timm's own layers, outside of our attention."""
    block = loaded.module.blocks[-1]
    tokens: list[torch.Tensor] = []
    handle = block.attn.qkv.register_forward_hook(lambda module, inputs, output: tokens.append(output))
    with torch.inference_mode():
        loaded.module(pixels)
    handle.remove()
    heads = block.attn.num_heads
    q, k, _ = tokens[0].reshape(1, tokens[0].shape[1], 3, heads, -1).permute(2, 0, 3, 1, 4)
    return torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1)


def test_pixels_and_maps_are_those_of_the_model(pictures: Path, tmp_path: Path) -> None:
    loaded = Model.open("vitfrost_digits", weights="random")
    before = hash_state(loaded.module)
    path = take_picture(loaded, pictures, tmp_path / "picture.safetensors", seed=3)
    found = load_picture(path)
    assert hash_state(loaded.module) == before == found.header.state_hash
    preprocess = Preprocess(loaded.preprocessing)
    original = Image.open(pictures / found.header.file).convert("RGB")
    np.testing.assert_array_equal(found.pixels.transpose(2, 0, 1), preprocess.pixels(original))
    maps = attention_by_timm(loaded, preprocess(original)[None])
    np.testing.assert_allclose(found.maps, maps.numpy(), atol=1e-6)
    assert (found.header.site, found.header.layer, found.header.class_token) == ("blocks.5.attn", 6, True)
    assert (found.header.prefix_tokens, found.header.grid) == (1, (8, 8))


def test_equal_seeds_give_equal_bytes_and_other_seeds_other_pictures(pictures: Path, tmp_path: Path) -> None:
    loaded = Model.open("vitfrost_digits", weights="random")
    first, again, other = (
        take_picture(loaded, pictures, tmp_path / name, seed=seed).read_bytes() for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == again != other


def test_unusable_files_are_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "broken.png").write_bytes(b"no picture")
    loaded = Model.open("vitfrost_digits", weights="random")
    with pytest.raises(VitfrostError, match="none of the 1 images"):
        take_picture(loaded, folder, tmp_path / "picture.safetensors")
    Image.new("RGB", (40, 40), (10, 200, 30)).save(folder / "green.png")
    for seed in range(4):
        found = load_picture(take_picture(loaded, folder, tmp_path / "picture.safetensors", seed=seed))
        assert found.header.file == "green.png"
        assert (found.pixels == [10, 200, 30]).all()


def test_windowed_attention_keeps_every_window(pictures: Path, tmp_path: Path) -> None:
    loaded = Model.open("swin_tiny_patch4_window7_224", weights="random", image_size=112)
    found = load_picture(take_picture(loaded, pictures, tmp_path / "picture.safetensors"))
    assert not found.header.class_token
    assert found.maps.shape == (1, 24, 16, 16)
    assert (found.header.layer, found.header.grid) == (12, (4, 4))
    np.testing.assert_allclose(found.maps.sum(axis=-1), 1.0, atol=1e-5)


@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign", "other shape"])
def test_damage_is_one_line(damage: str, pictures: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    path = tmp_path / "picture.safetensors"
    if damage != "missing":
        take_picture(Model.open("vitfrost_digits", weights="random"), pictures, path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:2000])
    elif damage == "foreign":
        save_file({"pixels": np.zeros((2, 2, 3), np.uint8)}, path)
    elif damage == "other shape":
        from safetensors import safe_open

        with safe_open(path, "numpy") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        save_file(tensors | {"maps": tensors["maps"][..., :-1].copy()}, path, metadata=metadata)
    with pytest.raises(VitfrostError, match="is no readable picture of a grid"):
        load_picture(path)
