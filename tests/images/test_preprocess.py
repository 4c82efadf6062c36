from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitfrost.errors import VitfrostError
from vitfrost.images.preprocess import Preprocess
from vitfrost.vit.compat import import_timm

CONFIG: dict[str, Any] = {
    "input_size": (3, 24, 24),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_pct": 0.9,
    "crop_mode": "center",
    "interpolation": "bicubic",
}


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(40, 31), (13, 70), (24, 24), (1, 1)])
@pytest.mark.parametrize("mode", ["center", "border", "squash"])
@pytest.mark.parametrize("change", [{}, {"crop_pct": 1.0}, {"interpolation": "bilinear"}, {"input_size": (3, 20, 28)}])
def test_equals_timms_evaluation_transform(size: tuple[int, int], mode: str, change: dict[str, Any]) -> None:
    import_timm()
    from timm.data import create_transform

    config = CONFIG | {"crop_mode": mode} | change
    own = Preprocess(config)(noise(*size))
    timms = create_transform(**config, is_training=False)(noise(*size))
    assert own.shape == timms.shape == config["input_size"]
    assert (own - timms).abs().max() <= 1e-6


def test_squash_resizes_straight_to_the_input_size() -> None:
    preprocess = Preprocess(CONFIG | {"crop_mode": "squash", "crop_pct": 1.0})
    straight = np.asarray(noise(50, 33).resize((24, 24), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.array_equal(preprocess.pixels(noise(50, 33)), straight)


def test_an_image_does_not_depend_on_its_batch() -> None:
    preprocess = Preprocess(CONFIG)
    images = [noise(30, 20 + index) for index in range(7)]
    together = preprocess.normalize(np.stack([preprocess.pixels(image) for image in images]))
    for alone, image in zip(together, images, strict=True):
        assert torch.equal(preprocess(image), alone)


def test_the_description_is_json_and_builds_the_same() -> None:
    preprocess = Preprocess(CONFIG)
    described = json.loads(json.dumps(preprocess.config.plain()))
    assert described == preprocess.config.plain()
    assert described["input_size"] == [3, 24, 24]
    assert torch.equal(Preprocess(described)(noise(40, 30)), preprocess(noise(40, 30)))


def test_the_estimated_size_is_that_of_the_resized_picture() -> None:
    import_timm()
    from timm.data import create_transform

    for width, height in ((10, 400), (400, 10), (30, 30)):
        resize = create_transform(**CONFIG | {"crop_pct": 1.0}, is_training=False).transforms[0]
        resized = resize(Image.new("RGB", (width, height)))
        assert Preprocess(CONFIG | {"crop_pct": 1.0}).resized_pixels(width, height) == resized.size[0] * resized.size[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_size": (1, 24, 24)}, "only RGB"),
        ({"crop_pct": 0.0}, "crop_pct 0.0 is out of range"),
        ({"crop_pct": 1.5}, "crop_pct 1.5 is out of range"),
        ({"crop_mode": "middle"}, "crop_mode 'middle' is unknown; choose one of center, border, squash"),
        ({"interpolation": "cubic"}, "interpolation 'cubic' is unknown"),
    ],
)
def test_values_without_a_meaning_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(VitfrostError, match=message):
        Preprocess(CONFIG | change)


@pytest.mark.parametrize(("side", "whole"), [(227, True), (247, True), (248, False), (300, False)])
def test_small_squares_are_taken_whole_where_that_is_wanted(side: int, whole: bool) -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8))
    config = {
        "input_size": (3, 224, 224),
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "crop_pct": 0.9,
        "crop_mode": "center",
        "interpolation": "bicubic",
    }
    cropped, squashed = Preprocess(config), Preprocess(config | {"crop_mode": "squash", "crop_pct": 1.0})
    ours = Preprocess(config | {"whole_squares": True})
    assert np.array_equal(ours.pixels(picture), (squashed if whole else cropped).pixels(picture))
    oblong = picture.resize((side, side - 20))
    assert np.array_equal(ours.pixels(oblong), cropped.pixels(oblong))
