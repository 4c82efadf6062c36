"""Statistics of whole heads: against those of every weight, against sums by hand, in parts, in files, and where they are refused."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from vitfrost import calibrate, plan
from vitfrost.configs import Calibrate, FreezeEntries, FreezeHeads
from vitfrost.errors import VitfrostError
from vitfrost.methods.constant_heads.constants import Shape
from vitfrost.model import Model
from vitfrost.plans.freeze_heads import constant_error, freezing_error, head_scores
from vitfrost.statistics import sample
from vitfrost.statistics.collector import MapCollector
from vitfrost.statistics.head_collector import HeadCollector, bytes_needed, images_at_a_time
from vitfrost.statistics.head_sums import MASS_SCALE, VALUE_SCALE, HeadSums
from vitfrost.statistics.heads import HeadStatistics
from vitfrost.statistics.record import Statistics
from vitfrost.vit.families import find_sites

LIMIT = Calibrate(limit=12, batch_size=5, sensitivity=True)


@pytest.fixture(scope="module")
def digits():
    return Model.open("vitfrost_digits")


@pytest.fixture(scope="module")
def entries(digits, pictures):
    return calibrate(digits, pictures, LIMIT, progress=False)


@pytest.fixture(scope="module")
def heads(digits, pictures):
    return calibrate(digits, pictures, Calibrate(limit=12, batch_size=5, sensitivity=True, detail="heads"), progress=False)


def test_where_all_weights_are_sampled_scores_and_errors_are_those_of_every_weight(entries, heads) -> None:
    for index, (name, site) in enumerate(heads.sites.items()):
        known = entries[name]
        assert len(site.sampled) == known.mean[0, 0].size
        for by in ("entropy", "variance", "output-error", "fisher", "output-error-joint"):
            np.testing.assert_allclose(head_scores(site, by, 0, index), head_scores(known, by, 0, index), rtol=1e-3)
        assert freezing_error(site, 1) == pytest.approx(freezing_error(known, 1), rel=1e-3)
        constant = known.mean[:, 1] * 0.9
        assert constant_error(constant, "dense", None, site, 1) == pytest.approx(
            constant_error(constant, "dense", None, known, 1), rel=1e-3
        )


def test_sums_are_those_of_the_mean_maps(entries, heads) -> None:
    site, known = heads["blocks.2.attn"], entries["blocks.2.attn"]
    np.testing.assert_allclose(site.value_norm, known.value_norm, rtol=1e-4)
    patches = known.mean[0, 1, 1:, 1:].astype(np.float64).reshape(8, 8, 8, 8)
    found = site.sums["offset_sums"][1] / (MASS_SCALE * 12)
    for down, right in ((0, 0), (1, -2), (-7, 7)):
        wanted = sum(patches[y, x, y + down, x + right] for y in range(8) for x in range(8) if 0 <= y + down < 8 and 0 <= x + right < 8)
        assert found[7 + down, 7 + right] == pytest.approx(wanted, rel=1e-4)
    np.testing.assert_allclose(site.map_sums(1).prefix_columns, known.mean[0, 1, 1:, :1], atol=1e-6)
    np.testing.assert_allclose(site.map_sums(1).prefix_rows, known.mean[0, 1, :1], atol=1e-6)
    assert site.mass_by_offset(1).sum() == pytest.approx(site.map_sums(1).mass.mean(), rel=1e-5)


def test_a_plan_freezes_the_same_heads_to_kernels(entries, heads) -> None:
    plans = [plan(known, FreezeHeads(0.25, by="fisher", kind="local", window=5)) for known in (entries, heads)]
    assert [layer.constant for layer in plans[0].layers] == [layer.constant for layer in plans[1].layers]
    auto = plan(heads, FreezeHeads(0.5, tolerance=0.0))
    assert all(head.constant in (None, "local", "toeplitz") for layer in auto.layers for head in layer.heads)


@pytest.mark.parametrize(
    ("method", "text"),
    [(FreezeEntries(0.2), r'freezing single weights.*detail="entries"'), (FreezeHeads(0.2, kind="dense"), r'dense.*detail="entries"')],
)
def test_what_needs_every_weight_is_refused_in_one_line(heads, method, text) -> None:
    with pytest.raises(VitfrostError, match=text):
        plan(heads, method)
    with pytest.raises(VitfrostError, match=r'mean of every weight.*detail="entries"'):
        heads.plot("blocks.0.attn", 0)
    with pytest.raises(VitfrostError, match=r'detail="entries"'):
        heads.entries("blocks.0.attn")


def test_the_bits_are_the_same_again_and_in_a_file(digits, pictures, tmp_path) -> None:
    wanted = Calibrate(limit=5, detail="heads")
    first, again = (calibrate(digits, pictures, wanted, progress=False, out=tmp_path / name) for name in "ab")
    assert first.content_hash == again.content_hash == Statistics.load(tmp_path / "a").content_hash
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (first.header.detail, first.header.version) == ("heads", 4)
    assert "heads" in repr(first)


@pytest.mark.parametrize("part", ["sampled", "grid", "offset_sums", "row_sums", "counts", "value_sums"])
def test_damaged_files_are_refused(heads, tmp_path, part) -> None:
    path = tmp_path / "s.safetensors"
    heads.save(path)
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    arrays = load_file(path)
    name = f"blocks.1.attn/{part}"
    save_file(arrays | {name: np.flip(arrays[name]).copy()[..., 1:]}, path, metadata)
    with pytest.raises(VitfrostError, match=r"is damaged: at site blocks\.1\.attn .* does not fit; calibrate again"):
        Statistics.load(path)
    del arrays[name]
    save_file(arrays, path, metadata)
    with pytest.raises(VitfrostError, match=rf"{part} (is missing|does not fit)"):
        Statistics.load(path)


def test_heads_are_measured_where_entries_take_too_many_passes(digits, pictures, entries, caplog) -> None:
    sites = find_sites(digits.module).attention
    size = entries["blocks.0.attn"].mean.size * 336
    tight = bytes_needed(sites, sensitivity=False) / 1e9
    with caplog.at_level(logging.INFO, "vitfrost"):
        found = calibrate(digits, pictures, Calibrate(limit=4, memory_limit=tight), progress=False)
    assert (found.header.detail, "whole heads are measured" in caplog.text) in [("heads", True), ("entries", False)]
    few = calibrate(digits, pictures, Calibrate(limit=4, memory_limit=2.2 * size / 1e9), progress=False)
    assert few.header.detail == "entries"  # in three passes
    smallest = 1.2 * size / 1e9  # six passes, one site each
    with pytest.raises(VitfrostError, match="the sums of whole heads need"):
        calibrate(digits, pictures, Calibrate(limit=4, memory_limit=smallest), progress=False)
    six = calibrate(digits, pictures, Calibrate(limit=4, memory_limit=smallest, detail="entries"), progress=False)
    assert six.header.detail == "entries"


def test_similarity_needs_every_weight(digits, pictures) -> None:
    with pytest.raises(VitfrostError, match="leave one out"):
        calibrate(digits, pictures, Calibrate(limit=4, similarity=True, detail="heads"), progress=False)


def collected(model, sites, pixels, by_head: bool):
    with torch.inference_mode(), (HeadCollector if by_head else MapCollector)(model, sites) as collector:
        outputs = model(pixels)
    return collector.finish(), outputs


@pytest.mark.parametrize("name", ["swin", "pvt"])
def test_windows_with_masks_and_reduced_keys(name) -> None:
    options = {"depths": (2, 1), "num_heads": (3, 6), "embed_dim": 48} if name == "swin" else {"depths": (1, 1, 1, 1)}
    model = Model.open("swin_tiny_patch4_window7_224" if name == "swin" else "pvt_v2_b0", weights="random", image_size=112, options=options)
    sites = find_sites(model.module).attention
    pixels = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    (by_head, outputs), (known, expected) = (collected(model.module, sites, pixels, how) for how in (True, False))
    assert (outputs - expected).abs().max() < 1e-5
    for site in sites:
        found, each = by_head[site.name], known[site.name]
        assert (found.allowed is not None) == site.masked
        np.testing.assert_allclose(found.value_norm, each.value_norm, rtol=1e-4, atol=1e-7)
        weights = np.ones(each.maps_shape[2:])[None] if each.allowed is None else each.allowed
        total = weights.sum() * (1 if each.allowed is not None else site.windows)
        assert found.weights.sum() == pytest.approx(total)
        if found.shape is None:
            np.testing.assert_allclose(found.mean_map(0), each.mean[:, 0], atol=1e-6)
        else:
            assert found.mass_by_offset(0).sum() == pytest.approx(1, abs=1e-5)
        window, query, key = found.places
        np.testing.assert_allclose(found.sample.mean[0, :, 0], each.mean[window, :, query, key].T, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(height=st.integers(2, 5), width=st.integers(2, 5), prefix=st.integers(0, 2), cut=st.integers(0, 6), seed=st.integers(0, 99))
def test_sums_of_parts_are_those_of_the_whole(height, width, prefix, cut, seed) -> None:
    shape = Shape((height, width), prefix)
    tokens, rng = shape.tokens, np.random.default_rng(seed)
    maps = rng.dirichlet(np.ones(tokens), (6, 1, tokens)).astype(np.float32)
    norms = rng.uniform(0, 9, (6, 1, tokens)).astype(np.float32)
    whole, parts = HeadSums("a", (1, 1, tokens, tokens), shape), [HeadSums("a", (1, 1, tokens, tokens), shape) for _ in range(2)]
    for image in range(6):
        whole.add(0, maps[image], norms[image])
    for image in reversed(range(6)):
        parts[image < cut].add(0, maps[image], norms[image])
    for name, sums in whole.sums.items():
        np.testing.assert_array_equal(sums, parts[0].sums[name] + parts[1].sums[name])
    mass = maps[:, 0, prefix:, prefix:].sum(dtype=np.float64)
    assert whole.sums["offset_sums"].sum() / MASS_SCALE == pytest.approx(mass, rel=1e-6)
    valued = (maps[:, 0, prefix:, prefix:] * norms[:, :, prefix:].astype(np.float64)).sum()
    assert whole.sums["offset_values"].sum() / VALUE_SCALE == pytest.approx(valued, rel=1e-4, abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), prefix=st.integers(0, 3), size=st.integers(8, 400))
def test_sampled_weights_stand_for_all(height, width, prefix, size) -> None:
    shape = Shape((height, width), prefix)
    maps = (1, shape.tokens, shape.tokens)
    sampled = sample.draw(maps, shape, size)
    assert (np.diff(sampled) > 0).all()
    assert len(sampled) <= max(size, 4)
    assert sample.weights(sampled, maps, shape).sum() == pytest.approx(shape.tokens**2)
    np.testing.assert_array_equal(sampled, sample.draw(maps, shape, size))


def test_large_maps_are_sampled_without_listing_their_weights() -> None:
    shape = Shape((40, 40), 1)
    maps = (1, shape.tokens, shape.tokens)
    sampled = sample.draw(maps, shape, 1000)
    assert len(sampled) == 1000
    kinds = sample.kinds_of(sampled, maps, shape)
    assert np.bincount(kinds, minlength=4).min() >= 240
    assert sample.weights(sampled, maps, shape).sum() == pytest.approx(shape.tokens**2)
    assert sample.kinds_of(np.array([0, shape.tokens, shape.tokens + 1, shape.tokens + 9]), maps, shape).tolist() == [0, 1, 2, 3]


def test_long_images_pass_one_by_one() -> None:
    sites = find_sites(Model.open("deit_tiny_patch16_224", weights="random", options={"depth": 1}).blank()).attention
    assert images_at_a_time(sites, 64) == 20
    assert images_at_a_time(sites, 8) == 8


def test_broken_weights_are_named(pictures) -> None:
    loaded = Model.open("vitfrost_digits", weights="random")
    with torch.no_grad():
        loaded.module.blocks[2].attn.qkv.weight[0, 0] = float("nan")
    with pytest.raises(VitfrostError, match=r"site blocks\.2\.attn has"):
        calibrate(loaded, pictures, Calibrate(limit=4, detail="heads"), progress=False)


def test_halves_of_the_images_merge(heads, tmp_path) -> None:
    assert isinstance(heads["blocks.0.attn"], HeadStatistics)
    twice = Statistics.merge([heads, heads])
    site, both = heads["blocks.0.attn"], twice["blocks.0.attn"]
    assert twice.header.images == 24
    for name, sums in site.sums.items():
        np.testing.assert_array_equal(both.sums[name], 2 * sums)
    np.testing.assert_array_equal(both.sample.mean, site.sample.mean)
