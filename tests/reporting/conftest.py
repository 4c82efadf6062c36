"""A small but real run: the digits model with random weights through every stage before the report."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vitfrost.artefact import load_artefact
from vitfrost.compression.apply import compress
from vitfrost.measure.accuracy import evaluate_many
from vitfrost.measure.results import Results, save_results
from vitfrost.plans.choose import plan, unfrozen_plan
from vitfrost.plans.schema import QuantizePlan
from vitfrost.recipe import Recipe, save_recipe
from vitfrost.statistics.collect import calibrate
from vitfrost.vit.families import find_sites
from vitfrost.vit.load import load_model

MODEL = "vitfrost_digits"


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """The folder of a run whose plan was made on the quantised model; it has every part but the report."""
    folder = tmp_path_factory.mktemp("run")
    recipe = {
        "model": {"name": MODEL, "weights": "random"},
        "calibration": {"images": str(pictures), "limit": 12, "precision": "quantised"},
        "evaluation": {"images": str(pictures), "limit": 12},
    }
    save_recipe(Recipe.model_validate(recipe), folder / "recipe.yaml")
    statistics, quantised = folder / "statistics.safetensors", folder / "statistics.quantised.safetensors"
    calibrate(load_model(MODEL, "random"), pictures, limit=12, out=statistics, progress=False)
    loaded = load_model(MODEL, "random")
    unfrozen = unfrozen_plan(loaded.identity(), find_sites(loaded.model).signature(), QuantizePlan(weight_bits=4, activation_bits=4))
    compress(loaded, unfrozen, images=pictures, calibration_images=4, out=folder / "quantised")
    calibrate(folder / "quantised", pictures, limit=12, out=quantised, progress=False)
    plan(quantised, freeze=0.2, scope="model", out=folder / "plan.yaml")
    compress(loaded, folder / "plan.yaml", statistics=quantised, images=pictures, calibration_images=4,
             out=folder / "artefact")  # fmt: skip
    models = {"original": loaded, "compressed": load_artefact(folder / "artefact")}
    save_results(Results(rows=evaluate_many(models, pictures, reference="original", limit=12, progress=False)), folder / "results.json")
    return folder


@pytest.fixture
def run_folder(finished_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))
