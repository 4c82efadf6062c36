"""Gradient and value sums against float64 references of timm's own layers, and their laws."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitfrost.artifact import Artifact
from vitfrost.configs import Calibrate
from vitfrost.errors import VitfrostError
from vitfrost.images.batches import BatchLoader
from vitfrost.images.preprocess import Preprocess
from vitfrost.images.source import open_images
from vitfrost.methods.output_distance import distances
from vitfrost.methods.quantize.modules import LogQuantizer, UniformQuantizer
from vitfrost.model import Model
from vitfrost.statistics.calibrate import calibrate
from vitfrost.statistics.collector import MapCollector, group_sites
from vitfrost.statistics.histogram import BYTES_PER_ENTRY
from vitfrost.statistics.record import Statistics
from vitfrost.statistics.sensitivity import (
    SENSITIVITY_ARRAYS,
    SENSITIVITY_BYTES,
    Sensitivity,
    SensitivitySums,
    drawn_log_likelihood,
    drawn_score,
)
from vitfrost.statistics.site import SiteStatistics
from vitfrost.vit.attention import MapAttention
from vitfrost.vit.families import allowed_pairs, find_sites

from ..processes import torchrun


@dataclass
class Seen:
    """What one image leaves at one site: maps that keep their gradient [rows, heads, q, k], norms [rows, heads, k]."""

    maps: torch.Tensor
    norms: torch.Tensor

    def terms(self, gradient: torch.Tensor) -> dict[str, np.ndarray]:
        g, a, n = gradient.double(), self.maps.detach().double(), self.norms.double().unsqueeze(-2)
        terms = (g**2, g**2 * a, g**2 * a**2, n.squeeze(-2), n * a, n * a**2)
        return {name: term.numpy() for name, term in zip(SENSITIVITY_ARRAYS, terms, strict=True)}


def drawn_class(logits: torch.Tensor, seed: int, position: int) -> int:
    """The class whose interval of [0, 1), of length p(y), holds the image's uniform draw."""
    ends = np.cumsum(logits.detach().double().softmax(-1)[0].numpy())
    return int(np.searchsorted(ends, np.random.default_rng((seed, position)).random(), side="right"))


def summed_by_hand(model, sites, seen: dict[str, Seen], image_set, preprocessing, seed, dtype) -> dict[str, dict[str, np.ndarray]]:
    """One image at a time, explicit autograd of log p(y); `seen` is filled by the model's forward pass."""
    sums: dict[str, dict[str, np.ndarray]] = {site.name: dict.fromkeys(SENSITIVITY_ARRAYS, np.zeros(())) for site in sites}
    for batch in BatchLoader(image_set, Preprocess(preprocessing), 1):
        logits = model(batch.pixels.to(dtype).requires_grad_())
        chosen = logits.log_softmax(-1)[0, drawn_class(logits, seed, batch.positions[0])]
        gradients = torch.autograd.grad(chosen, [seen[site.name].maps for site in sites])
        for site, gradient in zip(sites, gradients, strict=True):
            for name, term in seen[site.name].terms(gradient).items():
                sums[site.name][name] = sums[site.name][name] + term
    return sums


def watch_timm(model, sites) -> dict[str, Seen]:
    """Maps as timm's attention hands them to its dropout, values as its qkv layer gives them."""
    seen: dict[str, Seen] = {}
    for site in sites:
        attn = model.get_submodule(site.name)
        attn.fused_attn = False
        weight = attn.proj.weight.detach().reshape(-1, site.heads, site.head_dim)

        def values(module, inputs, out, site=site, weight=weight):
            v = out.detach().reshape(-1, site.keys, 3, site.heads, site.head_dim)[:, :, 2]
            seen[site.name] = Seen(out, torch.einsum("nkhd,ohd->nhko", v, weight).square().sum(-1))

        def maps(module, inputs, site=site):
            seen[site.name].maps = inputs[0]

        attn.qkv.register_forward_hook(values)
        attn.attn_drop.register_forward_pre_hook(maps)
    return seen


