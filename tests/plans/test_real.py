"""Plans from statistics as `calibrate` writes them, for global and for shifted-window attention."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vitfrost.configs import Calibrate, FreezeEntries
from vitfrost.model import Model
from vitfrost.plans.choose import plan, summary
from vitfrost.plans.fits import check_fits
from vitfrost.plans.freeze_entries import frozen_maps
from vitfrost.plans.schema import Plan
from vitfrost.plans.select import share
from vitfrost.statistics.calibrate import calibrate
from vitfrost.statistics.record import Statistics
from vitfrost.vit.families import find_sites

MODELS = {
    "vitfrost_digits": {},
    "swin_tiny_patch4_window7_224": {"image_size": 56, "window_size": 4, "embed_dim": 12, "depths": (2, 2), "num_heads": (1, 2)},
}


@pytest.fixture(scope="module", params=MODELS)
def calibrated(request, pictures, tmp_path_factory):
    """What a model is (identity, sites), the path of its statistics, and the statistics."""
    options = dict(MODELS[request.param])
    loaded = Model.open(request.param, weights="random", image_size=options.pop("image_size", None), options=options)
    sites = find_sites(loaded.module)
    path = tmp_path_factory.mktemp("statistics") / "statistics.safetensors"
    return loaded.identity, sites, path, calibrate(loaded, pictures, Calibrate(limit=6), out=path, progress=False)


@pytest.mark.parametrize("by", ["entropy", "output-error", "random"])
def test_a_plan_from_a_statistics_file_fits_its_model_and_gives_its_entries_back(calibrated, tmp_path, by):
    identity, sites, path, statistics = calibrated
    made = plan(path, FreezeEntries(0.2, by=by), out=tmp_path / "plan.yaml")
    assert Plan.load(tmp_path / "plan.yaml") == made == plan(statistics, FreezeEntries(0.2, by=by))
    check_fits(made, identity, sites.signature())
    assert made.statistics.hash == Statistics.load(path).content_hash
    for layer in made.layers:
        site = statistics.sites[layer.site]
        mask, values = frozen_maps(made, site, layer)
        assert mask.sum(axis=(0, 2, 3)).tolist() == [share(0.2, layer.entries_per_head)] * len(layer.heads)
        assert (values[mask] == site.mean[mask]).all()
        if site.allowed is not None:
            assert layer.entries_per_head == site.allowed.sum()
            assert not (mask & ~site.allowed[:, None]).any()


def test_everything_but_the_masked_pairs_can_be_frozen(calibrated):
    *_, statistics = calibrated
    found = summary(plan(statistics, FreezeEntries(1.0, scope="model")))
    assert found["frozen_heads"] == found["heads"]
    assert found["frozen_entries"] == sum(
        (site.allowed.sum() * site.maps_shape[1]) if site.allowed is not None else site.mean.size for site in statistics.sites.values()
    )


def test_the_shifted_windows_are_masked(calibrated):
    _, sites, _, statistics = calibrated
    masked = [site.allowed is not None and not site.allowed.all() for site in statistics.sites.values()]
    assert any(masked) == (sites.family == "swin")


def test_reading_a_plan_needs_no_torch():
    code = "import sys, vitfrost.plans.choose; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
