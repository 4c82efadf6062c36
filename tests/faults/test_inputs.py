"""Weights, statistics, plans, artifacts and recipes that are damaged, foreign, newer, edited to nonsense or of something else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from vitfrost.budget.history import load_search
from vitfrost.errors import VitfrostError
from vitfrost.evaluation.results import load_results
from vitfrost.evaluation.task_head import load_head
from vitfrost.files import sha256_of_file
from vitfrost.regular import NotRegular
from vitfrost.statistics.record import ENTRIES_VERSION
from vitfrost.timing.benchmark import load_benchmark
from vitfrost.training.packs import Pack
from vitfrost.vit.digits import WEIGHTS
from vitfrost.vit.image_processor import processor_reading

MODEL = ("--model", "vitfrost_digits")


def _calibrate(images: Path, out: Path, *more: object, model: tuple[str, ...] = MODEL) -> tuple[object, ...]:
    return ("calibrate", *model, "--images", images, "--limit", 2, "--out", out, *more)


def _compress(prepared: Any, images: Path, out: Path, **changes: object) -> tuple[object, ...]:
    options = {"model": "vitfrost_digits", "plan": prepared.plan, "statistics": prepared.statistics, "images": images, "out": out} | changes
    return ("compress", *(word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", value)))


def test_weights_that_do_not_fit_name_the_keys(refused, pictures: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    state = load_file(WEIGHTS)
    del state["cls_token"]
    save_file(state | {"norm.weight": np.zeros(3, np.float32), "extra": np.zeros(1)}, weights)
    line = refused(*_calibrate(pictures, tmp_path / "s.safetensors", "--weights", weights))
    for part in (str(weights), "missing cls_token", "unexpected extra", "norm.weight: [3] in the file, [64] in the model"):
        assert part in line


def _code(path: Path) -> None:
    torch.save({"weights": Path("code")}, path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "no weights file"),
        (lambda path: path.write_bytes(WEIGHTS.read_bytes()[:5000]), "not a readable weights file"),
        (lambda path: path.write_text("text"), "not a readable weights file"),
    ],
)
def test_damaged_weights(refused, pictures: Path, tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    weights = tmp_path / "weights.safetensors"
    write(weights)
    assert message in refused(*_calibrate(pictures, tmp_path / "s.safetensors", "--weights", weights))


def test_pickled_code_is_not_run(refused, pictures: Path, tmp_path: Path) -> None:
    _code(tmp_path / "weights.pth")
    line = refused(*_calibrate(pictures, tmp_path / "s.safetensors", "--weights", tmp_path / "weights.pth"))
    assert "give safetensors or a plain state dict" in line


@pytest.mark.parametrize("model", ["vit_tiny_patch16_22", "resnet18", "xcit_nano_12_p16_224"])
def test_unknown_and_unsupported_models(refused, pictures: Path, tmp_path: Path, model: str) -> None:
    line = refused(*_calibrate(pictures, tmp_path / "s.safetensors", "--weights", "random", model=("--model", model)))
    assert "did you mean vit_tiny_patch16_224" in line or "supported" in line


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda source, path: None, "no statistics file"),
        (lambda source, path: path.mkdir(), "no statistics file"),
        (lambda source, path: path.write_bytes(source.read_bytes()[:-1000]), "truncated"),
        (lambda source, path: path.write_bytes(source.read_bytes()[:100]), "truncated"),
        (lambda source, path: path.write_bytes(b""), "truncated"),
        (lambda source, path: shutil.copy(WEIGHTS, path), "without attention statistics"),
        (lambda source, path: _newer_statistics(source, path), "statistics file version 99"),
    ],
)
def test_damaged_statistics(refused, prepared, tmp_path: Path, write: Callable[[Path, Path], object], message: str) -> None:
    statistics = tmp_path / "s.safetensors"
    write(prepared.statistics, statistics)
    line = refused("plan", "--statistics", statistics, "--out", tmp_path / "plan.yaml")
    assert message in line
    assert str(statistics) in line


def _newer_statistics(source: Path, path: Path) -> None:
    with safe_open(source, framework="numpy") as file:
        metadata = {key: value.replace(f'"version": {ENTRIES_VERSION}', '"version": 99') for key, value in file.metadata().items()}
        save_file({key: file.get_tensor(key) for key in file.keys()}, path, metadata)  # noqa: SIM118


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("version: 1", "version: 2", "plan version 2, this vitfrost reads up to 1; update vitfrost"),
        ("kind: vitfrost plan", "kind: shopping list", "is not a plan"),
        ("entries: 845", "entries: -1", "layers[0].heads[0].entries is -1"),
        ("entries: 845", "entries: many", "layers[0].heads[0].entries is 'many'"),
        ("entries: 845", "entries: 5000", "layers[0].heads[0].entries is 5000, more than the 4225 entries of a head"),
        ("source: frozen, entries: 845", "source: guessed", "layers[0].heads[0].source is 'guessed'"),
        ("source: frozen, entries: 845", "source: computed, entries: 845", "entries is 845, but a computed head has none"),
        ("weight_bits: 4", "weight_bits: 5.5", "quantize.weight_bits is 5.5"),
        ("weight_bits: 4", "weight_bits: 1", "quantize.weight_bits is 1"),
        ("ratio: 0.2", "ratio: 2", "freeze.ratio is 2"),
        ("by: entropy", "by: entrpy", "freeze.by is 'entrpy'"),
        ("seed: 0", "sed: 0", "sed is not known here"),
        ("quantize:", "quantize: [", "is not readable YAML"),
        ("site: blocks.0.attn", "site: blocks.9.attn", "blocks.9.attn"),
        ("maps: [1, 4, 65, 65]", "maps: [1, 4, 60, 65]", "layers[0] of the plan is blocks.0.attn with maps [1, 4, 60, 65]"),
    ],
)
def test_a_plan_edited_to_nonsense(refused, prepared, pictures: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    text = prepared.plan.read_text()
    assert old in text
    (tmp_path / "plan.yaml").write_text(text.replace(old, new, 1))
    assert message in refused(*_compress(prepared, pictures, tmp_path / "artifact", plan=tmp_path / "plan.yaml"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 40}, "the plan is for another resolution: 32x32 in the plan, 40x40 given"),
        ({"model": "test_vit", "weights": "random"}, "the plan is for another model: vitfrost_digits in the plan, test_vit given"),
        ({"weights": "random"}, "the plan is for other weights of vitfrost_digits"),
        ({"plan": "missing.yaml"}, "no plan missing.yaml"),
        ({"statistics": "missing.safetensors"}, "no statistics file missing.safetensors"),
        ({"plan": WEIGHTS}, "is not readable YAML"),
    ],
)
def test_a_plan_of_something_else(refused, prepared, pictures: Path, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    assert message in refused(*_compress(prepared, pictures, tmp_path / "artifact", **changes))


def test_statistics_of_something_else(call, refused, prepared, pictures: Path, tmp_path: Path) -> None:
    random, larger = tmp_path / "random.safetensors", tmp_path / "larger.safetensors"
    assert call(*_calibrate(pictures, random, "--weights", "random")).status == 0
    assert call(*_calibrate(pictures, larger, "--image-size", 40)).status == 0
    for statistics in (random, larger):
        line = refused(*_compress(prepared, pictures, tmp_path / "artifact", statistics=statistics))
        assert "the plan was made from other statistics than these; give the file it was made from, or plan again" in line
    words = [word for word in _compress(prepared, pictures, tmp_path / "artifact") if word not in ("--statistics", prepared.statistics)]
    assert "give --statistics FILE" in refused(*words)
    words = [word for word in _compress(prepared, pictures, tmp_path / "artifact") if word not in ("--images", pictures)]
    assert "give --images DIR" in refused(*words)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "no artifact folder"),
        (lambda folder: _cut(folder / "model.safetensors"), "truncated or altered"),
        (lambda folder: _cut(folder / "config.json"), "is not readable JSON"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (
            lambda folder: _edit(folder, lambda config: config.update(version=2)),
            "artifact version 2, this vitfrost reads up to 1",
        ),
        (lambda folder: _edit(folder, lambda config: config.update(kind="other")), "is not an artifact: its kind is 'other'"),
        (lambda folder: _edit(folder, lambda config: config.pop("plan")), "config.json is not a plan"),
        (
            lambda folder: _edit(folder, lambda config: config["plan"]["quantize"].update(activation_bits=6)),
            "is not the one that was saved",
        ),
        (lambda folder: _edit(folder, lambda config: config.pop("seeds")), "is damaged: seeds is missing"),
        (lambda folder: _edit(folder, lambda config: config["model"].pop("classes")), "is damaged: model.classes is missing"),
        (
            lambda folder: _edit(folder, lambda config: config["model"]["preprocessing"].pop("mean")),
            "is damaged: model.preprocessing.mean is missing",
        ),
        (lambda folder: _edit(folder, lambda config: config["model"].update(name="nothing")), "timm has no model 'nothing'"),
    ],
)
def test_damaged_foreign_and_newer_artifacts(refused, prepared, pictures: Path, tmp_path: Path, damage, message: str) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(prepared.artifact, folder)
    damage(folder)
    line = refused("evaluate", folder, "--images", pictures, "--json", tmp_path / "row.json")
    assert message in line


def test_a_models_folder_beside_is_not_taken_for_an_artifact(call, pictures: Path, tmp_path: Path, monkeypatch) -> None:
    """A folder that is called like the model and holds a config.json, as downloads do."""
    (tmp_path / "vitfrost_digits").mkdir()
    (tmp_path / "vitfrost_digits" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert call("evaluate", *MODEL, "--images", pictures, "--limit", 2).status == 0


RECIPE = """\
kind: vitfrost recipe
version: 1
model: {name: vitfrost_digits}
calibration: {images: IMAGES, limit: 4}
plan: {freeze: 0.1}
evaluation: {images: IMAGES}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: vitfrost recipe", "kind: soup", "is not a recipe: its kind is 'soup', and should say 'kind: vitfrost recipe'"),
        ("version: 1", "version: 2", "recipe version 2, this vitfrost reads up to 1; update vitfrost"),
        ("freeze: 0.1", "frieze: 0.1", "plan.frieze is not known here"),
        ("freeze: 0.1", "freeze: 1.1", "plan.freeze is 1.1"),
        ("freeze: 0.1", "weight_bits: 9", "plan.weight_bits is 9; it should be 2, 3, 4, 5, 6, 7, 8 or 32"),
        ("freeze: 0.1", "by: taste", "plan.by is 'taste'"),
        ("freeze: 0.1", "seed: -1", "plan.seed is -1"),
        ("limit: 4", "limit: 0", "calibration.limit is 0"),
        ("limit: 4", "limit: 4, limit: 5", "'limit' stands twice"),
        ("model: {name: vitfrost_digits}", "model: {}", "model.name is missing"),
        ("name: vitfrost_digits", "name: vitfrost_digit", "timm has no model 'vitfrost_digit'"),
        ("name: vitfrost_digits", "name: vitfrost_digits, weights: none.safetensors", "no weights file"),
        ("calibration: {images: IMAGES", "calibration: {images: nowhere", "name an existing folder with --calibration"),
        ("evaluation: {images: IMAGES}", "evaluation: {images: nowhere}", "name an existing folder with --images"),
        ("evaluation: {images: IMAGES}", "evaluation: {images: IMAGES, labels: none.csv}", "no labels CSV"),
        ("plan:", "plan: [", "is not readable YAML"),
    ],
)
def test_recipes_that_cannot_be_run(refused, pictures: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in RECIPE
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace(old, new, 1).replace("IMAGES", str(pictures)))
    assert message in refused("run", tmp_path / "recipe.yaml", "--out", tmp_path / "run")


