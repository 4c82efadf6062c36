"""Plain ViTs whose stream is turned by layers of their own: the file, the simulation and the engine agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitfrost
from vitfrost.configs import Compress, Export, Quantize
from vitfrost.deploy.native.format import NORM_STEP, TURN_STEP, ModelFile, read_model, to_bytes
from vitfrost.methods.quantize.repq import QuantizationSettings
from vitfrost.passes import quantize_chain
from vitfrost.runtime import open_export

from ..models import random_model
from .reference import Reference
from .simulation import logits, noise, turned, write
from .test_engine import close

CLIP = "vit_base_patch16_clip_224.openai"
SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 48, "num_heads": 3, "num_classes": 7}
# The steps before the first block (0) and behind the last one (1).
MODELS: dict[str, tuple[str, dict[str, Any], tuple[list[int], list[int]]]] = {
    "CLIP": (CLIP, SMALL, ([NORM_STEP, TURN_STEP], [])),
    "CLIP, no projection": (CLIP, SMALL | {"num_classes": 0}, ([NORM_STEP, TURN_STEP], [TURN_STEP])),
    "class token": ("vit_tiny_patch16_224", SMALL | {"num_classes": 0, "embed_dim": 64, "num_heads": 2}, ([], [TURN_STEP])),
    "tokens": ("vit_tiny_patch16_224", SMALL | {"num_classes": 0, "global_pool": ""}, ([], [TURN_STEP, NORM_STEP])),
    "mean": ("vit_tiny_patch16_224", SMALL | {"num_classes": 0, "global_pool": "avg", "fc_norm": True}, ([], [TURN_STEP])),
    "mean, classes": ("vit_tiny_patch16_224", SMALL | {"global_pool": "avg", "fc_norm": True}, ([], [])),
    "many tokens": (CLIP, SMALL | {"patch_size": 4, "embed_dim": 12, "num_heads": 1}, ([NORM_STEP, TURN_STEP], [])),
}


@pytest.fixture
def made(request: Any, tmp_path: Path) -> tuple[torch.nn.Module, Path]:
    name, options, _ = MODELS[request.param[0]]
    module = turned(name, 48, options, QuantizationSettings(*request.param[1], "strict"))
    return module, write(module, tmp_path / "model.vfn")


CASES = [(name, bits) for name in MODELS for bits in ((4, 8), (4, 4))]


@pytest.mark.parametrize("made", CASES, indirect=True, ids=str)
def test_a_file_computes_what_the_simulation_does(made: Any) -> None:
    module, path = made
    found = Reference(path).run(noise(module, 3).numpy())
    wanted = logits(module, noise(module, 3))
    assert np.ptp(wanted) > 0.01
    assert np.abs(found - wanted).max() < 1e-5 * np.ptp(wanted)


@pytest.mark.parametrize("made", CASES, indirect=True, ids=str)
def test_the_engine_computes_what_the_file_says(engine: Any, made: Any) -> None:
    module, path = made
    close(engine, path, noise(module, 8).numpy())


@pytest.mark.parametrize("name", MODELS)
def test_the_steps_of_a_file(name: str, tmp_path: Path) -> None:
    architecture, options, (before, behind) = MODELS[name]
    path = write(turned(architecture, 48, options, QuantizationSettings(8, 8, "strict")), tmp_path / "model.vfn")
    kinds = [layer.kind for layer in read_model(path).layers if layer.kind >= 10]
    blocks = len(kinds) - 2 - len(before) - len(behind)
    assert kinds[1 : 1 + len(before)] == before
    assert kinds[1 + len(before) + blocks : -1] == behind
    assert blocks == 2 * options["depth"]


def test_threads_and_batches_give_the_same_bits(engine: Any, tmp_path: Path) -> None:
    module = turned(CLIP, 80, SMALL | {"num_classes": 0, "global_pool": ""}, QuantizationSettings(4, 8, "strict"))
    path, pixels = write(module, tmp_path / "model.vfn"), noise(module, 5).numpy()
    for isa in engine.isas():
        with engine.instructions(isa):
            outputs = []
            for threads in (1, 2, 3):
                with engine.Model(path, threads=threads) as model:
                    outputs += [model.run(pixels), np.concatenate([model.run(pixels[i : i + 1]) for i in range(5)])]
            assert all(np.array_equal(each, outputs[0]) for each in outputs)


def test_a_profile_names_turns(engine: Any, tmp_path: Path) -> None:
    module = turned(CLIP, 48, SMALL | {"num_classes": 0}, QuantizationSettings(4, 8, "strict"))
    with engine.Model(write(module, tmp_path / "model.vfn")) as model:
        model.profile()
        model.run(noise(module, 1).numpy())
        rows = [row for row in model.profile_rows() if row.name.endswith(" turn")]
    assert len(rows) == 2
    assert all(row.seconds > 0 and row.macs == 0 for row in rows)


def changed(path: Path, change: Callable[[np.ndarray, np.ndarray, np.ndarray], None], rows: int | None = None) -> bytes:
    """The file with other signs, places or rows of signs in its first turn."""
    file = read_model(path)
    number = next(number for number, layer in enumerate(file.layers) if layer.kind == TURN_STEP)
    layer = file.layers[number]
    tensors = list(file.tensors)
    for place in layer.tensors[:3]:
        tensors[place] = replace(tensors[place], values=tensors[place].values.copy())
    change(*(tensors[place].values for place in layer.tensors[:3]))
    layers = [*file.layers[:number], replace(layer, ints=(layer.ints[0] if rows is None else rows,)), *file.layers[number + 1 :]]
    return to_bytes(ModelFile(tensors, layers))


DAMAGED: dict[str, tuple[Callable[[np.ndarray, np.ndarray, np.ndarray], None], int | None, str]] = {
    "signs": (lambda small, _, __: small.fill(0.5), None, "a sign that is none"),
    "place": (lambda _, places, __: places.fill(48), None, "a channel that is not there"),
    "negative place": (lambda _, places, __: places.fill(-1), None, "a channel that is not there"),
    "half a place": (lambda _, places, __: places.fill(0.5), None, "a channel that is not there"),
    "factors": (lambda _, __, signs: signs.fill(2), None, "a sign that is none"),
    "rows that do not divide": (lambda *_: None, 7, "does not fit 48 channels"),
    "no power of two": (lambda *_: None, 16, "does not fit 48 channels"),
    "no rows": (lambda *_: None, 0, "rows of signs"),
    "too many rows": (lambda *_: None, 2**30, "rows of signs"),
    "other rows": (lambda *_: None, 12, "export it again"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_turns_are_refused(engine: Any, what: str, tmp_path: Path) -> None:
    path = write(turned(CLIP, 48, SMALL, QuantizationSettings(8, 8, "strict")), tmp_path / "model.vfn")
    change, rows, message = DAMAGED[what]
    with engine.Model(changed(path, lambda *_: None)):
        pass
    with pytest.raises(engine.VitfrostError, match=message):
        engine.Model(changed(path, change, rows))


@torch.no_grad()
@pytest.mark.parametrize("bits", [(4, 8), (4, 32)], ids=str)
@pytest.mark.parametrize("name", ["CLIP, no projection", "tokens"])
def test_fast_gives_the_same_in_the_simulation_and_on_the_engine(
    engine: Any, name: str, bits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize_chain, "is_worse", lambda *_: False)  # random models gain nothing
    architecture, options, _ = MODELS[name]
    model = random_model(architecture, 48, **options)
    images = list(noise(model.module, 12, seed=1))
    plan = vitfrost.plan(model, Quantize(*bits, method="fast", steps=("rotation",)))
    artifact = vitfrost.compress(model, plan, images=images, config=Compress(0, 12))
    assert artifact.quantization is not None
    assert artifact.quantization["steps"][1]["rotated"]
    folder = vitfrost.export(artifact, Export("native"), out=tmp_path / "out", images=images)
    pixels = noise(model.module, 4, seed=2)
    found, wanted = open_export(folder, threads=1).run(pixels.numpy()), artifact.module(pixels).numpy()
    cosine = (found * wanted).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(wanted, axis=-1)
    assert cosine.min() > 0.995
