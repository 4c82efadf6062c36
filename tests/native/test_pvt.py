"""Pyramid Vision Transformers: the file against the simulation in PyTorch, the engine against the file's reference in NumPy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitfrost
from vitfrost.configs import Compact, FreezeEntries, FreezeHeads, Hallucinate, Quantize
from vitfrost.deploy.native.eight_bits import in_integers
from vitfrost.deploy.native.families import to_native
from vitfrost.errors import VitfrostError
from vitfrost.methods.quantize.repq import QuantizationSettings

from ..models import random_model
from .reference import Reference
from .simulation import logits, noise, quantized_model, stirred, write
from .test_engine import close

NAME = "pvt_v2_b0"
SMALL: dict[str, Any] = {
    "depths": (1, 1), "embed_dims": (16, 36), "num_heads": (2, 3), "sr_ratios": (2, 1), "mlp_ratios": (2, 2), "num_classes": 10,
}  # fmt: skip
STRICT = Quantize(4, 4, "strict")


@pytest.mark.parametrize("size", [32, (36, 44)], ids=str)
@pytest.mark.parametrize("bits", [(4, 4), (4, 8), (8, 8)], ids=str)
def test_the_file_is_the_simulation_and_the_engine_the_file(engine: Any, size: Any, bits: tuple[int, int], tmp_path: Path) -> None:
    module = quantized_model(NAME, size, SMALL, QuantizationSettings(*bits, "strict"))
    path, pixels = write(module, tmp_path / "model.vfn"), noise(module, 12 if bits[1] == 4 else 3)
    wanted = logits(module, pixels)
    assert np.ptp(wanted) > 0.01
    assert np.abs(Reference(path).run(pixels.numpy()) - wanted).max() < 1e-5 * np.ptp(wanted)
    close(engine, path, pixels.numpy())


@pytest.fixture(scope="module")
def made() -> tuple[Any, Any]:
    """A small PVT v2 in floating point and its statistics."""
    model = stirred(NAME, 32, SMALL)
    return model, vitfrost.calibrate(model, noise(model.module, 16, seed=1).split(8), progress=False)


# How far logits may differ as a share of their range: constant maps are rounded to 8 bits in the file.
PLANS: dict[str, tuple[list[Any], float]] = {
    "frozen entries": ([FreezeEntries(0.3), STRICT], 1e-5),
    "frozen heads": ([FreezeHeads(0.4, kind="dense"), Quantize(4, 8, "strict")], 0.05),
    "frozen layers, compact blocks": ([FreezeHeads(0.5, unit="layer"), Compact(0.5), Quantize(8, 8, "strict")], 0.05),
    "hallucinated heads": ([Hallucinate(0.34, by="first", mix="copy"), Quantize(8, 8, "strict")], 1e-5),
}  # fmt: skip


@pytest.mark.parametrize("plan", PLANS)
def test_every_map_source(engine: Any, made: tuple[Any, Any], plan: str, tmp_path: Path) -> None:
    model, statistics = made
    methods, tolerance = PLANS[plan]
    artifact = vitfrost.compress(model, vitfrost.plan(statistics, *methods), images=noise(model.module, 8, seed=2).split(8))
    path, pixels = write(in_integers(artifact, None), tmp_path / "model.vfn"), noise(model.module, 12 if "entries" in plan else 3)
    wanted = logits(artifact.module, pixels)
    assert np.abs(Reference(path).run(pixels.numpy()) - wanted).max() < tolerance * np.ptp(wanted)
    close(engine, path, pixels.numpy())


@pytest.mark.usefixtures("unchecked")
def test_a_model_in_floating_point_is_exported_in_8_bits(engine: Any, made: tuple[Any, Any], pictures: Path, tmp_path: Path) -> None:
    model, _ = made
    deploy = vitfrost.export(model, vitfrost.configs.Export("native", calibration_images=16), out=tmp_path / "deploy", images=pictures)
    assert vitfrost.predict(deploy, [pictures / "0000.png"])
    assert json.loads((deploy / "export.json").read_text())["parity"]["correlation"] > 0.98
    pixels = noise(model.module, 3)
    with engine.Model(deploy / "model.vfn") as one, engine.Model(deploy / "model.vfn", threads=3) as three:
        found = one.run(pixels.numpy())
        assert np.concatenate([three.run(each[None]) for each in pixels.numpy()]).tobytes() == found.tobytes()


def test_what_is_not_run_is_refused(made: tuple[Any, Any]) -> None:
    model, statistics = made
    artifact = vitfrost.compress(model, vitfrost.plan(statistics, Quantize(4, 32)), images=noise(model.module, 8, seed=2).split(8))
    with pytest.raises(VitfrostError, match=r"dwconv: weights are quantized alone, .*; plan with Quantize.activations=8"):
        to_native(in_integers(artifact, noise(model.module, 4)), "it")
    for name, options in (("pvt_v2_b2_li", SMALL), ("vitfrost_pvt_tiny", {})):
        other = random_model(name, 64, **options)
        with pytest.raises(VitfrostError, match="runs plain ViTs, DeiTs, Swin Transformers and PVT v2 so far"):
            to_native(other.module, name)
