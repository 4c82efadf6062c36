"""A plan's structure on real models: what is put in, what it starts as, what is saved, and what is refused."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vitfrost
from vitfrost.artifact import Artifact
from vitfrost.configs import Compact, Compress, FreezeEntries, Hallucinate, Quantize
from vitfrost.errors import VitfrostError
from vitfrost.evaluation.cost import macs_by_part, parameters_by_part
from vitfrost.evaluation.description import executed_macs
from vitfrost.methods.low_rank.projection import CompactProjection
from vitfrost.model import Model
from vitfrost.passes.structure import changed_sites, has_structure, install_structure, merge_structure, start_from
from vitfrost.plans.choose import unfrozen_plan
from vitfrost.plans.schema import Plan
from vitfrost.vit.attention import MapAttention
from vitfrost.vit.families import find_sites
from vitfrost.vit.load import hash_state

MODELS = {
    "vit": lambda: Model.open("deit_tiny_patch16_224", weights="random", image_size=64, options={"depth": 2}),  # 3 heads: an odd count
    "distilled": lambda: Model.open(
        "deit_tiny_distilled_patch16_224", weights="random", image_size=(48, 80), options={"depth": 2}
    ),  # two prefix tokens, not square
    "pvt": lambda: Model.open(
        "vitfrost_pvt_tiny", weights="random", image_size=64, options={"depths": (1, 1, 1, 1)}
    ),  # 1, 2, 5, 8 heads; reduced keys; CLS at the end
    "pvt_v2": lambda: Model.open("pvt_v2_b0", weights="random", image_size=64, options={"depths": (1, 1, 1, 1)}),
    "nextvit": lambda: Model.open("nextvit_small", weights="random", image_size=64, options={"depths": (1, 2, 5, 2)}),
}


@pytest.fixture(scope="module", params=MODELS)
def loaded(request: pytest.FixtureRequest) -> Model:
    return MODELS[request.param]()


def structured(loaded: Model, *methods: Any) -> Plan:
    return vitfrost.plan(loaded, *(methods or (Hallucinate(0.5), Compact(0.5))))


def pixels_of(loaded: Model, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, *loaded.image_size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_counts_are_those_of_the_model_that_runs(loaded: Model) -> None:
    chosen, model = structured(loaded), copy.deepcopy(loaded.module)
    assert has_structure(chosen)
    before = find_sites(loaded.module)
    sites = install_structure(model, chosen)
    assert sites == changed_sites(before, chosen)
    assert [site.maps_shape for site in sites.attention] == [site.maps_shape for site in before.attention]
    for layer in chosen.layers:
        assert len(layer.hallucinated) == layer.maps[1] // 2  # floor of half; a one-head layer stays
        assert (model.get_submodule(layer.site).hallucination is None) == (layer.maps[1] == 1)
    assert sum(parameters_by_part(model, sites).values()) == sum(p.numel() for p in model.parameters())
    assert sum(macs_by_part(model, sites).values()) < sum(macs_by_part(loaded.module, before).values())
    assert torch.isfinite(model(pixels_of(loaded))).all()


@torch.no_grad()
def test_training_form_merges_into_what_it_computes(loaded: Model) -> None:
    model = copy.deepcopy(loaded.module)
    install_structure(model, structured(loaded, Hallucinate(0.5), Compact(0.5, branches=3, expand=True, identity=True)), training=True)
    model.train()
    for module in model.modules():  # norms that are not what they started as
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 0.5
    model(pixels_of(loaded, 4))
    model.eval()
    expected = model(pixels_of(loaded))
    merge_structure(model)
    assert all(module.merged for module in model.modules() if isinstance(module, CompactProjection))
    scale = max(1.0, float(expected.abs().max()))
    assert float((model(pixels_of(loaded)) - expected).abs().max()) < 1e-5 * scale
    state = {name: value.clone() for name, value in model.state_dict().items()}
    merge_structure(model)  # a second time changes nothing
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@torch.no_grad()
def test_a_full_mix_of_sources_bits_and_ranks_is_saved_and_loaded_to_the_same_bits(loaded: Model, pictures: Path, tmp_path: Path) -> None:
    statistics = vitfrost.calibrate(loaded, pictures, vitfrost.Calibrate(limit=4, similarity=True), progress=False)
    chosen = vitfrost.plan(statistics, FreezeEntries(0.3), Hallucinate(0.5), Compact(0.5), Quantize(6, 8))
    sources = {head.source for layer in chosen.layers for head in layer.heads}
    assert sources == {"frozen", "hallucinated"}
    made = vitfrost.compress(
        loaded,
        chosen,
        statistics=statistics,
        images=pictures,
        out=tmp_path / "artifact",
        config=Compress(calibration_images=4, compact_images=4),
    )
    again = Artifact.load(tmp_path / "artifact")
    assert torch.equal(again.module(pixels_of(loaded)), made.module(pixels_of(loaded)))
    assert (again.plan, again.structure) == (chosen, made.structure)
    assert set(made.structure["relative_errors"]) == {block.site for block in chosen.feed_forward}
    heads = [head for layer in made.structure["heads"].values() for head in layer]
    assert len(heads) == sum(len(layer.hallucinated) for layer in chosen.layers)
    assert all(0 <= head["distance"] <= 1 and head["explained"] <= 1 for head in heads)
    for name, module in again.module.named_modules():
        if isinstance(module, MapAttention) and module.frozen is not None:
            layer = next(layer for layer in chosen.layers if layer.site == name)
            counts = module.in_original_order(module.frozen.mask).sum((0, 2, 3)).tolist()
            assert counts == [head.entries for head in layer.heads]
    plain = find_sites(loaded.module)
    assert executed_macs(again) < sum(macs_by_part(loaded.module, plain).values())


@torch.no_grad()
def test_an_edited_plan_is_followed_line_by_line(pictures: Path, tmp_path: Path) -> None:
    loaded = MODELS["vit"]()
    path = tmp_path / "plan.yaml"
    chosen = vitfrost.plan(loaded, Hallucinate(0.5), Compact(0.5), out=path)
    site = chosen.layers[0].site
    text = path.read_text().replace("{source: hallucinated, like: 0}", "{source: computed}", 1).replace(", rank: 96}", ", rank: 11}", 1)
    path.write_text(text)
    made = vitfrost.compress(loaded, path, images=pictures, config=Compress(compact_images=4))
    assert made.module.get_submodule(site).hallucination is None
    assert made.module.get_submodule(chosen.layers[1].site).hallucination is not None
    assert [block.fc2.rank for block in (made.module.blocks[i].mlp for i in range(2))] == [11, 96]


@torch.no_grad()
def test_closed_form_factors_beat_plain_svd_where_it_counts(pictures: Path) -> None:
    loaded = MODELS["vit"]()
    pixels = pixels_of(loaded, 8)
    expected = loaded.module(pixels)
    errors = {}
    for init in ("activations", "weights"):
        model = copy.deepcopy(loaded.module)
        start_from(model, structured(loaded, Compact(0.4, init=init)), pixels)
        errors[init] = float((model(pixels) - expected).square().mean())
    assert errors["activations"] < 0.5 * errors["weights"]


def test_a_training_start_is_close_to_the_merged_one() -> None:
    """Branches, norms with calibrated statistics and noise: eval mode of the training form computes nearly what the factors do."""
    loaded = MODELS["vit"]()
    pixels = pixels_of(loaded, 8)
    models = [copy.deepcopy(loaded.module) for _ in range(2)]
    for model, training in zip(models, (False, True), strict=True):
        start_from(model, structured(loaded), pixels, training=training)
    with torch.no_grad():
        merged, trained = (model.eval()(pixels) for model in models)
    assert torch.allclose(merged, trained, atol=1e-3 * float(merged.abs().max()))


@torch.no_grad()
def test_a_trained_structure_is_quantized_and_frozen_afterwards(pictures: Path, tmp_path: Path) -> None:
    """An artifact as training leaves it: other weights than closed form would give; calibrate, plan and compress go on from it."""
    loaded = MODELS["vit"]()
    made = vitfrost.compress(loaded, structured(loaded), images=pictures, config=Compress(compact_images=4))
    for parameter in made.module.parameters():
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    made.state_hash = hash_state(made.module)
    made.save(tmp_path / "trained")
    statistics = vitfrost.calibrate(tmp_path / "trained", pictures, vitfrost.Calibrate(limit=4), progress=False)
    chosen = vitfrost.plan(statistics, FreezeEntries(0.2, bits=32), Quantize(8, 32))
    assert [layer.hallucinated for layer in chosen.layers] == [layer.hallucinated for layer in made.plan.layers]
    assert chosen.feed_forward == made.plan.feed_forward
    out = tmp_path / "compressed"
    compressed = vitfrost.compress(
        tmp_path / "trained", chosen, statistics=statistics, images=pictures, out=out, config=Compress(calibration_images=4)
    )
    pixels = pixels_of(loaded)
    assert torch.equal(Artifact.load(out).module(pixels), compressed.module(pixels))
    bits_only = vitfrost.plan(statistics, Quantize(8, 32))
    quantized = vitfrost.compress(made, bits_only).module(pixels)
    scale = float(made.module(pixels).abs().max())
    assert 0 < float((quantized - made.module(pixels)).abs().max()) < 0.1 * scale  # the trained weights, to 8 bits
    with pytest.raises(VitfrostError, match="already"):
        vitfrost.compress(compressed, chosen, statistics=statistics)
    with pytest.raises(VitfrostError, match="other hallucinated heads"):
        vitfrost.compress(made, unfrozen_plan(made.identity, find_sites(loaded.module).signature(), bits_only.quantize))
    with pytest.raises(VitfrostError, match="plan only bits"):
        vitfrost.plan(statistics, Hallucinate(0.5), Quantize())


def test_what_does_not_fit_is_refused(pictures: Path) -> None:
    swin = Model.open(
        "swin_tiny_patch4_window7_224", weights="random", image_size=56, options={"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}
    )
    with pytest.raises(VitfrostError, match="Swin"):
        vitfrost.plan(swin, Hallucinate(0.5))
    loaded = MODELS["vit"]()
    with pytest.raises(VitfrostError, match="--images DIR"):
        vitfrost.compress(loaded, vitfrost.plan(loaded, Compact(0.5)))
    with pytest.raises(VitfrostError, match="largest useful rank"):
        vitfrost.plan(loaded, Compact(0.9))
    nextvit = MODELS["nextvit"]()
    with pytest.raises(VitfrostError, match="largest useful rank"):
        vitfrost.plan(nextvit, Compact(0.75))  # its MLP ratios are 3 and 2
    chosen = vitfrost.plan(loaded, Hallucinate(0.5, by="first", intra_map="key-grid"))
    assert torch.isfinite(vitfrost.compress(loaded, chosen).module(pixels_of(loaded))).all()
    pooled = vitfrost.plan(nextvit, Hallucinate(0.5, by="first", intra_map="key-grid"))
    first = next(site.name for site in find_sites(nextvit.module).attention if site.keys < site.queries)
    said = rf"^{re.escape(first)} has keys that lie on no patch grid .*; plan with Hallucinate"
    with pytest.raises(VitfrostError, match=said):  # means of consecutive tokens
        vitfrost.compress(nextvit, pooled)


@torch.no_grad()
def test_windows_of_a_picture_that_is_not_square_take_compact_blocks(tmp_path: Path) -> None:
    swin = Model.open(
        "swin_tiny_patch4_window7_224",
        weights="random",
        image_size=(56, 112),
        options={"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)},
    )
    chosen = vitfrost.plan(swin, Compact(0.5, init="weights"))
    made = vitfrost.compress(swin, chosen, out=tmp_path / "artifact")
    assert [block.rank for block in chosen.feed_forward] == [12, 12, 24, 24]
    assert torch.equal(Artifact.load(tmp_path / "artifact").module(pixels_of(swin)), made.module(pixels_of(swin)))
    trained = copy.deepcopy(swin.module)
    start_from(trained, chosen, None, training=True)
    trained.train()(pixels_of(swin))  # BatchNorm of the branches sees every window's tokens
    expected = trained.eval()(pixels_of(swin))
    torch.testing.assert_close(merge_structure(trained)(pixels_of(swin)), expected, atol=1e-4, rtol=1e-4)


def test_the_state_of_one_form_is_not_loaded_into_the_other() -> None:
    loaded = MODELS["vit"]()
    chosen, model, other = structured(loaded), copy.deepcopy(loaded.module), copy.deepcopy(loaded.module)
    install_structure(model, chosen, training=True)
    install_structure(other, chosen)
    with pytest.raises(VitfrostError, match="training form"):
        other.load_state_dict(model.state_dict())
    with pytest.raises(VitfrostError, match="inference form"):
        model.load_state_dict(other.state_dict())
