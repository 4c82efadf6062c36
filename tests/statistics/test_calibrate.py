"""The verb calibrate and the collector on real models, against maps recomputed and averaged by hand."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from vitfrost import calibrate
from vitfrost.configs import Calibrate
from vitfrost.errors import VitfrostError
from vitfrost.images.batches import BatchLoader
from vitfrost.images.preprocess import Preprocess
from vitfrost.images.source import open_images
from vitfrost.model import Model
from vitfrost.statistics.collector import MapCollector, group_sites
from vitfrost.statistics.histogram import BYTES_PER_ENTRY
from vitfrost.vit.attention import MapAttention
from vitfrost.vit.families import allowed_pairs, find_sites

from .. import processes


@pytest.fixture(scope="module")
def digits():
    return Model.open("vitfrost_digits", weights="random")


def record(model, sites, pixels, batch_size):
    """Maps and values of every site, recomputed from the block inputs by hand in float64 of timm's own layers."""
    seen: dict[str, list[np.ndarray]] = {site.name: [] for site in sites}
    hooks = []
    for site in sites:
        attn = model.get_submodule(site.name)

        def hook(module, inputs, site=site):
            qkv = module.qkv(inputs[0]).reshape(inputs[0].shape[0], site.queries, 3, site.heads, site.head_dim).permute(2, 0, 3, 1, 4)
            maps = (qkv[0].double() @ qkv[1].double().transpose(-2, -1) * site.head_dim**-0.5).softmax(-1)
            weight = module.proj.weight.double().reshape(-1, site.heads, site.head_dim)
            norms = torch.einsum("bhkd,ohd->bhko", qkv[2].double(), weight).square().sum(-1)
            seen[site.name].append((maps.numpy(), norms.numpy()))

        hooks.append(attn.register_forward_pre_hook(hook))
    with torch.inference_mode():
        for part in pixels.split(batch_size):
            model(part)
    for hook in hooks:
        hook.remove()
    return {name: [np.concatenate(parts) for parts in zip(*batches, strict=True)] for name, batches in seen.items()}


def test_statistics_equal_those_of_maps_computed_by_hand(pictures):
    loaded = Model.open("vitfrost_digits", weights="random")
    image_set = open_images(pictures).subset(24, 3)
    pixels = next(iter(BatchLoader(image_set, Preprocess(loaded.preprocessing), 24))).pixels
    expected = record(loaded.module, find_sites(loaded.module).attention, pixels, 8)
    statistics = calibrate(loaded, pictures, Calibrate(limit=24, seed=3, batch_size=8), progress=False)
    assert statistics.header.images == 24
    assert statistics.header.skipped == 0
    statistics.check_fits(loaded.identity, find_sites(Model.open("vitfrost_digits", weights="random").module).signature())
    for name, site in statistics.sites.items():
        maps, norms = expected[name]
        np.testing.assert_allclose(site.mean[0], maps.mean(0), atol=1e-6)
        np.testing.assert_allclose(site.variance[0], maps.var(0), atol=1e-7)
        np.testing.assert_allclose(site.value_norm[0], norms.mean(0), rtol=1e-4, atol=1e-6)
        assert 0 <= site.entropy.min() <= site.entropy.max() <= np.log2(24) + 1e-6
        assert site.counts.sum() == 24 * site.mean.size


def test_the_collector_leaves_outputs_and_model_as_they_were(digits):
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = Model.open("vitfrost_digits", weights="random").module
    sites = find_sites(model).attention
    with torch.inference_mode():
        before = model(pixels)
        with MapCollector(model, sites) as collector:
            assert (model(pixels) - before).abs().max() < 1e-5
            assert collector.nbytes == sum(site.entries for site in sites) * BYTES_PER_ENTRY
        model(pixels)
    assert all(site.images == 2 for site in collector.finish().values())


def test_batch_size_and_passes_change_nothing_but_rounding(pictures, digits):
    whole = calibrate(digits, pictures, Calibrate(limit=20, batch_size=5), progress=False)
    per_site = BYTES_PER_ENTRY * next(iter(whole.sites.values())).mean.size
    passes = calibrate(digits, pictures, Calibrate(limit=20, batch_size=5, memory_limit=2.5e-9 * per_site), progress=False)
    assert passes.content_hash == whole.content_hash
    other = calibrate(digits, pictures, Calibrate(limit=20, batch_size=20), progress=False)
    for name, site in whole.sites.items():
        np.testing.assert_allclose(other.sites[name].mean, site.mean, atol=1e-6)
    assert other.header == whole.header


def test_groups_respect_the_memory_limit(digits):
    sites = find_sites(Model.open("vitfrost_digits", weights="random").module).attention
    per_site = BYTES_PER_ENTRY * sites[0].entries
    assert [len(group) for group in group_sites(sites, 4 * per_site)] == [4, 2]
    assert [len(group) for group in group_sites(sites, 1e12)] == [6]
    with pytest.raises(VitfrostError, match=r"blocks\.0\.attn alone needs?"):
        group_sites(sites, per_site - 1)
    assert [len(group) for group in group_sites(sites, 4 * per_site, kept=per_site)] == [3, 3]
    with pytest.raises(VitfrostError, match=r"alone need 0\.\d GB of counters beside 0\.\d GB of logits, more than the memory limit"):
        group_sites(sites, 2 * per_site - 1, kept=per_site)
    with pytest.raises(VitfrostError, match="smaller batch size"):
        group_sites(sites, per_site, kept=per_site + 1)


