"""Colors, pictures and layouts: pixels are the values they stand for, numbers are never hidden by a color."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from vitfrost.reporting.figures import FROST, LEVELS, Scale, decade, heat_map, picture, short
from vitfrost.reporting.heads import shrink

VALUES = arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.floats(0, 10, width=32))
SCALES = [Scale("", 0.0, 4.0, "viridis"), Scale("", 0.001, 1.0, "magma", log=True), Scale("", 0.0, 1.0, "frost")]


def decoded(uri: str) -> Image.Image:
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert image.format == "PNG"
    return image


@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: scale.colors)
@given(values=VALUES)
def test_pixels_have_the_colors_of_their_values(scale: Scale, values: np.ndarray) -> None:
    pixels = np.asarray(decoded(picture(values, scale)).convert("RGB"))
    assert pixels.shape == (*values.shape, 3)
    span = (np.log(np.clip(values, scale.low, scale.high)) - np.log(scale.low)) / np.log(scale.high / scale.low) if scale.log else (
        np.clip(values, scale.low, scale.high) / scale.high
    )  # fmt: skip
    expected = scale.palette[np.rint(span * (LEVELS - 1)).astype(int)].astype(int)
    neighbors = np.abs(np.diff(scale.palette.astype(int), axis=0)).max()
    assert np.abs(pixels - expected).max() <= neighbors


def test_a_pixel_without_a_value_is_transparent() -> None:
    alpha = np.asarray(decoded(picture(np.array([[0.5, np.nan]]), SCALES[2])).convert("RGBA"))[..., 3]
    assert alpha.tolist() == [[255, 0]]


def test_the_two_ends_of_the_frost_colors() -> None:
    image = decoded(picture(np.array([[0.0, 1.0]]), SCALES[2])).convert("RGB")
    assert tuple(f"#{bytes(np.asarray(image)[0, place]).hex()}" for place in (0, 1)) == FROST


@given(values=VALUES, log=st.booleans())
def test_a_scale_covers_what_it_is_made_for(values: np.ndarray, log: bool) -> None:
    scale = Scale.covering("", [values, np.full((2, 2), np.nan)], "viridis", log)
    assert scale.low < scale.high
    assert not log or scale.low > 0
    assert scale.high <= max(values.max(), 1.0)
    position = scale.position(values)
    assert ((position >= 0) & (position <= 1)).all()


def test_ink_contrasts_with_every_cell() -> None:
    def luminance(color: str) -> float:
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    for colors in ("viridis", "cividis"):
        chart = heat_map("", [np.linspace(0, 1, 50).tolist()], colors, ".2f")
        for text, css in chart.rows[0]:
            found = re.fullmatch(r"background:(#\w{6});color:(#\w{3})", css)
            assert found, css
            back, ink = luminance(found[1]), {"#fff": 1.0, "#000": 0.0}[found[2]]
            assert (max(back, ink) + 0.05) / (min(back, ink) + 0.05) >= 4.5, (text, css)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (5.5, "5.5"), (100.0, "100"), (0.0123, "0.012"), (3e-5, "3.0·10⁻⁵"), (9.6e-4, "9.6·10⁻⁴")]
)
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text


def test_decades() -> None:
    assert [decade(power) for power in (-6, -3, 0, 2, 5)] == ["10⁻⁶", "0.001", "1", "100", "10⁵"]


@given(
    side=st.integers(1, 60), prefix=st.integers(0, 2), limit=st.integers(4, 64),
)  # fmt: skip
def test_shrink_keeps_prefix_tokens_and_means_of_blocks(side: int, prefix: int, limit: int) -> None:
    values = np.random.default_rng(side).random((side + prefix, side + prefix))
    small = shrink(values, prefix, limit)
    factor = -(-side // limit)
    assert small.shape == (prefix + -(-side // factor),) * 2
    assert small.shape[0] <= limit + prefix
    np.testing.assert_allclose(small[:prefix, :prefix], values[:prefix, :prefix])
    block = values[prefix : prefix + factor, prefix : prefix + factor]
    np.testing.assert_allclose(small[prefix, prefix], block.mean())


def test_shrink_leaves_missing_values_out() -> None:
    values = np.array([[1.0, np.nan, np.nan, np.nan], [np.nan, 3.0, np.nan, np.nan], [0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.0]])
    np.testing.assert_array_equal(shrink(values, 0, limit=2), [[2.0, np.nan], [0.0, 4.0]])
