"""Refitted constants: the formula against plain least squares, and on models of several families."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.methods.repair.test_refit import MODELS, batches, distance, lively, repaired
from torch import Tensor, nn

import vitfrost
from vitfrost.configs import FreezeHeads
from vitfrost.methods.constant_heads.module import ConstantHeads
from vitfrost.methods.repair.constants import ValueSums
from vitfrost.model import Model
from vitfrost.passes.structure import install_sources


@given(st.integers(1, 2), st.integers(1, 3), st.integers(2, 5), st.integers(2, 5), st.integers(0, 10_000))
def test_without_a_penalty_it_is_least_squares(windows: int, heads: int, queries: int, keys: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(7, windows, heads, keys, 3, generator=generator, dtype=torch.float64)
    residuals = torch.randn(7, windows, heads, queries, 3, generator=generator, dtype=torch.float64)
    sums = ValueSums()
    for part in (slice(0, 4), slice(4, 7)):
        sums.add(values[part], residuals[part])
    found = sums.solve(0.0)
    inputs = values.permute(1, 2, 0, 4, 3).flatten(2, 3)
    outputs = residuals.permute(1, 2, 0, 4, 3).flatten(2, 3)
    expected = torch.linalg.lstsq(inputs, outputs).solution.mT
    torch.testing.assert_close(found.maps, expected)
    assert found.before == pytest.approx(float(residuals.square().sum()) / 7)
    assert found.after == pytest.approx(float((residuals - found.maps @ values).square().sum()) / 7)


def test_a_penalty_holds_the_maps_and_bad_ones_are_refused() -> None:
    sums, values = ValueSums(), torch.randn(4, 1, 2, 3, 5)
    with pytest.raises(ValueError, match="no images"):
        sums.solve(0.1)
    sums.add(values, torch.randn(4, 1, 2, 3, 5))
    changes = [float(sums.solve(penalty).maps.norm()) for penalty in (0.0, 0.1, 10.0, 1e6)]
    assert changes == sorted(changes, reverse=True)
    assert changes[-1] < 1e-3
    with pytest.raises(ValueError, match="negative"):
        sums.solve(-0.1)


def frozen(loaded: Model, unit: str = "head", kind: str = "dense") -> nn.Module:
    """The model with half of its heads (or layers) frozen to uniform maps."""
    plan = vitfrost.plan(loaded, FreezeHeads(0.5, unit, kind=kind))
    model = copy.deepcopy(loaded.module)
    install_sources(model, plan)
    return model


def maps_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: module.maps().detach().clone() for name, module in model.named_modules() if isinstance(module, ConstantHeads)}


@pytest.mark.parametrize("kind", ["distilled", "average pooling", "pvt"])
def test_constants_come_closer_to_what_the_heads_put_out(kind: str) -> None:
    loaded = lively(MODELS[kind]())
    pictures = batches(loaded)
    left = {}
    for penalty in (None, 0.01):
        model = frozen(loaded)
        before = maps_of(model)
        far = distance(model, loaded, pictures)
        record = repaired(model, loaded, pictures, constants_penalty=penalty, skip_last=0)
        fitted = {name for name, layer in record.items() if name.endswith(".constants")}
        assert fitted == (set(before) if penalty is not None else set())
        assert all(layer["after"] < layer["before"] for layer in record.values())
        changed = {name for name, maps in maps_of(model).items() if not torch.equal(maps, before[name])}
        assert changed == fitted
        left[penalty] = distance(model, loaded, pictures) / far
    assert left[0.01] < left[None]


def test_maps_that_do_not_depend_on_the_picture_are_found() -> None:
    """Without queries every map is uniform; constants that were spoilt become that again. Fails where heads are mixed up."""
    loaded = lively(MODELS["vit"]())
    with torch.no_grad():
        for block in loaded.module.blocks:
            block.attn.qkv.weight[:192] = 0
            block.attn.qkv.bias[:192] = 0
    model = frozen(loaded)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, ConstantHeads):
                for head in module.constants():
                    head.map.add_(0.05 * torch.randn(head.map.shape, generator=torch.Generator().manual_seed(3)))
    repaired(model, loaded, batches(loaded, 80), constants_penalty=1e-9, skip_last=0)
    for maps in maps_of(model).values():
        torch.testing.assert_close(maps, torch.full_like(maps, 1 / maps.shape[-1]), atol=2e-3, rtol=0)


@pytest.mark.parametrize(("kind", "constants"), [("vit", "toeplitz"), ("vit", "local"), ("swin", "dense")])
def test_kinds_with_a_structure_and_masked_windows_are_left(kind: str, constants: str) -> None:
    loaded = lively(MODELS[kind]())
    model = frozen(loaded, "layer", constants)
    before, allowed = maps_of(model), {name: module.allowed for name, module in model.named_modules() if isinstance(module, ConstantHeads)}
    repaired(model, loaded, batches(loaded, 8), skip_last=0)
    left = {name for name in before if constants != "dense" or allowed[name] is not None}
    assert left
    assert all(torch.equal(maps_of(model)[name], before[name]) for name in left)