def test_masked_pairs_of_swin_are_excluded():
    loaded = Model.open(
        "swin_tiny_patch4_window7_224", weights="random", image_size=112, options={"depths": (2, 1), "num_heads": (3, 6), "embed_dim": 48}
    )
    sites = find_sites(loaded.module).attention
    allowed = {site.name: allowed_pairs(loaded.module, site.name) for site in sites}
    with torch.inference_mode(), MapCollector(loaded.module, sites) as collector:
        loaded.module(torch.randn(3, 3, 112, 112, generator=torch.Generator().manual_seed(0)))
    statistics = collector.finish()
    assert [site.allowed is not None for site in statistics.values()] == [site.masked for site in sites]
    assert any(site.masked for site in sites)
    for name, site in statistics.items():
        assert site.maps_shape[0] == next(found.windows for found in sites if found.name == name)
        np.testing.assert_allclose(site.mean.sum(-1), 1, atol=1e-5)
        if site.allowed is None:
            assert site.counts.sum() == 3 * site.mean.size
        else:
            np.testing.assert_array_equal(site.allowed, allowed[name].numpy())
            outside = np.broadcast_to(~site.allowed[:, None], site.maps_shape)
            assert outside.any()
            assert not site.mean[outside].any()
            assert not site.widths.reshape(site.maps_shape)[outside].any()
            assert (site.widths.reshape(site.maps_shape)[~outside] > 0).all()


def test_broken_weights_are_named(pictures):
    loaded = Model.open("vitfrost_digits", weights="random")
    with torch.no_grad():
        loaded.module.blocks[2].attn.qkv.weight[0, 0] = float("nan")
    with pytest.raises(VitfrostError, match=r"site blocks\.2\.attn has"):
        calibrate(loaded, pictures, Calibrate(limit=4), progress=False)
    assert not any(module.observers.any for module in loaded.module.modules() if isinstance(module, MapAttention))


def test_unusable_images_are_counted_and_none_left_is_an_error(pictures, digits, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(pictures, folder)
    for name in ("0000.png", "0007.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:50])
    statistics = calibrate(digits, folder, Calibrate(limit=None), progress=False)
    assert (statistics.header.images, statistics.header.skipped) == (38, 2)
    for file in folder.glob("*.png"):
        file.write_bytes(b"no picture")
    with pytest.raises(VitfrostError, match="usable"):
        calibrate(digits, folder, progress=False)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"maps": "between"}, "before"),
        ({"limit": 0}, "greater than or equal to 1"),
        ({"limit": 600_000}, "at most"),
        ({"batch_size": 0}, "batch_size"),
        ({"memory_limit": 1e-6}, "memory limit"),
    ],
)
def test_bad_arguments_are_refused(pictures, digits, options, what):
    with pytest.raises(VitfrostError, match=what):
        calibrate(digits, pictures, Calibrate(**options), progress=False)


def test_a_folder_is_no_place_for_statistics(pictures, digits):
    with pytest.raises(VitfrostError, match="is a folder"):
        calibrate(digits, pictures, out=".", progress=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`python -m vitfrost` in two processes of one thread each."""
    words = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port(), "-m", "vitfrost", *arguments]
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=200)


def test_two_processes_of_one_thread_give_the_bits_of_one_process_of_two(pictures, tmp_path):
    from safetensors.torch import save_file

    weights = tmp_path / "weights.safetensors"
    save_file(Model.open("vitfrost_digits", weights="random").module.state_dict(), weights)
    folder = tmp_path / "images"
    shutil.copytree(pictures, folder)
    (folder / "0003.png").write_bytes(b"no picture")
    one, two = tmp_path / "one" / "s.safetensors", tmp_path / "two" / "s.safetensors"
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        calibrate(
            Model.open("vitfrost_digits", weights=weights),
            folder,
            Calibrate(limit=38, batch_size=4, similarity=True),
            out=one,
            progress=False,
        )
    finally:
        torch.set_num_threads(threads)
    arguments = ["calibrate", "--model", "vitfrost_digits", "--weights", weights, "--images", folder, "--limit", 38, "--batch-size", 4]
    shared = torchrun(*arguments, "--similarity", "--out", two)
    assert shared.returncode == 0, shared.stderr
    assert two.read_bytes() == one.read_bytes()
    assert os.listdir(two.parent) == [two.name]
    for file in folder.glob("*.png"):
        file.write_bytes(b"no picture")
    failed = processes.torchrun(*arguments, "--out", tmp_path / "none.safetensors")
    for process in failed:
        _, complaint = process.communicate()
        assert process.returncode == 2
        assert "usable" in complaint
    assert not (tmp_path / "none.safetensors").exists()


def test_statistics_are_a_mapping_by_site(shallow) -> None:
    names = list(shallow.statistics)
    assert names == [site["name"] for site in shallow.statistics.header.sites]
    assert len(shallow.statistics) == 2
    assert names[0] in shallow.statistics
    assert "blocks.7.attn" not in shallow.statistics
