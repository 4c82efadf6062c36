"""Constants on real weights and images: at their own size, and carried over to another one, against statistics taken there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import vitfrost
from vitfrost.map_sources.frozen import fitted
from vitfrost.methods.constant_heads.constants import Shape, StructuredMap, dense_of, resized_map
from vitfrost.methods.constant_heads.kinds import KINDS
from vitfrost.model import Model
from vitfrost.plans.freeze_heads import freezing_error, structure_error
from vitfrost.statistics.record import Statistics
from vitfrost.statistics.site import SiteStatistics

pytestmark = pytest.mark.xdist_group("real maps")  # one worker measures them
SMALL, LARGE = Shape((14, 14), 1), Shape((20, 20), 1)


def observed(shared_data: Path, size: int, images: int) -> Statistics:
    weights = shared_data / "deit_tiny_patch16_224" / "model.safetensors"
    model = Model.open("deit_tiny_patch16_224", weights=weights, image_size=size)
    return vitfrost.calibrate(model, shared_data / "calibration", vitfrost.Calibrate(limit=images, batch_size=4), progress=False)


@pytest.fixture(scope="module")
def small(shared_data: Path) -> Statistics:
    return observed(shared_data, 224, 24)


@pytest.mark.shared_data
def test_maps_of_a_trained_model_go_by_relative_position(small: Statistics) -> None:
    shares = []
    for site in small.sites.values():
        for head in range(3):
            frozen = freezing_error(site, head)
            shares.append([structure_error(KINDS[kind].whole(fitted(site, SMALL, head, kind, window), SMALL), site, head) / frozen
                           for kind, window in (("toeplitz", None), ("local", 7))])  # fmt: skip
    toeplitz, local = np.median(shares, axis=0)
    assert toeplitz < 0.06
    assert local < 0.08


@pytest.mark.shared_data
def test_kernels_carried_over_fit_the_maps_of_a_larger_image(small: Statistics, shared_data: Path) -> None:
    large = observed(shared_data, 320, 4)

    def error(known: SiteStatistics, head: int, whole: np.ndarray) -> float:
        wrong = (known.mean[0, head, 1:, 1:] - whole[0, 1:, 1:]) ** 2 * known.value_norm[0, head, 1:]
        return float(wrong.sum(dtype=np.float64))

    better_than_even, near_own, dense_near_own = [], [], []
    for name in list(small.sites)[::3]:
        source, known = small.sites[name], large.sites[name]
        for head in range(3):
            constant, own = fitted(source, SMALL, head, "toeplitz", None), fitted(known, LARGE, head, "toeplitz", None)
            assert isinstance(constant, StructuredMap)
            assert isinstance(own, StructuredMap)
            carried = error(known, head, dense_of(KINDS["toeplitz"].resized(constant, SMALL, LARGE, None), LARGE))
            even = np.full((1, 401, 401), known.mean[0, head, 1:, 1:].sum(-1).mean() / 400)
            better_than_even.append(carried / error(known, head, even))
            dense = error(known, head, resized_map(source.mean[:, head].astype(np.float64), SMALL, LARGE))
            dense_near_own.append(dense / error(known, head, dense_of(own, LARGE)))
            near_own.append(carried / error(known, head, dense_of(own, LARGE)))
    assert np.median(better_than_even) < 0.8
    assert np.median(near_own) < 1.5
    assert np.median(dense_near_own) < 1.5
