"""Artifacts at another image size: shapes, what is kept, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import vitfrost
from vitfrost.artifact import Artifact
from vitfrost.configs import Compress, FreezeEntries, FreezeHeads, Quantize, WindowHeads
from vitfrost.errors import VitfrostError
from vitfrost.images.batches import take_usable
from vitfrost.images.preprocess import Preprocess
from vitfrost.images.source import open_images
from vitfrost.model import Model
from vitfrost.plans.choose import plan as make_plan


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.open("vit_tiny_patch16_224", weights="random", image_size=64, options={"depth": 2})


@pytest.mark.parametrize("kind", ["local", "toeplitz", "dense"])
def test_another_size_by_the_command(model: Model, pictures: Path, kind: str, tmp_path: Path, call: object) -> None:
    statistics = vitfrost.calibrate(model, pictures, vitfrost.Calibrate(limit=4), progress=False)
    window = 3 if kind == "local" else None
    plan = make_plan(statistics, FreezeHeads(0.5, kind=kind, window=window))
    small = vitfrost.compress(model, plan, statistics=statistics, out=tmp_path / "small")
    called = call("resize", tmp_path / "small", "--image-size", 128, "--out", tmp_path / "large")  # type: ignore[operator]
    assert called.status == 0, called.err
    large = Artifact.load(tmp_path / "large")
    assert large.image_size == (128, 128)
    assert {layer.maps for layer in large.plan.layers} == {(1, 3, 65, 65)}
    assert {head.window for layer in large.plan.layers for head in layer.heads} == ({None, 3} if kind == "local" else {None})
    with torch.no_grad():
        assert large.module(torch.randn(2, 3, 128, 128)).isfinite().all()
    for name, module in large.module.named_modules():
        if name.endswith(".constants"):
            sums = module.maps().sum(-1)
            before = small.module.get_submodule(name).maps().sum(-1)
            torch.testing.assert_close(sums.mean(), before.mean(), atol=2e-2, rtol=0)
    again = vitfrost.resize(large, 64)
    assert again.image_size == (64, 64)
    assert (
        vitfrost.evaluate(
            tmp_path / "large", pictures, config=vitfrost.Evaluate(limit=3), reference=tmp_path / "small", labels=None, progress=False
        )
        is not None
    )


@pytest.mark.parametrize("kind", ["toeplitz", "dense"])
def test_the_same_size_is_the_same_model(model: Model, pictures: Path, kind: str) -> None:
    statistics = vitfrost.calibrate(model, pictures, vitfrost.Calibrate(limit=4), progress=False)
    plan = make_plan(statistics, FreezeHeads(1.0, "layer", kind=kind))
    artifact = vitfrost.compress(model, plan, statistics=statistics)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(vitfrost.resize(artifact, 64).module(pixels), artifact.module(pixels), atol=1e-5, rtol=1e-5)


def test_what_belongs_to_its_size_is_refused(model: Model, pictures: Path) -> None:
    statistics = vitfrost.calibrate(model, pictures, vitfrost.Calibrate(limit=4), progress=False)
    entries = make_plan(statistics, FreezeEntries(0.5), Quantize(32, 32))
    with pytest.raises(VitfrostError, match="frozen entries"):
        vitfrost.resize(vitfrost.compress(model, entries, statistics=statistics), 128)


def test_constants_of_windows_are_refused() -> None:
    swin = Model.open("swin_tiny_patch4_window7_224", weights="random", image_size=56, options={"depths": (1, 1), "num_heads": (3, 6)})
    plan = vitfrost.plan(swin, FreezeHeads(1.0, "layer", kind="dense"))
    with pytest.raises(VitfrostError, match="has windows or reduced keys"):
        vitfrost.resize(vitfrost.compress(swin, plan), 112)


@pytest.mark.parametrize("unit", ["head", "layer"])
def test_a_plan_without_statistics_is_for_time_and_training(unit: str, tmp_path: Path, call: object) -> None:
    words = ["plan", "--model", "vitfrost_digits", "--unit", unit, "--freeze", 0.5, "--out", tmp_path / "plan.yaml"]
    assert call(*words).status == 0  # type: ignore[operator]
    words = ["compress", "--model", "vitfrost_digits", "--plan", tmp_path / "plan.yaml", "--out", tmp_path / "a"]
    assert call(*words).status == 0  # type: ignore[operator]
    plan = Artifact.load(tmp_path / "a").plan
    kinds = {head.constant for layer in plan.layers for head in layer.heads}
    assert kinds == {None, "local"}
    with pytest.raises(VitfrostError, match="whole heads, of which the first are taken"):
        vitfrost.plan(Model.open("vitfrost_digits", weights="random"), FreezeHeads(0.5, by="entropy"))


def test_windows_of_computed_heads_grow_with_the_grid(model: Model, pictures: Path) -> None:
    statistics = vitfrost.calibrate(model, pictures, vitfrost.Calibrate(limit=2), progress=False)
    artifact = vitfrost.compress(model, make_plan(statistics, WindowHeads(0.5, 3)), statistics=statistics)
    large = vitfrost.resize(artifact, 128)
    assert {head.window for layer in large.plan.layers for head in layer.heads} == {None, 5}
    with torch.no_grad():
        assert large.module(torch.randn(1, 3, 128, 128)).isfinite().all()


QUANTIZED = (
    ("fast", Quantize(4, 4, method="fast", steps=("rotation", "ridge")), 48),  # the stream is turned
    ("constants and a layer of 32 bits", Quantize(4, 8, layers={"head": (32, 32)}), (48, 40)),
    ("weights alone", Quantize(8, 32), 48),
)


@pytest.mark.parametrize(("what", "quantize", "larger"), QUANTIZED, ids=[row[0] for row in QUANTIZED])
def test_quantized_models_keep_codes_and_ranges(what: str, quantize: Quantize, larger: Any, pictures: Path, tmp_path: Path) -> None:
    heads = (FreezeHeads(0.25, kind="local"),) if what.startswith("constants") else ()
    statistics = vitfrost.calibrate("vitfrost_digits", pictures, vitfrost.Calibrate(limit=8, detail="heads"), progress=False)
    made, plain = (
        vitfrost.compress(
            "vitfrost_digits", make_plan(statistics, *heads, each), statistics=statistics, images=pictures, config=Compress(0, 8)
        )
        for each in (quantize, Quantize(32, 32))
    )
    large, reference = vitfrost.resize(made, larger, out=tmp_path / "large"), vitfrost.resize(plain, larger)
    again = Artifact.load(tmp_path / "large")
    assert large.quantization == again.quantization == made.quantization
    kept = large.module.state_dict()
    for name, value in made.module.state_dict().items():
        assert name == "pos_embed" or ".constants." in name or torch.equal(kept[name], value), name
    images = open_images(pictures)
    before, after = (take_usable(images, Preprocess(model.preprocessing), 8).pixels for model in (made, large))
    with torch.no_grad():
        found = large.module(after)
        assert torch.equal(again.module(after), found)
        lost = (made.module(before) - plain.module(before)).norm()
        assert (found - reference.module(after)).norm() < 2 * lost


def test_position_biases_of_long_grids_are_resized_from_the_grid_that_they_have(tmp_path: Path) -> None:
    """Of 5 x 13 patches there are as many relative positions, 9 x 25, as of 8 x 8."""
    options = {"depth": 1, "embed_dim": 32, "num_heads": 2, "num_classes": 5}
    for size, larger in (((64, 128), (128, 256)), ((80, 208), (128, 128))):
        model = Model.open("beit_base_patch16_224", weights="random", image_size=size, options=options)
        grid, table = (size[0] // 16, size[1] // 16), model.module.blocks[0].attn.relative_position_bias_table
        rows = torch.arange(2 * grid[0] - 1).float().sub(grid[0] - 1)[:, None].expand(-1, 2 * grid[1] - 1)
        table.data[:-3] = rows.reshape(-1, 1)  # a bias by the rows between two patches alone
        artifact = vitfrost.compress(model, make_plan(model, FreezeHeads(0.0), Quantize(32, 32)))
        large = vitfrost.resize(artifact, larger)
        attention = large.module.blocks[0].attn
        found = attention.relative_position_bias_table[:-3].unflatten(0, (2 * larger[0] // 16 - 1, 2 * larger[1] // 16 - 1))
        torch.testing.assert_close(found, found[:, :1].expand_as(found), atol=1e-4, rtol=0)
        assert (found[1:, 0] >= found[:-1, 0]).all()
    save_file(model.module.state_dict(), tmp_path / "weights.safetensors")
    Model.open("beit_base_patch16_224", weights=tmp_path / "weights.safetensors", image_size=size, options=options)
    long = Model.open("beit_base_patch16_224", weights="random", image_size=(64, 128), options=options)
    save_file(long.module.state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(VitfrostError, match=r"of 105 relative positions, which no square window has; give the image size of these weights"):
        Model.open("beit_base_patch16_224", weights=tmp_path / "weights.safetensors", image_size=128, options=options)
