"""Small but real runs: the digits model with random weights through every stage before the report; and how their pages are read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitfrost.artifact import Artifact
from vitfrost.configs import Calibrate, Compact, Compress, Evaluate, FreezeEntries, Hallucinate, Quantize
from vitfrost.evaluation.evaluate import evaluate_many
from vitfrost.evaluation.results import Results, save_results
from vitfrost.model import Model
from vitfrost.passes.compress import compress
from vitfrost.plans.choose import plan, unfrozen_plan
from vitfrost.reporting.build import report
from vitfrost.runs.recipe import Recipe, save_recipe
from vitfrost.statistics.calibrate import calibrate
from vitfrost.vit.families import find_sites

from ..pages import Page

MODEL = "vitfrost_digits"


@pytest.fixture(scope="session")
def page_of() -> Callable[..., Page]:
    """Report a run's folder and read the page."""
    return lambda folder, out=None: Page(report(folder, out).read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """The folder of a run whose plan was made on the quantized model; it has every part but the report."""
    folder = tmp_path_factory.mktemp("run")
    recipe = {
        "model": {"name": MODEL, "weights": "random"},
        "calibration": {"images": str(pictures), "limit": 12, "precision": "quantized"},
        "evaluation": {"images": str(pictures), "limit": 12},
    }
    save_recipe(Recipe.model_validate(recipe), folder / "recipe.yaml")
    statistics, quantized = folder / "statistics.safetensors", folder / "statistics.quantized.safetensors"
    calibrate(Model.open(MODEL, weights="random"), pictures, Calibrate(limit=12), out=statistics, progress=False)
    loaded = Model.open(MODEL, weights="random")
    unfrozen = unfrozen_plan(loaded.identity, find_sites(loaded.module).signature(), Quantize())
    compress(loaded, unfrozen, images=pictures, out=folder / "quantized", config=Compress(calibration_images=4))
    calibrate(folder / "quantized", pictures, Calibrate(limit=12), out=quantized, progress=False)
    plan(quantized, FreezeEntries(0.2, scope="model"), out=folder / "plan.yaml")
    drawn = Compress(calibration_images=4)
    compress(loaded, folder / "plan.yaml", statistics=quantized, images=pictures, out=folder / "artifact", config=drawn)
    models = {"original": loaded, "compressed": Artifact.load(folder / "artifact")}
    save_results(
        Results(rows=evaluate_many(models, pictures, config=Evaluate(limit=12), reference="original", progress=False)),
        folder / "results.json",
    )
    return folder


@pytest.fixture
def run_folder(finished_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def structured_run(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """The folder of a run whose plan hallucinates half of the heads and makes all feed-forward blocks compact, and freezes nothing."""
    folder = tmp_path_factory.mktemp("structured")
    options: dict[str, Any] = {"hallucinate": 0.5, "compact": 0.5, "weight_bits": 32, "activation_bits": 32}
    recipe = {
        "model": {"name": MODEL, "weights": "random"},
        "calibration": {"images": str(pictures), "limit": 12},
        "plan": options,
        "evaluation": {"images": str(pictures), "limit": 12},
    }
    save_recipe(Recipe.model_validate(recipe), folder / "recipe.yaml")
    loaded, statistics = Model.open(MODEL, weights="random"), folder / "statistics.safetensors"
    calibrate(loaded, pictures, Calibrate(limit=12, similarity=True), out=statistics, progress=False)
    plan(statistics, Hallucinate(0.5), Compact(0.5), out=folder / "plan.yaml")
    compress(
        loaded, folder / "plan.yaml", statistics=statistics, images=pictures, out=folder / "artifact", config=Compress(compact_images=4)
    )
    models = {"original": loaded, "compressed": Artifact.load(folder / "artifact")}
    save_results(
        Results(rows=evaluate_many(models, pictures, config=Evaluate(limit=12), reference="original", progress=False)),
        folder / "results.json",
    )
    return folder


@pytest.fixture
def structured_folder(structured_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(structured_run, tmp_path / "structured"))
