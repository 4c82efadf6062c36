"""Artifacts: bit-identical after loading, truly packed, and refused when they are not what was saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

from vitfrost.artifact import CONFIG_FILE, WEIGHTS_FILE, Artifact, frozen_bytes
from vitfrost.configs import Calibrate, Compress, FreezeEntries, Quantize
from vitfrost.errors import VitfrostError
from vitfrost.methods.quantize.modules import QuantizedLayer
from vitfrost.methods.quantize.packing import packed_size
from vitfrost.model import Model
from vitfrost.passes.compress import compress
from vitfrost.plans.choose import plan
from vitfrost.statistics.calibrate import calibrate
from vitfrost.statistics.record import Statistics

SWIN = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}
MODELS = {
    "digits": lambda: Model.open("vitfrost_digits", weights="random"),
    "distilled": lambda: Model.open("deit_tiny_distilled_patch16_224", weights="random", image_size=64, options={"depth": 2}),
    "swin": lambda: Model.open("swin_tiny_patch4_window7_224", weights="random", image_size=56, options=SWIN),
}


@pytest.fixture(scope="module", params=MODELS)
def measured(request: pytest.FixtureRequest, pictures: Path) -> tuple[Model, Statistics, Path]:
    loaded = MODELS[request.param]()
    return loaded, calibrate(loaded, pictures, Calibrate(limit=20), progress=False), pictures


@pytest.mark.parametrize(
    "methods",
    [
        [FreezeEntries(0.2)],
        [FreezeEntries(0.2, bits=32, renormalize="mass")],
        [FreezeEntries(0.5, bits=3, grid="head"), Quantize(6, 8, "strict")],
        [FreezeEntries(0.3, bits=8, scope="model"), Quantize(32, 32)],
        [FreezeEntries(0.0), Quantize(5, 32)],
        [FreezeEntries(0.4, ties="strict", bits=8, order="merge-quantize")],
    ],
)
@torch.no_grad()
def test_loading_gives_the_same_bits(measured: tuple[Model, Statistics, Path], methods: list, tmp_path: Path) -> None:
    loaded, statistics, pictures = measured
    chosen = plan(statistics, *methods)
    made = compress(
        loaded, chosen, statistics=statistics, images=pictures, out=tmp_path / "artifact", config=Compress(calibration_images=8)
    )
    again = Artifact.load(tmp_path / "artifact")
    pixels = torch.randn(3, 3, *loaded.image_size)
    assert torch.equal(made.module(pixels), again.module(pixels))
    assert again.plan == chosen
    assert again.plan_hash == made.plan_hash
    assert (again.state_hash, again.seeds, again.size_bytes) == (loaded.state_hash, made.seeds, made.size_bytes)
    assert again.preprocessing == loaded.preprocessing
    assert not list(tmp_path.rglob("*.p*"))  # no pickle, no part files
    sizes = [(tmp_path / "artifact" / name).stat().st_size for name in (WEIGHTS_FILE, CONFIG_FILE)]
    assert sum(sizes) == again.size_bytes


def test_compressing_twice_gives_the_same_files(measured: tuple[Model, Statistics, Path], tmp_path: Path) -> None:
    loaded, statistics, pictures = measured
    for name in ("a", "b"):
        compress(
            loaded,
            plan(statistics, FreezeEntries(0.2)),
            statistics=statistics,
            images=pictures,
            out=tmp_path / name,
            config=Compress(calibration_images=8),
        )
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_packed_size_is_as_computed_by_hand(measured: tuple[Model, Statistics, Path], tmp_path: Path) -> None:
    loaded, statistics, pictures = measured
    chosen = plan(statistics, FreezeEntries(0.2))
    made = compress(
        loaded, chosen, statistics=statistics, images=pictures, out=tmp_path / "artifact", config=Compress(calibration_images=8)
    )
    tensors = load_file(tmp_path / "artifact" / WEIGHTS_FILE)
    for name, module in made.module.named_modules():
        if isinstance(module, QuantizedLayer):
            assert tensors[f"{name}.codes"].nbytes == packed_size(module.codes.numel(), 4)
    for layer in chosen.layers:
        frozen = made.module.get_submodule(f"{layer.site}.frozen")
        assert [int(frozen.mask[:, head].sum()) for head in range(len(layer.heads))] == [head.entries for head in layer.heads]
        stored = sum(value.nbytes for key, value in tensors.items() if key.startswith(f"{layer.site}.frozen."))
        assert stored == frozen_bytes(frozen)


def test_masked_pairs_are_never_frozen(pictures: Path) -> None:
    loaded = MODELS["swin"]()
    statistics = calibrate(loaded, pictures, Calibrate(limit=8), progress=False)
    made = compress(loaded, plan(statistics, FreezeEntries(1.0), Quantize(32, 32)), statistics=statistics)
    for name, site in statistics.sites.items():
        mask = made.module.get_submodule(f"{name}.frozen").mask.numpy()
        expected = mask | True if site.allowed is None else site.allowed[:, None].repeat(mask.shape[1], 1)
        assert (mask == expected).all()


@pytest.fixture(scope="module")
def saved(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    loaded = MODELS["digits"]()
    statistics = calibrate(loaded, pictures, Calibrate(limit=8), progress=False)
    return compress(
        loaded, plan(statistics, FreezeEntries(0.1)), statistics=statistics, images=pictures, config=Compress(calibration_images=4)
    )


def _edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | changes))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: _cut(folder / WEIGHTS_FILE), "truncated or altered"),
        (lambda folder: _cut(folder / CONFIG_FILE), "not readable JSON"),
        (lambda folder: (folder / WEIGHTS_FILE).unlink(), "has no model.safetensors"),
        (lambda folder: (folder / CONFIG_FILE).write_text("{}"), "is not an artifact: it has no kind"),
        (lambda folder: _edit_config(folder, kind="something else"), "is not an artifact"),
        (lambda folder: _edit_config(folder, version=99), "artifact version 99.*update vitfrost"),
        (lambda folder: _edit_config(folder, plan={"kind": "nonsense"}), "config.json"),
    ],
)
def test_damaged_foreign_and_newer_artifacts(saved: Artifact, tmp_path: Path, damage, message: str) -> None:
    folder = saved.save(tmp_path / "artifact")
    damage(folder)
    with pytest.raises(VitfrostError, match=message) as caught:
        Artifact.load(folder)
    assert "\n" not in str(caught.value)


def test_existing_output_folders(saved: Artifact, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    saved.save(tmp_path / "empty")
    with pytest.raises(VitfrostError, match="exists and is not empty"):
        saved.save(tmp_path / "empty")
    saved.save(tmp_path / "empty", overwrite=True)
    assert Artifact.load(tmp_path / "empty").plan_hash == saved.plan_hash
    (tmp_path / "file").write_text("x")
    with pytest.raises(VitfrostError, match="is a file"):
        saved.save(tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]


def test_plans_and_statistics_of_something_else_are_refused(saved: Artifact, pictures: Path) -> None:
    loaded = MODELS["digits"]()
    with pytest.raises(VitfrostError, match="give --statistics"):
        compress(loaded, saved.plan, images=pictures)
    other = calibrate(loaded, pictures, Calibrate(limit=9), progress=False)
    with pytest.raises(VitfrostError, match="made from other statistics"):
        compress(loaded, saved.plan, statistics=other, images=pictures)
    with pytest.raises(VitfrostError, match="needs calibration images"):
        compress(loaded, plan(other, FreezeEntries(0.1)), statistics=other)
    with pytest.raises(VitfrostError):
        compress(
            Model.open("vitfrost_digits", weights="random", seed=3), plan(other, FreezeEntries(0.1)), statistics=other, images=pictures
        )
