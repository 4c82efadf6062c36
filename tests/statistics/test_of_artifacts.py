"""Statistics of quantized models, before and after their map quantizer, and of a caller's own model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from vitfrost.artifact import Artifact
from vitfrost.configs import Calibrate, Compress, FreezeEntries
from vitfrost.model import Model
from vitfrost.passes.compress import compress
from vitfrost.plans.choose import plan
from vitfrost.statistics.calibrate import calibrate
from vitfrost.statistics.site import kl_maps
from vitfrost.vit.families import find_sites


def test_a_callers_model_is_left_as_it_is(pictures: Path) -> None:
    loaded = Model.open("vitfrost_digits")
    before = find_sites(loaded.module)
    calibrate(loaded, pictures, Calibrate(limit=4), progress=False)
    assert find_sites(loaded.module) == before


def test_the_header_says_what_was_measured(quantized: Path, pictures: Path) -> None:
    original = calibrate("vitfrost_digits", pictures, Calibrate(limit=8), progress=False)
    statistics = calibrate(quantized, pictures, Calibrate(limit=8), progress=False)
    assert (original.header.precision, statistics.header.precision) == ("fp32", "quantized")
    assert statistics.header.model.state_hash == original.header.model.state_hash
    assert statistics.header.images_hash == original.header.images_hash
    assert statistics.header.quantization is not None
    assert statistics.header.quantization["weight_bits"] == 4
    divergence = [float(kl_maps(original.sites[name], statistics.sites[name]).mean()) for name in original.sites]
    assert min(divergence) > 0


@torch.no_grad()
def test_after_the_map_quantizer_only_its_levels_are_left(quantized: Path, pictures: Path) -> None:
    before = calibrate(quantized, pictures, Calibrate(limit=1), progress=False)
    after = calibrate(quantized, pictures, Calibrate(limit=1, maps="after"), progress=False)
    artifact: Artifact = Artifact.load(quantized)
    for name, site in after.sites.items():
        quantizer = artifact.module.get_submodule(f"{name}.map_quantizer")
        assert len(np.unique(site.mean)) <= 17  # one image: the mean is the map itself
        expected = quantizer(torch.from_numpy(before.sites[name].mean))
        close = np.isclose(expected.numpy(), site.mean, rtol=1e-4, atol=1e-7)
        assert close.mean() > 0.999


def test_a_plan_of_the_quantized_model_fits_the_original(quantized: Path, pictures: Path) -> None:
    statistics = calibrate(quantized, pictures, Calibrate(limit=8), progress=False)
    made = compress(
        "vitfrost_digits",
        plan(statistics, FreezeEntries(0.2)),
        statistics=statistics,
        images=pictures,
        config=Compress(calibration_images=8),
    )
    assert made.statistics is not None
    assert made.statistics["precision"] == "quantized"
    base = Artifact.load(quantized)
    for name, layer in base.module.named_modules():  # the same draw gives the same quantized weights, frozen or not
        if hasattr(layer, "codes") and not name.endswith("frozen"):
            assert torch.equal(layer.codes, made.module.get_submodule(name).codes)
