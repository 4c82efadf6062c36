"""A kind of constant that stands in one file: from the plan to compress, save, load and forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vitfrost
from vitfrost.configs import FreezeHeads, Quantize
from vitfrost.errors import VitfrostError
from vitfrost.methods.constant_heads.constants import Shape
from vitfrost.methods.constant_heads.kinds import KINDS, ConstantKind, register
from vitfrost.methods.constant_heads.kinds.kind import Maps


class Shared(ConstantKind):
    """One row for all queries: what keys get on average."""

    name = "shared"
    needs_grid = False

    def fit(self, mean: Any, importance: Any, shape: Shape | None, window: int | None = None, allowed: Any = None) -> np.ndarray:
        return np.asarray(mean, dtype=np.float64).mean(1)

    def uniform(self, maps: Maps, shape: Shape | None, window: int | None = None, masked: bool = False) -> np.ndarray:
        return np.full(maps[::2], 1 / maps[2])

    def parts(self, constant: np.ndarray) -> dict[str, np.ndarray]:
        return {"row": constant}

    def of_parts(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        return parts["row"]

    def maps(self, parts: Mapping[str, Tensor], shape: Shape | None, allowed: Tensor | None) -> Tensor:
        return parts["row"][:, None].repeat(1, parts["row"].shape[1], 1)  # as many queries as keys


@pytest.fixture
def shared() -> Iterator[None]:
    register(Shared())
    yield
    del KINDS["shared"]


def test_a_kind_in_one_file_goes_the_whole_way(shared: None, shallow: Any, tmp_path: Path, call: Any) -> None:
    statistics = shallow.statistics
    statistics.save(tmp_path / "s.safetensors")
    words = ["--unit", "head", "--constants", "shared", "--freeze", 0.5, "--out", tmp_path / "plan.yaml"]
    assert call("plan", "--statistics", tmp_path / "s.safetensors", *words).status == 0
    made = vitfrost.compress(shallow.model, tmp_path / "plan.yaml", statistics=statistics, out=tmp_path / "artifact")
    again = vitfrost.Artifact.load(tmp_path / "artifact")
    pixels = torch.randn(2, 3, *made.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(again.module(pixels), made.module(pixels))
    layer = next(layer for layer in again.plan.layers if layer.constant)
    constants: Any = again.module.get_submodule(f"{layer.site}.constants")
    for whole, head in zip(constants.maps()[0].detach(), layer.constant, strict=True):
        wanted = statistics.sites[layer.site].mean[0, head].mean(0)
        np.testing.assert_allclose(whole, np.broadcast_to(wanted, whole.shape), rtol=1e-6)
    rows = sum(name.endswith(".row") for name in again.module.state_dict())
    assert rows == sum(len(layer.constant) for layer in again.plan.layers) > 0


def test_what_is_not_registered_is_refused_by_name() -> None:
    with pytest.raises(VitfrostError, match=r"FreezeHeads.kind.*'shared'.*dense, toeplitz, local"):
        FreezeHeads(0.5, kind="shared")
    with pytest.raises(ValueError, match="named dense already"):
        register(type(KINDS["dense"])())


def test_added_kinds_are_not_taken_unless_they_are_named(shared: None, shallow: Any) -> None:
    made = vitfrost.plan(shallow.statistics, FreezeHeads(1.0), Quantize(32, 32))
    assert {head.constant for layer in made.layers for head in layer.heads} <= {"dense", "toeplitz", "local"}
