"""The transform without torch gives the bits of timm's own."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vitfrost.images.geometry import Geometry
from vitfrost.images.preprocess import Preprocess
from vitfrost.images.preprocessing import CROP_MODES, INTERPOLATIONS
from vitfrost.vit.compat import import_timm


def config_of(mode: str, interpolation: str, crop_pct: float, input_size: tuple[int, int]) -> dict[str, Any]:
    return {
        "input_size": (3, *input_size), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
        "crop_pct": crop_pct, "crop_mode": mode, "interpolation": interpolation,
    }  # fmt: skip


@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    input_size=st.sampled_from([(24, 24), (20, 28), (33, 17)]),
    mode=st.sampled_from(CROP_MODES),
    interpolation=st.sampled_from(INTERPOLATIONS),
    crop_pct=st.sampled_from([1.0, 0.95, 0.9, 0.875, 0.4]),
)
def test_pixels_are_timms(size: tuple[int, int], input_size: tuple[int, int], mode: str, interpolation: str, crop_pct: float) -> None:
    import_timm()
    from timm.data import create_transform

    config = config_of(mode, interpolation, crop_pct, input_size)
    width, height = size
    picture = Image.fromarray(np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8))
    try:
        timms = create_transform(**config, is_training=False, normalize=False)(picture).numpy()
    except ValueError:  # so thin that a side would vanish
        with pytest.raises(ValueError, match="must be > 0"):
            Geometry(config).pixels(picture)
        return
    assert np.array_equal(Geometry(config).pixels(picture), timms)
    assert np.array_equal(Geometry(config).resized(*size), create_transform(**config, is_training=False).transforms[0](picture).size)


def test_every_value_is_normalized_to_the_bits_of_torch() -> None:
    config = config_of("center", "bicubic", 0.9, (16, 16))
    values = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, axis=1)
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    expected = torch.from_numpy(values).to(torch.float32).div_(255).sub_(mean).div_(std)
    assert np.array_equal(Geometry(config).normalized(values), expected.numpy())
    assert torch.equal(Preprocess(config).normalize(values), expected)


def test_neither_it_nor_decoding_imports_torch() -> None:
    code = "import sys, vitfrost.images.decode; sys.exit(any(name in sys.modules for name in ('torch', 'timm', 'jaxtyping', 'pydantic')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
