"""Statistics as files: round trip, equal bytes, exact merging, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vitfrost.errors import VitfrostError
from vitfrost.identity import Identity
from vitfrost.statistics.record import Statistics, StatisticsHeader
from vitfrost.statistics.sensitivity import SENSITIVITY_ARRAYS, Sensitivity
from vitfrost.statistics.site import SiteStatistics, kl_maps

from .test_histogram import count

SHAPE = (2, 2, 3, 3)
ALLOWED = np.ones((2, 3, 3), bool)
ALLOWED[1, 0, 2] = False


def make_sensitivity(maps: np.ndarray, allowed: np.ndarray | None) -> Sensitivity:
    """Sums with gradients and value norms made up from the maps, image by image."""
    a = maps.astype(np.float64).reshape(-1, *SHAPE) * (1 if allowed is None else allowed[:, None])
    g, n = np.sin(40 * a) ** 2, np.cos(30 * a[:, :, :, :1]) ** 2
    norms = n.sum(0)[:, :, 0]
    return Sensitivity(len(maps), g.sum(0), (g * a).sum(0), (g * a**2).sum(0), norms, (n * a).sum(0), (n * a**2).sum(0))


def make_statistics(maps: np.ndarray, **changes) -> Statistics:
    """Two sites (one with masked pairs) over maps [images, 36]."""
    sensitive = changes.get("sensitivity", False)
    sites = {}
    for name, allowed in (("a.attn", None), ("b.attn", ALLOWED)):
        counters = count(maps)
        if allowed is not None:
            counters.forget(np.broadcast_to(~allowed[:, None], SHAPE).reshape(-1))
        values = np.full((2, 2, 3), len(maps) << 20)
        sites[name] = SiteStatistics(
            name, SHAPE, len(maps), *counters.sparse(), counters.sums, counters.squares, values, allowed,
            make_sensitivity(maps, allowed) if sensitive else None,
        )  # fmt: skip
    header = StatisticsHeader(
        model=Identity(name="m", image_size=(32, 32), weight_tag="file:w", state_hash="ab" * 32, classes=10),
        sites=[{"name": name, "heads": 2, "maps": list(SHAPE)} for name in sites],
        precision="fp32", observed="before", quantization=None,
        images=len(maps), skipped=1, images_hash="0f" * 32, seed=0, limit=7,
    )  # fmt: skip
    return Statistics(replace(header, **changes), sites)


@pytest.fixture
def maps():
    return np.random.default_rng(0).dirichlet(np.ones(3), (30, 12)).astype(np.float32).reshape(30, 36)


@pytest.fixture
def saved(maps, tmp_path):
    path = tmp_path / "s.safetensors"
    make_statistics(maps).save(path)
    return path


@pytest.mark.parametrize("sensitivity", [False, True])
def test_round_trip(maps, saved, tmp_path, sensitivity):
    original = make_statistics(maps, sensitivity=sensitivity)
    original.save(saved)
    loaded = Statistics.load(saved)
    assert loaded.header == original.header
    assert loaded.content_hash == original.content_hash
    assert list(loaded.sites) == ["a.attn", "b.attn"]
    for name, site in loaded.sites.items():
        assert (site.sensitivity is not None) == sensitivity
        assert site.arrays().keys() == original.sites[name].arrays().keys()
        for array, values in original.sites[name].arrays().items():
            np.testing.assert_array_equal(site.arrays()[array], values)
        assert site.mean.shape == site.variance.shape == site.entropy.shape == SHAPE
        np.testing.assert_allclose(site.value_norm, 1)
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


def test_properties_follow_the_maps_and_leave_masked_pairs_at_zero(maps):
    plain, masked = make_statistics(maps).sites.values()
    np.testing.assert_allclose(plain.mean, maps.reshape(30, *SHAPE).mean(0), atol=1e-7)
    outside = np.broadcast_to(~ALLOWED[:, None], SHAPE)
    for values in (masked.mean, masked.variance, masked.entropy, kl_maps(masked, masked)):
        assert not values[outside].any()
    np.testing.assert_array_equal(masked.entropy[~outside], plain.entropy[~outside])


def test_merged_parts_equal_the_whole_in_any_grouping(maps):
    a, b, c = (make_statistics(part, skipped=skipped) for part, skipped in ((maps[:4], 1), (maps[4:5], 0), (maps[5:], 2)))
    left = Statistics.merge([Statistics.merge([a, b]), c])
    right = Statistics.merge([a, Statistics.merge([c, b])])
    whole = make_statistics(maps, skipped=3)
    assert left.content_hash == right.content_hash
    assert replace(left.header, images_hash=whole.header.images_hash) == whole.header
    assert Statistics(whole.header, left.sites).content_hash == whole.content_hash


def test_merged_sensitivity_is_that_of_the_whole_to_rounding(maps):
    whole, *parts = (make_statistics(part, sensitivity=True) for part in (maps, maps[:4], maps[4:5], maps[5:]))
    for order in (parts, parts[::-1]):
        merged = Statistics.merge(order)
        assert merged.header.sensitivity
        for name, site in whole.sites.items():
            assert merged.sites[name].sensitivity.images == 30
            for array, values in site.sensitivity.arrays().items():
                np.testing.assert_allclose(merged.sites[name].sensitivity.arrays()[array], values, rtol=1e-12)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"precision": "quantized"}, "precision"),
        ({"observed": "after"}, "observed"),
        ({"sensitivity": True}, "sensitivity cannot be merged: False and True"),
        ({"quantization": {"weight_bits": 4}}, "quantization"),
        ({"model": Identity(name="other", image_size=(32, 32), weight_tag="file:w", state_hash="ab" * 32, classes=10)}, "another model"),
        ({"sites": []}, "other attention sites"),
    ],
)
def test_statistics_that_differ_are_not_merged(maps, changes, what):
    with pytest.raises(VitfrostError, match=what):
        Statistics.merge([make_statistics(maps), make_statistics(maps, **changes)])


def test_nothing_to_merge():
    with pytest.raises(VitfrostError, match="no statistics"):
        Statistics.merge([])


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [("name", "n", "another model"), ("image_size", (48, 48), "another resolution"), ("state_hash", "cd" * 32, "another weights")],
)
def test_check_fits_says_what_differs(maps, key, value, what):
    statistics = make_statistics(maps)
    statistics.check_fits(statistics.header.model.model_copy(), list(statistics.header.sites))
    with pytest.raises(VitfrostError, match=what):
        statistics.check_fits(statistics.header.model.model_copy(update={key: value}), statistics.header.sites)


def test_check_fits_names_the_site_that_differs(maps):
    statistics = make_statistics(maps)
    sites = [statistics.header.sites[0], statistics.header.sites[1] | {"heads": 3}]
    with pytest.raises(VitfrostError, match=r"b\.attn differs"):
        statistics.check_fits(statistics.header.model, sites)


def test_maps_of_other_shapes_are_not_compared(maps):
    site = make_statistics(maps).sites["a.attn"]
    with pytest.raises(VitfrostError, match="cannot be compared"):
        kl_maps(site, replace(site, maps_shape=(1, 4, 3, 3)))


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated_files_are_refused(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(VitfrostError, match="truncated"):
        Statistics.load(saved)


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(VitfrostError, match="no statistics file"):
        Statistics.load(tmp_path / "none.safetensors")
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "weights.safetensors")
    with pytest.raises(VitfrostError, match="without attention statistics"):
        Statistics.load(tmp_path / "weights.safetensors")


def rewrite(path, change_header=lambda values: values, change_arrays=lambda arrays: arrays):
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        values = json.loads(file.metadata()["vitfrost.statistics"])
    arrays = change_arrays(load_file(path))
    save_file(arrays, path, metadata={"vitfrost.statistics": json.dumps(change_header(values))})


def as_version_1(values):
    return {name: value for name, value in as_version_2(values).items() if name != "sensitivity"} | {"version": 1}


def as_version_2(values):
    return {name: value for name, value in values.items() if name not in ("similarity", "feed_forward", "structure", "detail")} | {
        "version": 2
    }


@pytest.mark.parametrize("as_version", [as_version_1, as_version_2])
def test_files_of_older_versions_keep_their_hash_and_merge_with_new_ones(maps, saved, tmp_path, as_version):
    make_statistics(maps, feed_forward=[{"name": "a.mlp", "width": 4, "hidden": 16, "block": "transformer"}]).save(saved)
    new = Statistics.load(saved)
    rewrite(saved, as_version)
    old = Statistics.load(saved)
    assert (old.similarity, old.header.similarity, old.header.feed_forward) == (None, False, [])
    assert not old.header.sensitivity
    for name, site in old.sites.items():
        np.testing.assert_array_equal(site.entropy, new.sites[name].entropy)
    digest = hashlib.sha256(
        json.dumps(as_version(asdict(new.header) | {"model": new.header.model.model_dump(mode="json")}), sort_keys=True).encode()
    )
    for name, array in sorted(load_file(saved).items()):
        digest.update(f"{name}|{array.dtype}|{array.shape}".encode() + array.tobytes())
    assert old.content_hash == digest.hexdigest()
    again = tmp_path / "again.safetensors"
    old.save(again)
    assert Statistics.load(again).content_hash == old.content_hash
    assert Statistics.merge([old, new]).header == Statistics.merge([new, old]).header
    assert Statistics.merge([old, new]).header.version == 3
    assert Statistics.merge([old, new]).header.feed_forward == new.header.feed_forward


def test_newer_and_incomplete_headers_are_refused(maps, saved):
    rewrite(saved, lambda values: values | {"version": 99})
    with pytest.raises(VitfrostError, match="has statistics file version 99, this vitfrost reads up to 4; update vitfrost"):
        Statistics.load(saved)
    header = make_statistics(maps).header
    with_a_flag = asdict(header) | {"model": header.model.model_dump(mode="json"), "feed_forward": True}
    for values in ({"version": 1}, {"version": 2}, with_a_flag):
        rewrite(saved, lambda _, values=values: values)
        with pytest.raises(VitfrostError, match=r"is damaged: .*(missing|feed_forward is True).*; calibrate again"):
            Statistics.load(saved)
    rewrite(saved, lambda values: [])
    with pytest.raises(VitfrostError, match=r"is damaged: it is \[\]"):
        Statistics.load(saved)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda arrays: {name: array for name, array in arrays.items() if name != "b.attn/sums"}, "sums of site b.attn is missing"),
        (lambda arrays: arrays | {"a.attn/bins": arrays["a.attn/bins"][:-1]}, "site a.attn bins does not fit"),
        (lambda arrays: arrays | {"a.attn/counts": arrays["a.attn/counts"] + np.uint8(200)}, "site a.attn counts are out of range"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(saved, change, what):
    rewrite(saved, change_arrays=change)
    with pytest.raises(VitfrostError, match=what):
        Statistics.load(saved)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda arrays: [arrays.pop("b.attn/value_first")], "value_first of site b.attn is missing"),
        (lambda arrays: arrays.update({"a.attn/value_zeroth": arrays["a.attn/value_first"]}), "site a.attn value_zeroth does not fit"),
        (lambda arrays: arrays.update({"a.attn/gradient_first": arrays["a.attn/gradient_first"][:1]}), "gradient_first does not fit"),
        (lambda arrays: arrays.update({"a.attn/value_first": np.zeros(SHAPE, np.float32)}), "site a.attn value_first does not fit"),
        (lambda arrays: arrays["b.attn/gradient_second"].__setitem__((0, 1, 2, 0), np.nan), "gradient_second holds values that are no"),
        (lambda arrays: arrays["b.attn/gradient_zeroth"].__setitem__((0, 1, 2, 0), -1e-9), "gradient_zeroth holds values that are no"),
        (lambda arrays: arrays["a.attn/value_zeroth"].__setitem__((0, 1, 2), np.inf), "value_zeroth holds values that are no"),
    ],
)
def test_sensitivity_that_does_not_fit_is_refused(maps, saved, change, what):
    make_statistics(maps, sensitivity=True).save(saved)
    assert Statistics.load(saved).sites["a.attn"].sensitivity.arrays().keys() == set(SENSITIVITY_ARRAYS)

    def changed(arrays):
        change(arrays)
        return arrays

    rewrite(saved, change_arrays=changed)
    with pytest.raises(VitfrostError, match=what) as caught:
        Statistics.load(saved)
    assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_the_old_file(saved, tmp_path):
    before = saved.read_bytes()
    script = (
        "import resource, sys\n"
        "from vitfrost.statistics.record import Statistics\n"
        "statistics = Statistics.load(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    statistics.save(sys.argv[1])\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, saved], capture_output=True, text=True, env=os.environ, check=True)
    assert "VitfrostError cannot write" in done.stdout
    assert saved.read_bytes() == before
    assert os.listdir(tmp_path) == [saved.name]


def test_statistics_of_other_structures_are_not_merged(maps):
    plain, changed = make_statistics(maps), make_statistics(maps, structure={"heads": {}})
    with pytest.raises(VitfrostError, match="different hallucinated heads"):
        Statistics.merge([plain, changed])
