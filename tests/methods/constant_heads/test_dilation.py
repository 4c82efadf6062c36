"""Kernels whose taps stand apart: what they stand for, how they are applied, carried over, exported, and what they cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vitfrost
from vitfrost.configs import Export, FreezeHeads
from vitfrost.errors import VitfrostError
from vitfrost.methods.constant_heads.constants import (
    Shape,
    StructuredMap,
    carried,
    dense_of,
    resized,
    stretched,
    stretched_window,
    triangles,
)  # fmt: skip
from vitfrost.methods.constant_heads.cost import best_form, constant_macs, convolution_macs
from vitfrost.methods.constant_heads.module import ConstantHeads
from vitfrost.model import Model
from vitfrost.plans.heads import HeadPlan, LayerPlan


def drawn(shape: Shape, kernel: tuple[int, int], rng: np.random.Generator) -> StructuredMap:
    """A constant of arbitrary numbers."""
    prefix = shape.prefix_tokens
    return StructuredMap(
        rng.normal(size=kernel), float(rng.normal()), rng.uniform(0.5, 2, (1, shape.patches)),
        rng.normal(size=(prefix, shape.tokens)), rng.normal(size=(shape.patches, prefix)),
    )  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 7), st.integers(2, 7)), prefix=st.integers(0, 2), dilation=st.integers(2, 5),
    sides=st.tuples(st.sampled_from([3, 5]), st.sampled_from([3, 5])), seed=st.integers(0, 99),
)  # fmt: skip
def test_smoothing_and_a_dilated_kernel_are_the_whole_map(grid, prefix, dilation, sides, seed) -> None:
    shape, rng = Shape(grid, prefix, dilation), np.random.default_rng(seed)
    kinds = [("local", sides[0]), ("local", sides[1]), ("toeplitz", None)]
    module = ConstantHeads(kinds, shape, (1, shape.tokens, shape.tokens), 4, form="convolution").double().eval()
    for head in module.constants():
        head.set(drawn(shape, tuple(head.kernel.shape), rng))
    module = module.double()
    values = torch.from_numpy(rng.normal(size=(2, 3, shape.tokens, 4)))
    with torch.no_grad():
        expected = module.maps() @ values
        torch.testing.assert_close(module(values), expected, atol=1e-5, rtol=1e-5)
        module.use("matmul")
        torch.testing.assert_close(module(values), expected, atol=1e-5, rtol=1e-5)
    whole = np.stack([dense_of(head.constant(), shape)[0] for head in module.constants()])
    np.testing.assert_allclose(whole, module.maps()[0].detach().numpy(), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(taps=st.sampled_from([1, 3, 5]), dilation=st.integers(1, 6))
def test_lines_between_taps_keep_an_even_kernel_and_the_taps(taps, dilation) -> None:
    spread = triangles(taps, dilation)
    np.testing.assert_allclose(spread.sum(0), dilation)
    np.testing.assert_array_equal(spread[dilation - 1 :: dilation][:taps], np.eye(taps))
    np.testing.assert_allclose(stretched(np.full((taps, taps), 0.3), 0.3, dilation), 0.3)


@pytest.mark.parametrize("factor", [2, 3])
def test_whole_factors_carry_a_kernel_over_exactly(factor: int) -> None:
    shape, target = Shape((5, 5), 1), Shape((5 * factor, 5 * factor), 1)
    apart = carried(shape, target)
    assert apart == replace(target, dilation=factor)
    assert stretched_window(3, shape, apart) == 3
    constant = drawn(shape, (3, 3), np.random.default_rng(0))
    made = resized(constant, shape, apart, (3, 3), covers_all=False)
    np.testing.assert_allclose(made.kernel / made.rest, constant.kernel / constant.rest)
    around = stretched(made.kernel, made.rest, factor)
    middle = len(around) // 2
    np.testing.assert_allclose(
        around[middle, middle + 1], (around[middle, middle] * (factor - 1) + around[middle, middle + factor]) / factor
    )


def test_small_kernels_stay_cheap_at_1024_px() -> None:
    shape, target = Shape((14, 14), 1), Shape((64, 64), 1)
    apart = carried(shape, target)
    assert (apart.dilation, stretched_window(7, shape, apart)) == (5, 7)
    assert best_form(apart, 64, [(7, 7)]) == "convolution"
    small = convolution_macs(apart, 64, (7, 7))
    assert small < 1.6 * convolution_macs(target, 64, (7, 7))
    assert constant_macs(apart, (1, 1, 4097, 4097), 64, [("local", 7)]) == small
    assert small < 64 * 4097 * 4097 / 40
    assert carried(shape, Shape((16, 16), 1)).dilation == 1
    assert stretched_window(7, shape, carried(shape, Shape((18, 18), 1))) == 9
    assert carried(apart, shape).dilation == 1
    assert stretched_window(7, apart, carried(apart, shape)) == 7


def test_a_map_keeps_its_shape_at_another_size() -> None:
    shape = Shape((7, 7))
    kernel = np.exp(-0.5 * ((np.arange(5) - 2) ** 2)[:, None] - 0.5 * ((np.arange(5) - 2) ** 2))
    constant = StructuredMap(kernel, 0.01, np.ones((1, 49)), np.zeros((0, 49)), np.zeros((49, 0)))
    target = carried(shape, Shape((17, 17)))
    side = stretched_window(5, shape, target)
    before, after = dense_of(constant, shape)[0], dense_of(resized(constant, shape, target, (side, side), False), target)[0]
    assert after.sum(1).mean() == pytest.approx(before.sum(1).mean(), rel=0.05)
    ratio = after[17 * 8 + 8] / after[17 * 8 + 8].max()
    assert ratio[17 * 8 + 8 + round(2 * 17 / 7)] == pytest.approx(before[24, 26] / before[24, 24], abs=0.08)


def test_resized_kernels_are_exported_small(pictures: Path, tmp_path: Path) -> None:
    model = Model.open("vit_tiny_patch16_224", weights="random", image_size=80, options={"depth": 1})
    plan = vitfrost.plan(model, FreezeHeads(1.0, kind="local", window=3))
    large = vitfrost.resize(vitfrost.compress(model, plan), 320, out=tmp_path / "large")
    assert {(head.window, head.dilation) for layer in large.plan.layers for head in layer.heads} == {(3, 4)}
    (module,) = (module for module in large.module.modules() if isinstance(module, ConstantHeads))
    assert module.form == "convolution"
    again = vitfrost.Artifact.load(tmp_path / "large")
    pixels = torch.randn(1, 3, 320, 320, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = large.module(pixels)
        torch.testing.assert_close(again.module(pixels), expected)
    vitfrost.export(again, Export(), out=tmp_path / "onnx")
    from vitfrost.runtime import open_export

    found = torch.from_numpy(open_export(tmp_path / "onnx", runtime="onnxruntime").run(pixels.numpy()))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_dilations_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="dilation is 3, but only kernels"):
        HeadPlan(source="frozen", constant="dense", dilation=3)
    with pytest.raises(ValueError, match="dilation is 3, but a computed head has none"):
        HeadPlan(source="computed", dilation=3)
    heads = [HeadPlan(source="frozen", constant="local", window=3, dilation=apart) for apart in (2, 3)]
    with pytest.raises(ValueError, match="different dilation"):
        LayerPlan(site="a", maps=(1, 2, 10, 10), prefix_tokens=1, heads=tuple(heads))
    with pytest.raises(VitfrostError, match="come from resize"):
        heads[0].map_source.fit(LayerPlan(site="a", maps=(1, 1, 10, 10), heads=(heads[0],)), None, None)  # type: ignore[arg-type]