def watch_artifact(model, after: bool) -> dict[str, Seen]:
    """Maps on either side of quantizer and frozen entries; quantizers pass gradients by another way of writing the same thing."""
    seen: dict[str, Seen] = {}
    for module in model.modules():
        if isinstance(module, UniformQuantizer | LogQuantizer):

            def straight(x, plain=module.forward):
                return plain(x.detach()) + (x - x.detach())

            module.forward = straight
    for name, module in model.named_modules():
        if not isinstance(module, MapAttention):
            continue
        site, weight = module.site, module.proj.weight.reshape(-1, module.site.heads, module.site.head_dim)

        def values(_, inputs, out, name=name, weight=weight):
            seen[name] = Seen(out, torch.einsum("nhkd,ohd->nhko", out.detach(), weight).square().sum(-1))

        def maps(_, inputs, out, name=name):
            seen[name].maps = out if after else inputs[0]

        module.value_quantizer.register_forward_hook(values)
        (module.map_quantizer if module.frozen is None else module.frozen).register_forward_hook(maps)
        assert module.frozen is None or len(module.frozen.partial_heads) == site.heads
    return seen


def check(site: SiteStatistics, expected: dict[str, np.ndarray], rtol: float = 1e-4) -> None:
    """All six sums of a site; rounding of float32 in proportion to the largest entry."""
    assert site.sensitivity is not None
    assert site.sensitivity.images == site.images
    assert expected["gradient_zeroth"].max() > 0
    for name, found in site.sensitivity.arrays().items():
        wanted = expected[name].reshape(found.shape)
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=1e-6 * wanted.max(), err_msg=f"{site.name} {name}")


SWIN = {"depths": (2, 1), "num_heads": (3, 6), "embed_dim": 48}


@pytest.mark.parametrize(("name", "weights", "options"), [("vitfrost_digits", None, {}), ("swin_tiny_patch4_window7_224", "random", SWIN)])
def test_sums_equal_explicit_gradients_in_float64(pictures, name, weights, options):
    loaded, reference = (Model.open(name, weights=weights, image_size=112 if options else None, options=options) for _ in range(2))
    image_set = open_images(pictures).subset(6, 3)
    sites = find_sites(reference.module).attention
    model = reference.module.double()
    allowed = {site.name: allowed_pairs(model, site.name) for site in sites}
    expected = summed_by_hand(model, sites, watch_timm(model, sites), image_set, loaded.preprocessing, 3, torch.float64)
    statistics = calibrate(loaded, pictures, Calibrate(limit=6, seed=3, batch_size=4, sensitivity=True), progress=False)
    assert any(mask is not None for mask in allowed.values()) == bool(options)
    for site in sites:
        if (mask := allowed[site.name]) is not None:
            for term in expected[site.name].values():
                term *= mask[:, None].numpy() if term.ndim == 4 else 1
        check(statistics.sites[site.name], expected[site.name])
    assert all(parameter.requires_grad for parameter in loaded.module.parameters())


@pytest.mark.parametrize("maps", ["before", "after"])
@pytest.mark.parametrize("frozen", [False, True])
def test_quantizers_let_gradients_straight_through_and_frozen_entries_stop_them(pictures, quantized, prepared, frozen, maps):
    path = prepared.artifact if frozen else quantized
    artifact = Artifact.load(path)
    seen = watch_artifact(artifact.module.requires_grad_(False), maps == "after")
    sites = [module.site for module in artifact.module.modules() if isinstance(module, MapAttention)]
    image_set = open_images(pictures).subset(5, 1)
    expected = summed_by_hand(artifact.module, sites, seen, image_set, artifact.preprocessing, 1, torch.float32)
    statistics = calibrate(path, pictures, Calibrate(limit=5, seed=1, batch_size=1, maps=maps, sensitivity=True), progress=False)
    for site in sites:
        found = statistics.sites[site.name]
        check(found, expected[site.name])
        if frozen and maps == "before":
            mask = artifact.module.get_submodule(f"{site.name}.frozen").mask.numpy()
            assert not found.sensitivity.gradient_zeroth[mask].any()
            assert (found.sensitivity.value_second[mask] > 0).all()


def counters(statistics: Statistics) -> dict[str, np.ndarray]:
    return {
        f"{site.name}/{name}": array
        for site in statistics.sites.values() for name, array in site.arrays().items() if name not in SENSITIVITY_ARRAYS
    }  # fmt: skip


def same_counters(one: Statistics, other: Statistics) -> bool:
    found, wanted = counters(one), counters(other)
    return found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("source", ["digits", "swin", "quantized", "frozen", "frozen, after"])
