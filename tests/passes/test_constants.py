"""Whole heads frozen: the changed model equals one with explicit constant maps, loses its queries and keys, and stays itself on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitfrost
from vitfrost.artifact import Artifact
from vitfrost.configs import Compact, Compress, FreezeEntries, FreezeHeads, Hallucinate, Quantize
from vitfrost.errors import VitfrostError
from vitfrost.map_sources.frozen import shape_of
from vitfrost.methods.constant_heads.kinds import KINDS
from vitfrost.model import Model
from vitfrost.passes.structure import fit_sources
from vitfrost.plans.choose import plan as make_plan
from vitfrost.plans.heads import HeadPlan, LayerPlan
from vitfrost.plans.schema import Plan
from vitfrost.statistics.record import Statistics
from vitfrost.vit.attention import MapAttention
from vitfrost.vit.families import install_map_attention

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "cls": ("vit_tiny_patch16_224", {"depth": 3, "img_size": 64}),
    "distilled": ("deit_tiny_distilled_patch16_224", {"depth": 2, "img_size": 64}),
    "average": ("vit_tiny_patch16_224", {"depth": 2, "img_size": 64, "class_token": False, "global_pool": "avg"}),
    "oblong": ("vit_tiny_patch16_224", {"depth": 2, "img_size": (48, 80)}),
    "swin": ("swin_tiny_patch4_window7_224", {"depths": (2, 2), "num_heads": (3, 6), "embed_dim": 48, "img_size": 112}),
    "pvt": ("vitfrost_pvt_tiny", {}),
}


def loaded(which: str) -> Model:
    name, options = MODELS[which]
    size = options.get("img_size")
    return Model.open(name, weights="random", image_size=size, options={key: value for key, value in options.items() if key != "img_size"})


def whole_map(constant: Any, layer: LayerPlan, head: int, plan: Plan, statistics: Statistics) -> np.ndarray:
    """The map that the constant of a head stands for."""
    kind, shape = KINDS[layer.heads[head].constant or ""], shape_of(layer, plan.model.image_size)
    return kind.whole(constant, shape, statistics.sites[layer.site].allowed)


def explicit(model: Model, plan: Plan, statistics: Statistics, pixels: torch.Tensor) -> torch.Tensor:
    """The original's outputs with the softmax maps of the plan's frozen heads replaced, one by one, by the maps of their constants."""
    attention = install_map_attention(model.module)
    fitted = fit_sources(plan, statistics)
    for layer in plan.layers:
        known = {
            head: torch.from_numpy(np.asarray(whole_map(constant, layer, head, plan, statistics), dtype=np.float32))
            for head, constant in zip(layer.constant, fitted[layer.site].get("frozen", ()), strict=True)
        }
        module = attention[layer.site]

        def replaced(logits: torch.Tensor, known: dict[int, torch.Tensor] = known) -> torch.Tensor:
            maps = torch.softmax(logits, dim=-1)
            for head, whole in known.items():
                maps[:, head] = whole.repeat(len(maps) // len(whole), 1, 1)
            return maps

        module.logits_to_maps = replaced  # type: ignore[method-assign]
        module.observe(logits=lambda logits: None)  # explicit maps
    with torch.no_grad():
        return model.module(pixels)


@pytest.fixture(scope="module")
def calibrated(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Model, Statistics]]:
    """Every model with its statistics of a few pictures."""
    made = {}
    for which in MODELS:
        model = loaded(which)
        made[which] = (model, vitfrost.calibrate(model, pictures, vitfrost.Calibrate(limit=6, batch_size=2), progress=False))
    return made


def pixels_for(model: Model, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, *model.image_size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("constants", ["auto", "dense", "toeplitz", "local"])
@pytest.mark.parametrize("which", list(MODELS))
def test_equals_explicit_constant_maps(calibrated: Any, which: str, constants: str) -> None:
    model, statistics = calibrated[which]
    freezing = FreezeHeads(0.5, by="output-error", kind=constants)
    if which == "pvt" and constants in ("toeplitz", "local"):
        with pytest.raises(VitfrostError, match="patch grid"):
            make_plan(statistics, freezing)
        return
    plan = make_plan(statistics, freezing)
    assert sum(len(layer.constant) for layer in plan.layers) == sum(len(layer.heads) for layer in plan.layers) // 2
    artifact = vitfrost.compress(model, plan, statistics=statistics)
    pixels = pixels_for(model)
    with torch.no_grad():
        found = artifact.module(pixels)
    torch.testing.assert_close(found, explicit(loaded(which), plan, statistics, pixels), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("which", ["cls", "swin", "pvt"])
def test_all_heads_frozen_have_no_queries_and_come_back_from_disk(calibrated: Any, which: str, tmp_path: Path) -> None:
    model, statistics = calibrated[which]
    plan = make_plan(statistics, FreezeHeads(1.0, "layer"))
    artifact = vitfrost.compress(model, plan, statistics=statistics, out=tmp_path / "artifact")
    pixels = pixels_for(model)
    attention = [module for module in artifact.module.modules() if isinstance(module, MapAttention)]
    assert all(module.logit_heads == 0 for module in attention)
    back = Artifact.load(tmp_path / "artifact")
    with torch.no_grad():
        assert torch.equal(back.module(pixels), artifact.module(pixels))
        torch.testing.assert_close(back.module(pixels), explicit(loaded(which), plan, statistics, pixels), atol=1e-5, rtol=1e-4)
    assert not [name for name in back.module.state_dict() if "relative_position_bias_table" in name or ".attn.q." in name]
    if which == "cls":
        assert back.module.state_dict()["blocks.0.attn.qkv.weight"].shape == (192, 192)


def test_what_it_costs_is_counted(calibrated: Any, tmp_path: Path) -> None:
    model, statistics = calibrated["cls"]
    plan = make_plan(statistics, FreezeHeads(1.0, "layer", kind="dense"))
    before = vitfrost.inspect(model)
    after = vitfrost.inspect(vitfrost.compress(model, plan, statistics=statistics, out=tmp_path / "a"))
    tokens, layers = 17, 3
    assert after["macs"]["query_key_projection"] == after["macs"]["query_key_product"] == after["macs"]["map_value_product"] == 0
    assert after["macs"]["constant_maps"] == layers * tokens**2 * 192
    assert after["parameters"]["constant_maps"] == layers * 3 * tokens**2
    saved = layers * (2 * tokens * 192**2 + tokens**2 * 192)
    assert before["macs_total"] - after["macs_total"] == saved
    assert vitfrost.inspect(model, plan=plan)["planned"]["macs"] == after["macs"]


def test_statistics_of_the_frozen_model_are_its_constants(calibrated: Any, pictures: Path) -> None:
    model, statistics = calibrated["distilled"]
    plan = make_plan(statistics, FreezeHeads(0.5, kind="local", window=3))
    artifact = vitfrost.compress(model, plan, statistics=statistics)
    again = vitfrost.calibrate(artifact, pictures, vitfrost.Calibrate(limit=4), progress=False)
    fitted = fit_sources(plan, statistics)
    for layer in plan.layers:
        for head, constant in zip(layer.constant, fitted[layer.site]["frozen"], strict=True):
            seen = again.sites[layer.site]
            wanted = whole_map(constant, layer, head, plan, statistics)
            np.testing.assert_allclose(seen.mean[:, head], wanted, atol=1e-6)
            assert seen.variance[:, head].max() < 1e-9


def test_mixes_with_hallucination_compaction_and_bits(calibrated: Any, pictures: Path, tmp_path: Path) -> None:
    model = loaded("cls")
    statistics = vitfrost.calibrate(model, pictures, vitfrost.Calibrate(limit=6, similarity=True), progress=False)
    plan = make_plan(statistics, FreezeHeads(0.34), Hallucinate(0.34), Compact(0.5), Quantize(4, 8))
    assert all(len(layer.hallucinated) == 1 for layer in plan.layers)
    config = Compress(calibration_images=4, compact_images=4)
    artifact = vitfrost.compress(model, plan, statistics=statistics, images=pictures, out=tmp_path / "a", config=config)
    pixels = pixels_for(model)
    with torch.no_grad():
        out = artifact.module(pixels)
        assert torch.equal(Artifact.load(tmp_path / "a").module(pixels), out)
    assert out.isfinite().all()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_wholly_frozen_model_is_quantized(calibrated: Any, pictures: Path, bits: int, tmp_path: Path) -> None:
    model, statistics = calibrated["cls"]
    plan = make_plan(statistics, FreezeHeads(1.0, "layer"), Quantize(bits, bits))
    artifact = vitfrost.compress(
        model, plan, statistics=statistics, images=pictures, out=tmp_path / "a", config=Compress(calibration_images=4)
    )
    with torch.no_grad():
        out = artifact.module(pixels_for(model))
        assert torch.equal(Artifact.load(tmp_path / "a").module(pixels_for(model)), out)
    assert out.isfinite().all()


def test_a_plan_is_edited_line_by_line(calibrated: Any, tmp_path: Path) -> None:
    model, statistics = calibrated["cls"]
    make_plan(statistics, FreezeHeads(0.5)).save(tmp_path / "plan.yaml")
    plan = Plan.load(tmp_path / "plan.yaml")
    line = HeadPlan(source="frozen", constant="toeplitz")
    layers = [layer.model_copy(update={"heads": (line, line, HeadPlan(source="computed"))}) for layer in plan.layers]
    edited = plan.model_copy(update={"layers": tuple(layers)})
    artifact = vitfrost.compress(model, edited, statistics=statistics)
    assert [module.logit_heads for module in artifact.module.modules() if isinstance(module, MapAttention)] == [1, 1, 1]


def test_what_does_not_belong_together_is_refused(calibrated: Any) -> None:
    model, statistics = calibrated["cls"]
    plan = make_plan(statistics, FreezeHeads(0.5))
    with pytest.raises(VitfrostError, match="give --statistics FILE"):
        vitfrost.compress(model, plan.with_origin(None))
    assert vitfrost.compress(model, plan).plan == plan
    with pytest.raises(VitfrostError, match="exclude each other"):
        make_plan(statistics, FreezeHeads(0.5), FreezeEntries(protect=("cls-rows",)))
    with pytest.raises(VitfrostError, match="window is 4; it should be odd"):
        make_plan(statistics, FreezeHeads(0.5, kind="local", window=4))
    with pytest.raises(VitfrostError, match="unit is 'row'"):
        make_plan(statistics, FreezeHeads(0.2, "row"))
