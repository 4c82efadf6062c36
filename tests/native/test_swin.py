"""Swin Transformers: the file against the simulation in PyTorch, the engine against the file's reference in NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitfrost
from vitfrost.configs import Compact, FreezeEntries, FreezeHeads, Quantize
from vitfrost.deploy.native.eight_bits import in_integers
from vitfrost.deploy.native.format import DOWNSAMPLE, WINDOW_ATTENTION, read_model
from vitfrost.methods.quantize.repq import QuantizationSettings

from .reference import Reference
from .simulation import exact, logits, noise, quantized_model, stirred, write
from .test_engine import close

NAME = "swin_tiny_patch4_window7_224"
SMALL: dict[str, Any] = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 3), "window_size": 4, "num_classes": 10}
STRICT = Quantize(4, 4, "strict")
# Windows that fit the grid; that reach over its end, with an odd grid to merge; that are shifted along one side alone; one window of all.
SIZES: dict[str, tuple[Any, dict[str, Any]]] = {
    "fitting": (32, {}), "reaching over": (36, {}), "oblong": ((32, 48), {}), "one window": (24, {"window_size": 7, "qkv_bias": False}),
}  # fmt: skip


def swin(weight_bits: int, activation_bits: int, size: Any = 32, **options: Any) -> Any:
    """A small Swin Transformer, quantized on noise."""
    return quantized_model(NAME, size, SMALL | options, QuantizationSettings(weight_bits, activation_bits, "strict"))


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("bits", [(4, 4), (8, 8)], ids=str)
def test_the_file_is_the_simulation(shape: str, bits: tuple[int, int], tmp_path: Path) -> None:
    size, options = SIZES[shape]
    module = swin(*bits, size, **options)
    path = write(module, tmp_path / "model.vfn")
    wanted = logits(module, noise(module, 2))
    assert np.ptp(wanted) > 0.01
    assert np.abs(Reference(path).run(noise(module, 2).numpy()) - wanted).max() < 1e-5 * np.ptp(wanted)
    kinds = [layer.kind for layer in read_model(path).layers]
    assert (kinds.count(WINDOW_ATTENTION), kinds.count(DOWNSAMPLE)) == (4, 1)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("bits", [(4, 4), (4, 8), (8, 8)], ids=str)
def test_the_engine_is_the_file(engine: Any, shape: str, bits: tuple[int, int], tmp_path: Path) -> None:
    size, options = SIZES[shape]
    module = swin(*bits, size, **options)
    close(engine, write(module, tmp_path / "model.vfn"), noise(module, 12 if bits[1] == 4 else 3).numpy())


@pytest.fixture(scope="module")
def made() -> tuple[Any, Any]:
    """A small Swin Transformer in floating point and its statistics; its windows reach over the grid."""
    model = stirred(NAME, 36, SMALL)
    return model, vitfrost.calibrate(model, noise(model.module, 16, seed=1).split(8), progress=False)


# How far logits may differ as a share of their range: constant maps are rounded to 8 bits in the file.
PLANS: dict[str, tuple[list[Any], float]] = {
    "frozen entries": ([FreezeEntries(0.3), STRICT], 1e-5),
    "frozen entries with a grid of their own": ([FreezeEntries(0.3, bits=4, grid="head"), Quantize(8, 8, "strict")], 1e-5),
    "frozen heads": ([FreezeHeads(0.4, kind="dense"), Quantize(4, 8, "strict")], 0.05),
    "local heads": ([FreezeHeads(0.4, kind="local", window=3), Quantize(8, 8, "strict")], 0.05),
    "frozen layers, compact blocks": ([FreezeHeads(0.5, unit="layer"), Compact(0.5), Quantize(8, 8, "strict")], 0.05),
    "weights alone": ([FreezeHeads(0.4, kind="dense"), Quantize(4, 32)], 0.05),
}  # fmt: skip


@pytest.mark.parametrize("plan", PLANS)
def test_every_map_source(engine: Any, made: tuple[Any, Any], plan: str, tmp_path: Path) -> None:
    model, statistics = made
    methods, tolerance = PLANS[plan]
    artifact = vitfrost.compress(model, vitfrost.plan(statistics, *methods), images=noise(model.module, 8, seed=2).split(8))
    path = write(in_integers(artifact, noise(model.module, 8, seed=2)), tmp_path / "model.vfn")
    pixels = noise(model.module, 12 if plan == "frozen entries" else 3)
    wanted = logits(artifact.module, pixels)
    assert np.abs(Reference(path).run(pixels.numpy()) - wanted).max() < tolerance * np.ptp(wanted)
    close(engine, path, pixels.numpy())


@pytest.mark.usefixtures("engine", "unchecked")
def test_every_verb_takes_a_swin(made: tuple[Any, Any], pictures: Path, call: Any, tmp_path: Path) -> None:
    model, statistics = made
    plan = vitfrost.plan(statistics, FreezeHeads(0.4, kind="dense"), Quantize(4, 8, "strict"))
    artifact, deploy, timed = (tmp_path / name for name in ("artifact", "deploy", "bench"))
    vitfrost.compress(model, plan, images=pictures, out=artifact)
    for words in (
        ("export", artifact, "--format", "native", "--images", pictures, "--out", deploy),
        ("evaluate", deploy, "--images", pictures),
        ("predict", deploy, pictures / "0000.png"),
        ("bench", artifact, "--runtime", "native", "--images", pictures, "--rounds", "1", "--profile", "--out", timed),
    ):
        ended = call(*words)
        assert ended.status == 0, (words[0], ended.err)


def test_a_model_in_floating_point_is_written_in_8_bits(engine: Any, made: tuple[Any, Any], tmp_path: Path) -> None:
    model, _ = made
    pixels = noise(model.module, 16)
    path = write(in_integers(model, pixels), tmp_path / "model.vfn")
    with torch.no_grad():
        wanted = exact(model.module)(pixels.double()).numpy()
    with engine.Model(path) as opened:
        assert np.abs(opened.run(pixels.numpy()) - wanted).max() < 0.05 * np.ptp(wanted)


def test_the_logits_are_the_same_bits_for_any_number_of_threads(engine: Any, tmp_path: Path) -> None:
    module = swin(4, 8, 36)
    path, pixels = write(module, tmp_path / "model.vfn"), noise(module, 3).numpy()
    with engine.Model(path) as one, engine.Model(path, threads=3) as three, engine.Model(path, threads=2) as two:
        wanted = one.run(pixels)
        assert three.run(pixels).tobytes() == two.run(pixels).tobytes() == wanted.tobytes()
        assert np.concatenate([three.run(each[None]) for each in pixels]).tobytes() == wanted.tobytes()
        one.profile()
        one.run(pixels)
        assert sum("downsampling" in row.name and row.macs > 0 for row in one.profile_rows()) == 1
