"""Figures 1 to 4 show the arrays of the statistics and of the picture."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vitfrost.reporting.figures import Scale
from vitfrost.reporting.heads import divergence_rows
from vitfrost.statistics.record import Statistics
from vitfrost.statistics.site import kl_maps
from vitfrost.studies.entropy_maps import (
    attention_on_picture,
    entropy_rows,
    first_heads,
    heads_of_the_paper,
    mean_entropy,
    tiled,
    whole_maps,
)
from vitfrost.studies.grid_parts import GridParts, read_grid
from vitfrost.studies.picture import load_picture


@pytest.fixture(scope="module")
def parts(finished_grid: Path) -> GridParts:
    found = read_grid(finished_grid)
    return found


@pytest.fixture(scope="module")
def statistics(parts: GridParts) -> Statistics:
    assert parts.statistics is not None
    return parts.statistics


def drawn(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def colors(values: np.ndarray, scale: Scale) -> np.ndarray:
    return scale.palette[scale.codes(values)]


def test_attention_on_a_picture(finished_grid: Path) -> None:
    found = load_picture(finished_grid / "picture.safetensors")
    figure = attention_on_picture(found)
    assert len(figure.heads) == found.maps.shape[1]
    for head, one in enumerate(figure.heads):
        grid = found.maps[0, head, 0, 1:].reshape(8, 8)
        np.testing.assert_array_equal(drawn(one.uri), colors(grid, figure.scale))
    np.testing.assert_array_equal(drawn(figure.picture.uri), found.pixels)


def test_entropy_of_the_class_tokens_row(parts: GridParts, statistics: Statistics) -> None:
    figure = entropy_rows(parts, statistics)
    assert first_heads(figure) == [one for heads in figure.pictures for one in heads][:6]
    for layer, site in enumerate(statistics.sites.values()):
        for head, one in enumerate(figure.pictures[layer]):
            row = site.entropy[0, head, 0, 1:].reshape(8, 8)
            np.testing.assert_array_equal(drawn(one.uri), colors(row.astype(np.float64), figure.scale))
            assert one.caption == f"L{layer}H{head}: {row.mean(dtype=np.float64):.2g} bits"
        np.testing.assert_allclose(mean_entropy(parts, statistics)[layer], site.entropy.mean(axis=(0, 2, 3)), rtol=1e-5)
    assert figure.chart.y_ticks[0] == (figure.chart.frame.bottom, "0")


def test_whole_maps_of_the_extreme_heads(parts: GridParts, statistics: Statistics) -> None:
    means = {(layer, head): site.entropy[0, head].mean() for layer, site in enumerate(statistics.sites.values()) for head in range(4)}
    figure = whole_maps(parts, statistics)
    (low, high), captions = (min(means, key=means.__getitem__), max(means, key=means.__getitem__)), [one.caption for one in figure.maps]
    assert captions[0].startswith(f"L{low[0]}H{low[1]}, lowest mean")
    assert captions[1].startswith(f"L{high[0]}H{high[1]}, highest mean")
    assert any(caption.startswith("L1H2") and "the paper's L2H3" in caption for caption in captions)
    site = list(statistics.sites.values())[low[0]]
    np.testing.assert_array_equal(drawn(figure.maps[0].uri), colors(site.entropy[0, low[1]].astype(np.float64), figure.scale))


def test_divergence_is_that_of_the_quantized_model(parts: GridParts, statistics: Statistics) -> None:
    assert parts.quantized is not None
    name, quantized = parts.quantized
    assert name == "w4a4-seed0"
    figure = divergence_rows(parts.anatomy.sites.attention, True, statistics, quantized)
    first, second = heads_of_the_paper(figure)
    assert [one.caption.partition(":")[0] for one in (first, second)] == ["L0H0", "L1H2"]
    for one, layer, head in ((first, 0, 0), (second, 1, 2)):
        site = list(statistics.sites.values())[layer]
        divergence = kl_maps(site, quantized.sites[site.name])[0, head, 0]
        np.testing.assert_array_equal(drawn(one.uri), colors(divergence[1:].reshape(8, 8).astype(np.float64), figure.scale))
        titles = [title for _, title in figure.chart.curves[0].marks]
        assert f"layer {layer}, head {head}: mean {divergence.mean(dtype=np.float64):.4g} bits" in titles


@given(high=st.integers(1, 4), wide=st.integers(1, 4), side=st.integers(2, 4), shift=st.integers(0, 1))
def test_windows_lie_where_timm_cut_them_out(high: int, wide: int, side: int, shift: int) -> None:
    import torch

    from vitfrost.vit.compat import import_timm

    import_timm()
    from timm.models.swin_transformer import window_partition

    image = torch.arange(high * wide * side * side, dtype=torch.float64).reshape(1, high * side, wide * side, 1)
    windows = window_partition(torch.roll(image, (-shift, -shift), dims=(1, 2)), (side, side)).permute(0, 3, 1, 2).numpy()
    np.testing.assert_array_equal(tiled(windows, (high * side * 8, wide * side * 8), (shift, shift))[0], image[0, :, :, 0].numpy())
