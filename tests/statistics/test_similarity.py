"""How alike heads are: against float64 logits by hand, exact in any grouping, as files, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from vitfrost import calibrate
from vitfrost.configs import Calibrate, Hallucinate
from vitfrost.errors import VitfrostError
from vitfrost.images.batches import BatchLoader
from vitfrost.images.preprocess import Preprocess
from vitfrost.images.source import open_images
from vitfrost.methods.hallucination.fit import head_moments
from vitfrost.model import Model
from vitfrost.passes.structure import install_structure
from vitfrost.plans.choose import plan
from vitfrost.statistics.collector import MapCollector, group_sites
from vitfrost.statistics.histogram import BYTES_PER_ENTRY, MAX_IMAGES
from vitfrost.statistics.record import Statistics
from vitfrost.statistics.similarity import LARGEST, SCALE, SimilaritySums, added, kept_bytes, moments_of
from vitfrost.vit.attention import FusedAttention
from vitfrost.vit.families import find_sites
from vitfrost.vit.sites import AttentionSite

from ..models import random_model


def site_of(number: int, heads: int, queries: int, keys: int, windows: int = 1) -> AttentionSite:
    return AttentionSite(f"blocks.{number}.attn", number, heads, 4, 4 * heads, queries, keys, 0, (1, queries), windows)


SITES = [site_of(0, 2, 3, 5), site_of(1, 1, 4, 4), site_of(2, 3, 3, 5)]


def draw(seed: int, images: int) -> list[torch.Tensor]:
    """Logits of every site for some images."""
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(images, site.heads, site.queries, site.keys, generator=generator) + seed for site in SITES]


def watched(logits: list[torch.Tensor], batches: list[int]) -> SimilaritySums:
    sums = SimilaritySums(SITES)
    observers = [sums.observer(number, None) for number in range(len(SITES))]
    for parts in zip(*(part.split(batches) for part in logits), strict=True):
        for observer, part in zip(observers, parts, strict=True):
            observer(part)
    return sums


def signature(sites: list[AttentionSite]) -> list[dict]:
    return [site.signature() for site in sites]


@given(st.integers(0, 99))
def test_moments_are_those_of_centered_logits_within_and_across_layers_of_one_shape(seed):
    logits = draw(seed, 4)
    found = moments_of(watched(logits, [4]).sums, 4, signature(SITES))
    np.testing.assert_array_equal(found, found.T)
    alike = head_moments(torch.cat([logits[0], logits[2]], dim=1)) / (4 * 3 * 5)
    places = [0, 1, 3, 4, 5]
    np.testing.assert_allclose(found[np.ix_(places, places)], alike.numpy(), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found[2, 2], head_moments(logits[1]).item() / (4 * 4 * 4), rtol=1e-5)
    assert np.isnan(found[2, places]).all()


@given(st.integers(0, 99), st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_batches_and_merging_in_any_order_are_exact(seed, batches):
    images = sum(batches)
    logits = draw(seed, images)
    whole = watched(logits, [images]).sums
    np.testing.assert_array_equal(watched(logits, batches).sums, whole)
    parts = [watched(list(part), [len(part[0])]).sums for part in zip(*(each.split(batches) for each in logits), strict=True)]
    merged = np.zeros_like(whole)
    for part in reversed(parts):
        merged = added(part, merged)
    np.testing.assert_array_equal(merged, whole)


def test_what_is_added_to_rows_does_not_count():
    logits = [(part * 256).round() / 256 for part in draw(1, 2)]  # sums of these numbers are exact
    moved = [part + torch.arange(part.shape[2])[:, None] for part in logits]
    np.testing.assert_allclose(watched(moved, [2]).sums / SCALE, watched(logits, [2]).sums / SCALE, atol=1e-4)


def test_masked_pairs_are_left_out():
    site = site_of(0, 2, 3, 3, windows=2)
    allowed = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    allowed |= torch.eye(3, dtype=torch.bool)
    logits = torch.randn(2 * 2, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    hidden = logits.masked_fill(~allowed.repeat(2, 1, 1)[:, None], -100.0)
    sums = SimilaritySums([site])
    sums.observer(0, allowed)(hidden)
    expected = np.zeros((2, 2))
    for row in range(4):
        for query in range(3):
            seen = logits[row, :, query][:, allowed[row % 2, query]].double().numpy()
            seen = seen - seen.mean(1, keepdims=True)
            expected += seen @ seen.T
    np.testing.assert_allclose(moments_of(sums.sums, 2, signature([site])), expected / (2 * site.entries / site.heads), atol=1e-6)


def test_plausible_logits_fit_and_others_are_refused():
    """Plausible: a standard deviation of 2000 in 65,536 images, of 700 in as many as can be counted."""
    assert max(2000**2 * 65_536, 700**2 * MAX_IMAGES) * SCALE < LARGEST
    sums = SimilaritySums(SITES)
    sums.observer(0, None)(torch.full((1, 2, 3, 5), torch.inf))
    sums.observer(1, None)(draw(0, 1)[1])
    with pytest.raises(VitfrostError, match=r"logits of blocks\.0\.attn are too large, or not finite"):
        sums.observer(2, None)(draw(0, 1)[2])
    full = np.array([[3 * 2**60, 0], [0, 1]])
    np.testing.assert_array_equal(added(full, full // 3), [[2**62, 0], [0, 1]])
    with pytest.raises(VitfrostError, match="cannot be merged"):
        added(full, full)


def test_the_bytes_kept_are_those_of_the_layers_that_wait_for_others():
    assert kept_bytes(SITES, 8) == 4 * 8 * (2 * 15 + 3 * 15)
    assert kept_bytes(SITES[:2], 8) == 4 * 8 * max(2 * 15, 16)
    assert kept_bytes([SITES[0], SITES[1], SITES[0], site_of(3, 9, 9, 9)], 1) == 4 * 9 * 81
    assert kept_bytes([], 8) == 0


def logits_by_hand(model, sites, pixels) -> list[torch.Tensor]:
    """Logits of every site from timm's own layers, in float64."""
    seen: list[torch.Tensor] = []
    hooks = []
    for site in sites:

        def hook(module, inputs, site=site):
            qkv = module.qkv(inputs[0]).double().unflatten(-1, (3, site.heads, site.head_dim))
            q, k, _ = qkv.permute(2, 0, 3, 1, 4)
            seen.append(q @ k.transpose(-2, -1) * site.head_dim**-0.5)

        hooks.append(model.get_submodule(site.name).register_forward_pre_hook(hook))
    with torch.inference_mode():
        model(pixels)
    for hook in hooks:
        hook.remove()
    return seen


