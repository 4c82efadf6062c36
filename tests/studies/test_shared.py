"""Shared work gives the same bits as separate models, and is indeed shared."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from vitfrost.methods.frozen_entries import FrozenMaps
from vitfrost.model import Model
from vitfrost.studies.shared import Remembered, SharedModel
from vitfrost.vit.families import allowed_pairs, find_sites, install_map_attention

SWIN: dict[str, Any] = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}
PVT: dict[str, Any] = {"depths": (1, 2, 1, 1), "embed_dims": (8, 16, 20, 32), "num_heads": (1, 2, 5, 4), "num_classes": 7}


def _frozen(model: torch.nn.Module, site: str, shape: tuple[int, ...], share: float, seed: int) -> FrozenMaps:
    rng = np.random.default_rng(seed)
    allowed = allowed_pairs(model, site)
    mask = torch.from_numpy(rng.random(shape) < share)
    if allowed is not None:
        mask &= allowed[:, None]
    frozen = FrozenMaps(mask, allowed, 32, "published")
    frozen.set_values(torch.from_numpy(rng.random(shape).astype(np.float32) / shape[-1]), None)
    return frozen


MODELS = [
    ("vitfrost_digits", None, {}),
    ("swin_tiny_patch4_window7_224", 56, SWIN),
    ("vitfrost_pvt_tiny", 64, {**PVT, "position_size": 64}),
    ("pvt_v2_b0", (64, 96), PVT),
    ("pvt_v2_b2_li", 64, PVT),
    ("nextvit_small", 64, {"depths": (1, 2, 5, 1), "num_classes": 7}),
]


@pytest.mark.parametrize(("name", "size", "options"), MODELS)
@torch.inference_mode()
def test_variants_equal_separate_models_to_the_bit(name: str, size: int | tuple[int, int] | None, options: dict[str, Any]) -> None:
    loaded = Model.open(name, weights="random", image_size=size, options=options)
    model = loaded.module
    attention = install_map_attention(model)
    sites = list(attention)
    made = {site: _frozen(model, site, attention[site].site.maps_shape, 0.4, index) for index, site in enumerate(sites)}
    other = _frozen(model, sites[-1], attention[sites[-1]].site.maps_shape, 1.0, 99)
    variants = [{}, made, made | {sites[-1]: other}, {sites[1]: made[sites[1]]}, {sites[-1]: made[sites[-1]]}]
    batches = [torch.randn(3, 3, *loaded.image_size, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    expected = []
    for variant in variants:
        alone = copy.deepcopy(model)
        for site, module in install_map_attention(alone).items():
            module.freeze_entries(variant.get(site))
        expected.append([alone(batch) for batch in batches])
    before = model(batches[0])
    with SharedModel(model) as shared:
        members = [shared.add(variant) for variant in variants]
        for number, batch in enumerate(batches):
            for member, wanted in zip(members, expected, strict=True):
                assert torch.equal(member(batch), wanted[number])
        # a variant that comes again, on a batch that comes again, is still right
        assert torch.equal(members[2](batches[0]), expected[2][0])
        assert shared.reused > shared.computed / 3
        members[2].select()
        assert attention[sites[-1]].frozen is other
    assert torch.equal(model(batches[0]), before)
    assert all(module.frozen is None for module in attention.values())
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]


@torch.inference_mode()
@pytest.mark.parametrize(("name", "size", "options"), MODELS)
def test_layers_before_the_first_difference_run_once(name: str, size: int | tuple[int, int] | None, options: dict[str, Any]) -> None:
    """Attention and feed-forward of every block, also of those without attention."""
    loaded = Model.open(name, weights="random", image_size=size, options=options)
    blocks = [site.name for site in find_sites(loaded.module).feed_forward]
    attention = install_map_attention(loaded.module)
    last = list(attention)[-1]
    assert blocks[-1].rpartition(".")[0] == last.rpartition(".")[0]
    calls = dict.fromkeys([*attention, *blocks], 0)
    with SharedModel(loaded.module) as shared:
        for watched in calls:
            module = loaded.module.get_submodule(watched)
            module.register_forward_hook(lambda module, inputs, output, watched=watched: calls.__setitem__(watched, calls[watched] + 1))
        members = [shared.add({last: _frozen(loaded.module, last, attention[last].site.maps_shape, 0.5, seed)}) for seed in range(4)]
        for member in members:
            member(torch.zeros(2, 3, *loaded.image_size))
    assert calls == dict.fromkeys(calls, 1) | {last: 4, blocks[-1]: 4}


@torch.inference_mode()
def test_a_remembered_model_runs_once_per_batch() -> None:
    layer = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(24, 2))
    calls: list[int] = []
    layer.register_forward_hook(lambda module, inputs, output: calls.append(1))
    remembered = Remembered(layer)
    one, two = torch.randn(2, 5, 3, 2, 4).unbind(0)
    for batch in (one, two, one.clone()):
        assert torch.equal(remembered(batch), torch.nn.functional.linear(batch.flatten(1), layer[1].weight, layer[1].bias))
    assert len(calls) == 2
