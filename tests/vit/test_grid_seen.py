"""Compressed models that take images of any size: what was frozen goes along, as `resize` carries it over."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import vitfrost
from vitfrost.artifact import Artifact
from vitfrost.configs import Calibrate, Compress, FreezeEntries, FreezeHeads, Hallucinate, Quantize, WindowHeads
from vitfrost.errors import VitfrostError
from vitfrost.model import Model
from vitfrost.vit.grid_seen import GridSeen
from vitfrost.vit.load import hash_state

SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 10}
SIZES = [(64, 64), (48, 80), (32, 128), (112, 96), (96, 96)]  # (32, 128): as many patches as (64, 64)
METHODS: dict[str, tuple[Any, ...]] = {
    "dense": (FreezeHeads(0.5, kind="dense"), Quantize(32, 32)),
    "toeplitz": (FreezeHeads(0.5, kind="toeplitz"), Quantize(32, 32)),
    "local": (FreezeHeads(1.0, kind="local", window=3), Quantize(32, 32)),
    "windows": (FreezeHeads(0.3, kind="toeplitz"), WindowHeads(0.4, 3, "mean"), Quantize(32, 32)),
    "hallucinated": (Hallucinate(0.5, by="first", mix="copy"), Quantize(32, 32)),
    "hallucinated on the grid": (Hallucinate(0.5, by="first", mix="copy", intra_map="key-grid"), Quantize(32, 32)),
    "integers": (FreezeHeads(0.5, kind="toeplitz"), Quantize(4, 8)),
}


def pixels_of(size: tuple[int, int]) -> torch.Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(sum(size)))


def made_by(*methods: Any, pictures: Path, name: str = "vit_tiny_patch16_224", **options: Any) -> Artifact:
    """A compressed model with weights that tell patches apart."""
    model = Model.open(name, weights="random", image_size=64, options=SMALL | {"dynamic_img_size": True} | options)
    for name, tensor in model.module.named_parameters():
        if "qkv.weight" in name or "pos_embed" in name:
            tensor.data *= 10
    model = replace(model, state_hash=hash_state(model.module))
    statistics = vitfrost.calibrate(model, pictures, Calibrate(limit=4), progress=False)
    config = Compress(calibration_images=4 if any(isinstance(each, Quantize) and each.activations < 32 for each in methods) else None)
    made = vitfrost.compress(model, vitfrost.plan(statistics, *methods), statistics=statistics, images=pictures, config=config)
    for name, tensor in made.module.named_parameters():
        if name.endswith("convolution.weight"):  # zero, as it is not trained
            tensor.data += torch.linspace(-0.3, 0.6, tensor.numel()).view_as(tensor)
    return made


@torch.no_grad()
@pytest.mark.parametrize("kind", METHODS)
def test_outputs_are_those_of_the_resized_artifact(kind: str, pictures: Path, tmp_path: Path) -> None:
    made = made_by(*METHODS[kind], pictures=pictures)
    keys = list(made.module.state_dict())
    made.save(tmp_path / "made")
    again = Artifact.load(tmp_path / "made")
    for size in SIZES:
        expected = vitfrost.resize(made, size).module(pixels_of(size))
        torch.testing.assert_close(made(pixels_of(size)), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(again(pixels_of(size)), made(pixels_of(size)))
    assert list(made.module.state_dict()) == keys


@torch.no_grad()
def test_sizes_differ_from_thread_to_thread(pictures: Path) -> None:
    made = made_by(*METHODS["windows"], pictures=pictures)
    wanted = [made(pixels_of(size)) for size in SIZES]

    def run(number: int) -> bool:
        with torch.no_grad():
            return torch.equal(made(pixels_of(SIZES[number % len(SIZES)])), wanted[number % len(SIZES)])

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(run, range(40)))
    copied = copy.deepcopy(made.module)
    assert all(torch.equal(copied(pixels_of(size)), output) for size, output in zip(SIZES, wanted, strict=True))


@torch.no_grad()
def test_what_was_carried_over_follows_the_weights(pictures: Path) -> None:
    made = made_by(*METHODS["toeplitz"], pictures=pictures)
    before = made(pixels_of((96, 96)))
    for name, tensor in made.module.named_parameters():
        if name.endswith("kernel"):
            tensor += 0.05
    after = made(pixels_of((96, 96)))
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, vitfrost.resize(made, 96).module(pixels_of((96, 96))), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_rotary_positions_and_padded_images(pictures: Path) -> None:
    rotary = made_by(*METHODS["toeplitz"], pictures=pictures, name="vit_small_patch16_rope_mixed_224", num_heads=3, embed_dim=96)
    torch.testing.assert_close(rotary(pixels_of((48, 80))), vitfrost.resize(rotary, (48, 80)).module(pixels_of((48, 80))))
    padded = made_by(*METHODS["toeplitz"], pictures=pictures, dynamic_img_pad=True)
    whole = torch.nn.functional.pad(pixels_of((70, 90)), (0, 6, 0, 10))
    assert torch.equal(padded(pixels_of((70, 90))), padded(whole))


def test_frozen_entries_belong_to_their_size_and_training_too(pictures: Path) -> None:
    entries = made_by(FreezeEntries(0.2), pictures=pictures)
    with pytest.raises(VitfrostError, match=r"of 17 tokens \(4 x 4 patches\), and this image has 37 \(6 x 6\); freeze entries"):
        entries(pixels_of((96, 96)))
    with pytest.raises(VitfrostError, match=r"of 17 tokens \(4 x 4 patches\), and this image has 17 \(2 x 8\); freeze"):
        entries(pixels_of((32, 128)))
    heads = made_by(*METHODS["local"], pictures=pictures)
    heads.module.train()
    with pytest.raises(VitfrostError, match="frozen heads are trained at their own image size"):
        heads(pixels_of((96, 96)))


def test_another_process_sees_grids_of_its_own() -> None:
    seen = GridSeen()
    seen.grid = (2, 3)
    assert seen.grid_of(6, (3, 2)) == (2, 3)
    assert seen.grid_of(4, (2, 2)) == (2, 2)
    assert pickle.loads(pickle.dumps(seen)).grid is None
