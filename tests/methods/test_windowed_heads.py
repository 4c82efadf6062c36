"""Windowed heads: gathered blocks against whole masked maps, what they cost, from the plan to an exported graph, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vitfrost
from vitfrost.configs import Calibrate, Export, FreezeHeads, Quantize, WindowHeads
from vitfrost.errors import VitfrostError
from vitfrost.evaluation.cost import macs_by_part
from vitfrost.map_sources.outside import mass_outside
from vitfrost.methods.constant_heads.constants import Shape
from vitfrost.methods.windowed_heads import WindowedHeads, window_mask, windowed_macs
from vitfrost.model import Model
from vitfrost.passes.structure import changed_sites
from vitfrost.plans.heads import HeadPlan, LayerPlan
from vitfrost.plans.schema import Plan
from vitfrost.vit.attention import MapAttention
from vitfrost.vit.families import find_sites


@settings(max_examples=30, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)), prefix=st.integers(0, 2), window=st.sampled_from([1, 3, 5, 9]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_gathered_blocks_are_the_whole_masked_map(grid, prefix, window, seed) -> None:
    shape, generator = Shape(grid, prefix), torch.Generator().manual_seed(seed)
    module = WindowedHeads(shape, 2, window, torch.rand(2, generator=generator)).double()
    q, k, v = torch.randn(3, 2, 2, shape.tokens, 4, generator=generator, dtype=torch.float64)
    maps = module.maps(q @ k.transpose(2, 3))
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 2, shape.tokens, dtype=torch.float64))
    torch.testing.assert_close(module(q, k, v), maps @ v)
    torch.testing.assert_close(module.maps((q @ k.transpose(2, 3))[:, 1:], [1]), maps[:, 1:])


def test_a_window_as_wide_as_the_grid_is_full_attention() -> None:
    shape = Shape((5, 6), 1)
    q, k, v = torch.randn(3, 1, 2, shape.tokens, 4, generator=torch.Generator().manual_seed(0))
    whole = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0)
    torch.testing.assert_close(WindowedHeads(shape, 2, 11)(q, k, v), whole)
    assert window_mask(shape, 11).all()
    assert not window_mask(shape, 9).all()


@pytest.fixture(scope="module")
def three_layers() -> Model:
    return Model.open("vitfrost_digits", weights="random", options={"depth": 3})


@pytest.fixture(scope="module")
def heads(three_layers: Model, pictures: Path) -> Any:
    return vitfrost.calibrate(three_layers, pictures, Calibrate(limit=8, detail="heads"), progress=False)


@pytest.fixture(scope="module")
def entries(three_layers: Model, pictures: Path) -> Any:
    return vitfrost.calibrate(three_layers, pictures, Calibrate(limit=8), progress=False)


def test_mass_outside_is_the_same_from_both_statistics(heads: Any, entries: Any) -> None:
    shape = Shape((8, 8), 1)
    for head in range(4):
        found = [mass_outside(known["blocks.1.attn"], shape, head, 5) for known in (heads, entries)]
        assert found[0] == pytest.approx(found[1], abs=1e-5)
        assert mass_outside(heads["blocks.1.attn"], shape, head, 15) == pytest.approx(0, abs=1e-9)
    mask = ~window_mask(shape, 5).numpy()
    assert found[0] == pytest.approx(float((entries["blocks.1.attn"].mean[0, 3] * mask).sum() / 64), abs=1e-5)


@pytest.mark.parametrize("outside", ["none", "mean"])
def test_from_the_plan_to_a_graph(three_layers: Model, heads: Any, entries: Any, tmp_path: Path, outside: str) -> None:
    methods = FreezeHeads(0.2, kind="local"), WindowHeads(0.5, 5, outside)
    plan = vitfrost.plan(heads, *methods, out=tmp_path / "plan.yaml")
    assert [layer.heads_of("windowed") for layer in plan.layers] == [
        layer.heads_of("windowed") for layer in vitfrost.plan(entries, *methods).layers
    ]
    assert sum(len(layer.heads_of("windowed")) for layer in plan.layers) == 6
    assert Plan.load(tmp_path / "plan.yaml") == plan
    made = vitfrost.compress(three_layers, plan, statistics=heads, out=tmp_path / "artifact")
    again = vitfrost.Artifact.load(tmp_path / "artifact")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = made.module(pixels)
        torch.testing.assert_close(again.module(pixels), expected)
        for how in ({"maps": lambda *_: None}, {"heads": lambda *_: None}):
            for module in again.module.modules():
                if isinstance(module, MapAttention):
                    module.observe(**how)
            torch.testing.assert_close(again.module(pixels), expected, atol=1e-4, rtol=1e-4)
    if outside == "mean":  # the graph of the others is a part of it, and test_graphs_of_grids_with_several_blocks has such
        vitfrost.export(vitfrost.Artifact.load(tmp_path / "artifact"), Export(), out=tmp_path / "onnx")
        session = vitfrost.runtime.open_export(tmp_path / "onnx", runtime="onnxruntime")
        torch.testing.assert_close(torch.from_numpy(session.run(pixels.numpy())), expected, atol=1e-4, rtol=1e-4)
    macs = macs_by_part(again.module, changed_sites(find_sites(again.blank()), plan))
    width = find_sites(again.blank()).attention[0].head_dim
    assert macs["other_maps"] == 6 * windowed_macs(Shape((8, 8), 1), width, 5)
    assert vitfrost.inspect(three_layers, plan=plan)["planned"]["macs"] == macs


@pytest.mark.parametrize(("share", "form"), [(0.3, "openvino"), (1.0, "openvino"), (1.0, "onnx")])
def test_graphs_of_grids_with_several_blocks(share: float, form: str, pictures: Path, tmp_path: Path) -> None:
    """One windowed head of three, whose axis tools leave out, and all."""
    model = Model.open("deit_tiny_patch16_224", weights="random", image_size=(144, 160), options={"depth": 1, "num_classes": 10})
    statistics = vitfrost.calibrate(model, pictures, Calibrate(limit=2, detail="heads"), progress=False)
    made = vitfrost.compress(model, vitfrost.plan(statistics, WindowHeads(share, 3)), statistics=statistics)
    session = vitfrost.runtime.open_export(vitfrost.export(made, Export(form), out=tmp_path / "out"))  # type: ignore[arg-type]
    pixels = torch.randn(3, 3, 144, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(session.run(pixels.numpy())), made.module(pixels), atol=1e-5, rtol=0)


def test_quantized_windowed_heads_and_their_statistics(three_layers: Model, heads: Any, pictures: Path) -> None:
    plan = vitfrost.plan(heads, WindowHeads(0.5, 5, "mean"), Quantize(8, 8))
    made = vitfrost.compress(three_layers, plan, statistics=heads, images=pictures)
    with torch.no_grad():
        assert made.module(torch.randn(1, 3, 32, 32)).isfinite().all()
    again = vitfrost.calibrate(made, pictures, Calibrate(limit=3, detail="heads"), progress=False)
    assert again.header.structure["windowed"]["window"] == 5
    for layer, site in zip(plan.layers, again.sites.values(), strict=True):
        for head in layer.heads_of("windowed"):
            share = float(made.module.get_submodule(layer.site).windowed.outside.detach().max())
            assert mass_outside(site, site.shape, head, 5) <= share + 1e-6
    later = vitfrost.plan(again, Quantize(8, 8))
    assert [layer.heads_of("windowed") for layer in later.layers] == [layer.heads_of("windowed") for layer in plan.layers]


def test_cost_grows_with_the_window_not_with_the_grid() -> None:
    small, large = Shape((32, 32), 1), Shape((64, 64), 1)
    assert windowed_macs(large, 64, 9) / windowed_macs(small, 64, 9) == pytest.approx(4, rel=0.01)
    assert windowed_macs(large, 64, 9) < 2 * 64 * large.tokens**2 / 25
    assert np.diff([windowed_macs(small, 64, side) for side in (3, 5, 9, 15)]).min() > 0


def test_what_cannot_be_windowed_is_refused(heads: Any) -> None:
    with pytest.raises(ValueError, match="window is missing"):
        HeadPlan(source="windowed")
    lines = HeadPlan(source="windowed", window=3), HeadPlan(source="windowed", window=5)
    with pytest.raises(ValueError, match="different sides"):
        LayerPlan(site="a", maps=(1, 2, 9, 9), heads=lines)
    with pytest.raises(ValueError, match="beside hallucinated ones"):
        LayerPlan(site="a", maps=(1, 3, 9, 9), heads=(*lines[:1], HeadPlan(source="computed"), HeadPlan(source="hallucinated")))
    with pytest.raises(VitfrostError, match="takes their statistics"):
        vitfrost.plan("vitfrost_digits", WindowHeads(0.5))
    with pytest.raises(VitfrostError, match="only 0 can be; give less"):
        vitfrost.plan(heads, FreezeHeads(1.0, kind="local"), WindowHeads(0.5))
    for name, options, why in (
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1), "num_heads": (3, 6)}, "bias in every head"),
        ("beit_base_patch16_224", {"depth": 1, "embed_dim": 48, "num_heads": 3}, "bias in every head"),
        ("test_coatnet", {}, "bias in every head"),
        ("pvt_v2_b0", {}, "cannot be windowed"),
    ):
        model = Model.open(name, weights="random", image_size=64, options=options)
        plan = vitfrost.plan(model, FreezeHeads(0.0))
        layers = [layer.model_copy(update={"heads": (HeadPlan(source="windowed", window=3),) * len(layer.heads)}) for layer in plan.layers]
        with pytest.raises(VitfrostError, match=why):
            vitfrost.compress(model, plan.model_copy(update={"layers": tuple(layers), "windowed": WindowHeads(1.0, 3)}))