def test_calibrating_twice_gives_the_same_bytes_and_the_moments_of_logits_by_hand(pictures, tmp_path):
    loaded = Model.open("vitfrost_digits", weights="random")
    one, two, plain = (tmp_path / f"{name}.safetensors" for name in ("one", "two", "plain"))
    found = calibrate(loaded, pictures, Calibrate(limit=10, seed=3, batch_size=4, similarity=True), out=one, progress=False)
    calibrate(
        Model.open("vitfrost_digits", weights="random"),
        pictures,
        Calibrate(limit=10, seed=3, batch_size=4, similarity=True),
        out=two,
        progress=False,
    )
    assert one.read_bytes() == two.read_bytes()
    image_set = open_images(pictures).subset(10, 3)
    pixels = next(iter(BatchLoader(image_set, Preprocess(loaded.preprocessing), 10))).pixels
    sites = find_sites(loaded.module).attention
    logits = logits_by_hand(loaded.module, sites, pixels)
    expected = head_moments(torch.cat(logits, dim=1)) / (10 * sites[0].queries * sites[0].keys)
    np.testing.assert_allclose(found.moments, expected.numpy(), rtol=1e-4, atol=1e-5)
    heads = sites[0].heads
    for number, site in enumerate(sites):
        np.testing.assert_array_equal(
            found.head_moments(site.name), found.moments[number * heads : (number + 1) * heads, number * heads : (number + 1) * heads]
        )
    without = calibrate(loaded, pictures, Calibrate(limit=10, seed=3, batch_size=4), out=plain, progress=False)
    assert without.similarity is None
    for name, site in without.sites.items():  # the counters do not feel it
        for array, values in site.arrays().items():
            np.testing.assert_array_equal(found.sites[name].arrays()[array], values)
    with pytest.raises(VitfrostError, match=r"calibrate with Calibrate\(similarity=True\)"):
        without.head_moments(sites[0].name)


def test_passes_and_gradients_change_nothing(pictures):
    loaded = Model.open("vitfrost_digits", weights="random")
    sites = find_sites(loaded.module).attention
    entries = sum(site.entries for site in sites)
    whole = calibrate(loaded, pictures, Calibrate(limit=6, batch_size=3, similarity=True), progress=False)
    limit = kept_bytes(sites, 3) + 2.5 * BYTES_PER_ENTRY * sites[0].entries
    assert [len(group) for group in group_sites(sites, limit, kept=kept_bytes(sites, 3))] == [2, 2, 2]
    passes = calibrate(loaded, pictures, Calibrate(limit=6, batch_size=3, similarity=True, memory_limit=limit / 1e9), progress=False)
    assert passes.content_hash == whole.content_hash
    both = calibrate(loaded, pictures, Calibrate(limit=6, batch_size=3, similarity=True, sensitivity=True), progress=False)
    np.testing.assert_allclose(both.moments, whole.moments, rtol=1e-6)
    with pytest.raises(VitfrostError, match="smaller batch size"):
        calibrate(
            loaded, pictures, Calibrate(limit=6, batch_size=3, similarity=True, memory_limit=(12 * entries - 1) / 1e9), progress=False
        )