def test_evaluation_images_of_a_run_that_evaluates_nothing_are_refused(refused, pictures: Path, tmp_path: Path) -> None:
    recipe = RECIPE.replace("evaluation: {images: IMAGES}", "").replace("IMAGES", str(pictures))
    (tmp_path / "recipe.yaml").write_text(recipe)
    said = refused("run", tmp_path / "recipe.yaml", "--images", pictures, "--out", tmp_path / "run")
    assert f"--images is {pictures}, but the recipe evaluates nothing" in said


def test_folders_that_are_no_run(refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert "holds no run" in refused("report", tmp_path / "empty")
    assert "no run folder" in refused("report", tmp_path / "none")
    assert "no run folder" in refused("report", tmp_path / "file")
    assert "no recipe" in refused("run", tmp_path / "none.yaml", "--out", tmp_path / "run")
    assert "is not readable YAML" in refused("run", tmp_path, "--out", tmp_path / "run")


@pytest.mark.timeout(60)  # what is opened would wait for ever
@pytest.mark.parametrize("place", ["pipe", "/dev/zero", "/proc/kmsg"])
def test_what_is_no_regular_file_is_never_opened(refused, prepared, pictures: Path, tmp_path: Path, place: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    given = tmp_path / place
    why = {"pipe": "a pipe", "/dev/zero": "a device", "/proc/kmsg": "made up by the kernel"}[place]
    for words in (
        ("inspect", "--plan", given),
        ("inspect", *MODEL, "--weights", given),
        ("inspect", *MODEL, "--class-names", given),
        ("plan", "--statistics", given, "--out", tmp_path / "plan.yaml"),
        ("evaluate", *MODEL, "--images", pictures, "--labels", given),
        ("run", given, "--out", tmp_path / "run"),
        ("train", given, "--out", tmp_path / "run"),
    ):
        assert f"is {why}, no regular file; save it as one" in refused(*words)
    for read in (load_benchmark, load_head, load_results, load_search, processor_reading, Pack.open, sha256_of_file):
        with pytest.raises((VitfrostError, NotRegular), match="no regular file"):
            read(given)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_pipes_in_the_place_of_an_artifacts_files(refused, prepared, pictures: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(prepared.artifact, tmp_path / "artifact")
    (tmp_path / "artifact" / name).unlink()
    os.mkfifo(tmp_path / "artifact" / name)
    line = refused("evaluate", tmp_path / "artifact", "--images", pictures)
    assert f"{name} is a pipe" in line