def test_counters_are_the_same_bits_with_and_without(pictures, quantized, prepared, source):
    model = {
        "digits": lambda: Model.open("vitfrost_digits"),
        "swin": lambda: Model.open("swin_tiny_patch4_window7_224", weights="random", image_size=112, options=SWIN),
        "quantized": lambda: quantized, "frozen": lambda: prepared.artifact, "frozen, after": lambda: prepared.artifact,
    }[source]()  # fmt: skip
    options = {"limit": 9, "batch_size": 4, "maps": "after" if "after" in source else "before"}
    plain, sensitive = (calibrate(model, pictures, Calibrate(sensitivity=on, **options), progress=False) for on in (False, True))
    assert same_counters(plain, sensitive)
    assert replace(sensitive.header, sensitivity=False) == plain.header
    assert all(site.sensitivity is None for site in plain.sites.values())


def test_counters_of_the_real_model_are_the_same_bits_and_only_class_rows_of_its_last_layer_matter(shared_data):
    weights = shared_data / "deit_tiny_patch16_224" / "model.safetensors"
    plain, sensitive = (
        calibrate(
            Model.open("deit_tiny_patch16_224", weights=weights),
            shared_data / "calibration",
            Calibrate(limit=3, batch_size=2, sensitivity=on),
            progress=False,
        )
        for on in (False, True)
    )
    assert same_counters(plain, sensitive)
    last = list(sensitive.sites.values())[-1].sensitivity
    assert last is not None
    assert (last.gradient_zeroth[:, :, 0] > 0).all()
    assert not last.gradient_zeroth[:, :, 1:].any()


def test_rows_that_the_classifier_does_not_read_are_exactly_zero(pictures):
    statistics = calibrate("vitfrost_digits", pictures, Calibrate(limit=6, sensitivity=True), progress=False)
    *_, before, last = statistics.sites.values()
    assert before.sensitivity.gradient_zeroth[:, :, 1:].any()
    for sums in (last.sensitivity.gradient_zeroth, last.sensitivity.fisher_error(last.mean)):
        assert sums[:, :, 0].any()
        assert not sums[:, :, 1:].any()
    assert last.sensitivity.output_error(last.mean)[:, :, 1:].any()