def test_the_header_names_the_feed_forward_blocks_and_hallucinated_heads_have_no_logits(pictures):
    loaded = Model.open("vitfrost_digits", weights="random")
    found = calibrate(loaded, pictures, Calibrate(limit=2), progress=False).header.feed_forward
    assert found == [
        {"name": site.name, "width": site.width, "hidden": site.hidden, "block": "transformer"}
        for site in find_sites(loaded.module).feed_forward
    ]
    made = plan(loaded, Hallucinate(0.5))
    install_structure(loaded.module, made)
    with pytest.raises(VitfrostError, match=r"blocks\.0\.attn has hallucinated heads"):
        calibrate(loaded, pictures, Calibrate(limit=2, similarity=True), progress=False)
    assert calibrate(loaded, pictures, Calibrate(limit=2), progress=False).header.feed_forward == found


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("swin_tiny_patch4_window7_224", {"window_size": 4, "depths": (2, 1), "num_heads": (2, 4), "embed_dim": 16}),
        ("pvt_v2_b0", {}),
    ],
)
def test_other_families_are_compared_where_maps_have_one_shape(name, options):
    loaded = random_model(name, 64, **options)
    sites = list(find_sites(loaded.module).attention)
    sums = SimilaritySums(sites)
    generator = torch.Generator().manual_seed(0)
    seen: dict[str, torch.Tensor] = {}
    with torch.inference_mode(), MapCollector(loaded.module, sites, similarity=sums) as collector:
        for module in loaded.module.modules():
            if isinstance(module, FusedAttention) and not module.site.masked:
                observers, site = module.observers, module.site
                watch = observers.logits
                module.observe(observers.maps, lambda logits, watch=watch, site=site: (seen.update({site.name: logits}), watch(logits)))
        loaded.module(torch.randn(2, 3, 64, 64, generator=generator))
    assert not any(module.observers.any for module in loaded.module.modules() if isinstance(module, FusedAttention))
    collector.finish()
    found = moments_of(sums.sums, 2, signature(sites))
    shapes = [(site.windows, site.queries, site.keys) for site in sites for _ in range(site.heads)]
    for one, shape in enumerate(shapes):
        assert [other == shape for other in shapes] == np.isfinite(found[one]).tolist()
        assert found[one, one] > 0
    starts = np.cumsum([0, *(site.heads for site in sites)])
    for number, site in enumerate(sites):
        if site.name in seen:
            block = found[starts[number] : starts[number + 1], starts[number] : starts[number + 1]]
            expected = head_moments(seen[site.name]) / (2 * site.entries / site.heads)
            np.testing.assert_allclose(block, expected.numpy(), rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def calibrated(pictures):
    return calibrate(Model.open("vitfrost_digits", weights="random"), pictures, Calibrate(limit=4, similarity=True), progress=False)


def test_it_survives_its_file_and_merges(calibrated, tmp_path):
    calibrated.save(tmp_path / "s.safetensors")
    loaded = Statistics.load(tmp_path / "s.safetensors")
    assert loaded.content_hash == calibrated.content_hash
    np.testing.assert_array_equal(loaded.similarity, calibrated.similarity)
    other = Statistics(replace(calibrated.header, images_hash="0f" * 32), calibrated.sites, 3 * calibrated.similarity)
    merged = Statistics.merge([loaded, other])
    assert merged.header.similarity
    np.testing.assert_array_equal(merged.similarity, 4 * calibrated.similarity)
    np.testing.assert_allclose(merged.moments, 2 * calibrated.moments)
    plain = Statistics(replace(calibrated.header, similarity=False), calibrated.sites)
    assert plain.content_hash != calibrated.content_hash
    with pytest.raises(VitfrostError, match="similarity cannot be merged: True and False"):
        Statistics.merge([loaded, plain])


@pytest.mark.parametrize(
    "change",
    [
        lambda array: None,
        lambda array: array[:-1],
        lambda array: array.astype(np.float64),
        lambda array: array + np.triu(np.ones_like(array), 1),
        lambda array: -array,
    ],
)
def test_similarity_that_does_not_fit_is_refused(calibrated, tmp_path, change):
    path = tmp_path / "s.safetensors"
    calibrated.save(path)
    with safe_open(path, framework="numpy") as file:
        header = file.metadata()
    assert json.loads(header["vitfrost.statistics"])["version"] == 3
    arrays = load_file(path)
    changed = change(arrays.pop("similarity"))
    save_file(arrays if changed is None else arrays | {"similarity": np.ascontiguousarray(changed)}, path, metadata=header)
    with pytest.raises(VitfrostError, match=r"is damaged: the similarity of its .* heads does not fit; calibrate again") as caught:
        Statistics.load(path)
    assert "\n" not in str(caught.value)