def test_batch_size_and_passes_change_nothing_but_rounding(pictures, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(pictures, folder)
    (folder / "0003.png").write_bytes(b"no picture")
    options = {"limit": None, "sensitivity": True}
    whole = calibrate("vitfrost_digits", folder, Calibrate(batch_size=8, **options), progress=False)
    entries = next(iter(whole.sites.values())).mean.size
    limit = 2.5e-9 * entries * (BYTES_PER_ENTRY + SENSITIVITY_BYTES)
    passes = calibrate("vitfrost_digits", folder, Calibrate(batch_size=8, memory_limit=limit, **options), progress=False)
    assert passes.content_hash == whole.content_hash
    for batch_size in (1, 13):
        other = calibrate("vitfrost_digits", folder, Calibrate(batch_size=batch_size, **options), progress=False)
        for name, site in whole.sites.items():
            check(other.sites[name], site.sensitivity.arrays(), rtol=1e-5)


def test_the_memory_limit_counts_the_sums():
    model = Model.open("vitfrost_digits", weights="random").module
    sites = find_sites(model).attention
    limit = 3 * sites[0].entries * BYTES_PER_ENTRY
    assert [len(group) for group in group_sites(sites, limit)] == [3, 3]
    assert [len(group) for group in group_sites(sites, limit, sensitivity=True)] == [2, 2, 2]
    with MapCollector(model, sites, sensitivity=True) as collector:
        assert collector.nbytes == sum(site.entries for site in sites) * (BYTES_PER_ENTRY + SENSITIVITY_BYTES)


def test_two_processes_agree_to_rounding_and_count_the_same_bits(pictures, tmp_path):
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    calibrate("vitfrost_digits", pictures, Calibrate(limit=22, batch_size=4, sensitivity=True), out=one, progress=False)
    arguments = ["calibrate", "--model", "vitfrost_digits", "--images", pictures, "--limit", 22, "--batch-size", 4, "--sensitivity"]
    for process in torchrun(*arguments, "--out", two):
        _, complaint = process.communicate()
        assert process.returncode == 0, complaint
    alone, shared = Statistics.load(one), Statistics.load(two)
    assert alone.header == shared.header
    assert same_counters(alone, shared)
    for name, site in alone.sites.items():
        for array, values in site.sensitivity.arrays().items():
            np.testing.assert_allclose(shared.sites[name].sensitivity.arrays()[array], values, rtol=1e-12)


@given(st.integers(1, 9), st.integers(0, 1000), st.floats(0, 1))
def test_errors_are_the_expectations_they_stand_for(images, seed, constant):
    rng = np.random.default_rng(seed)
    maps, gradients, norms = rng.random((images, 2, 3, 4, 5)), rng.normal(size=(images, 2, 3, 4, 5)), rng.random((images, 2, 3, 5))
    n = norms[:, :, :, None, :]
    sums = Sensitivity(
        images, (gradients**2).sum(0), (gradients**2 * maps).sum(0), (gradients**2 * maps**2).sum(0),
        norms.sum(0), (n * maps).sum(0), (n * maps**2).sum(0),
    )  # fmt: skip
    constants = np.full((2, 3, 4, 5), constant)
    np.testing.assert_allclose(sums.fisher_error(constants), (gradients**2 * (maps - constant) ** 2).mean(0), rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(sums.output_error(constants), (n * (maps - constant) ** 2).mean(0), rtol=1e-9, atol=1e-13)
    assert sums.fisher_error(maps[0]).min() >= 0


def drawn(logits: torch.Tensor, positions: list[int], seed: int) -> list[int]:
    """The drawn classes, told from the gradient by the logits: 1 - p at the drawn class, -p elsewhere."""
    logits = logits.clone().requires_grad_()
    total = drawn_log_likelihood(logits, positions, seed)
    total.backward()
    chosen = (logits.grad + logits.detach().softmax(-1)).round()
    assert chosen.sum(-1).eq(1).all()
    np.testing.assert_allclose(float(total.detach()), float((logits.detach().log_softmax(-1) * chosen).nansum()), rtol=1e-4)
    return chosen.argmax(-1).tolist()


def test_classes_are_drawn_by_their_probability_and_alike_in_any_company():
    logits = torch.tensor([0.5, 0.3, 0.2, 1e-38]).log().repeat(4000, 1)
    found = drawn(logits, list(range(4000)), 0)
    np.testing.assert_allclose(np.bincount(found, minlength=4) / 4000, [0.5, 0.3, 0.2, 0], atol=0.03)
    assert drawn(logits[:3], [17, 5, 900], 0) == [found[17], found[5], found[900]]
    assert drawn(logits, list(range(4000)), 1) != found


def test_what_is_not_finite_is_named(pictures):
    loaded = Model.open("vitfrost_digits")
    with torch.no_grad():
        loaded.module.head.bias[0] = float("inf")
    with pytest.raises(VitfrostError, match="outputs are not all finite"):
        calibrate(loaded, pictures, Calibrate(limit=4, sensitivity=True), progress=False)
    sums = SensitivitySums("blocks.0.attn", (1, 2, 3, 3))
    maps = torch.rand(4, 2, 3, 3)
    sums.watch(maps, torch.rand(4, 2, 3))
    with pytest.raises(VitfrostError, match=r"blocks\.0\.attn has gradients that are not finite"):
        (maps.sum() * torch.tensor(float("inf"))).backward()


def test_a_model_with_one_class_is_refused(pictures):
    with pytest.raises(VitfrostError, match="it needs at least 2"):
        calibrate(
            Model.open("vitfrost_digits", weights="random", options={"num_classes": 1}),
            pictures,
            Calibrate(limit=4, sensitivity=True),
            progress=False,
        )


def test_sensitivity_of_features_is_the_curvature_of_their_relative_error(pictures):
    """Half of the mean squared gradient along a change is the relative error that the change makes."""
    loaded = Model.open("vitfrost_digits", weights="random", options={"num_classes": 0, "depth": 1})
    outputs = loaded(torch.randn(3, 3, *loaded.image_size, generator=torch.Generator().manual_seed(0))).detach().double()
    change = 1e-3 * torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sums = torch.zeros(3, dtype=torch.float64)
    for seed in range(400):
        leaf = outputs.clone().requires_grad_()
        drawn_score("embedding", leaf, (0, 1, 2), seed).backward()
        sums += (leaf.grad * change).sum(1).square()
    wanted = distances("embedding", outputs, outputs + change)
    assert torch.allclose(0.5 * sums / 400, wanted, rtol=0.35)
    found = calibrate(loaded, pictures, Calibrate(limit=4, sensitivity=True), progress=False)
    assert np.isfinite(found.sites["blocks.0.attn"].sensitivity.gradient_zeroth).all()
    assert found.sites["blocks.0.attn"].sensitivity.gradient_zeroth.max() > 0
