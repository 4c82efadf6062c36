"""A small study, real but for its drawn outcomes, of the digits model with random weights; how its page is read, how studies are called."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vitfrost.configs import Calibrate, Compress, Evaluate, Quantize
from vitfrost.evaluation.evaluate import evaluate_many
from vitfrost.model import Model
from vitfrost.passes.compress import compress
from vitfrost.plans.choose import unfrozen_plan
from vitfrost.runs.recipe import save_recipe
from vitfrost.statistics.calibrate import calibrate
from vitfrost.studies.grid_page import report_study
from vitfrost.studies.outcome_files import Outcome
from vitfrost.studies.picture import take_picture
from vitfrost.studies.recipe import StudyRecipe, load_study
from vitfrost.studies.variants import Variant, expand
from vitfrost.vit.families import find_sites

from ..pages import Page

MODEL = "vitfrost_digits"


@pytest.fixture(scope="session")
def page_of() -> Callable[..., Page]:
    """Report a study's folder and read the page."""
    return lambda folder, out=None: Page(report_study(folder, out).read_text(encoding="utf-8"))


def grid_recipe(pictures: Path) -> StudyRecipe:
    """The paper's grid in small; the names of the blocks say nothing."""
    shares = [0.1, 0.2, 0.5]
    blocks = [
        {"name": "a", "freeze": shares, "statistics": ["fp32", "quantized"], "frozen_bits": [32, 4]},
        {"name": "b", "freeze": shares, "by": "random", "statistics": "quantized"},
        {"name": "c", "freeze": shares, "by": ["entropy", "random"], "weight_bits": 32, "activation_bits": 32, "frozen_bits": 32},
        {"name": "d", "freeze": [0.2, 1.0], "by": ["mean", "variance"], "statistics": "quantized"},
        {"name": "f", "freeze": [0.5], "scope": ["layer", "model"], "statistics": "quantized"},
        {"name": "e", "freeze": [0.2], "statistics": "quantized", "statistics_images": [4, 8]},
    ]
    return StudyRecipe.model_validate(
        {
            "model": {"name": MODEL, "weights": "random"},
            "calibration": {"images": str(pictures), "limit": 12},
            "evaluation": {"images": str(pictures), "limit": 12},
            "grid": {"seeds": [0, 1], "blocks": blocks},
            "published": {
                "source": "A paper, table 9", "images": "other pictures",
                "full_precision": 97.5, "quantized": 91.25, "frozen": {0.1: 91.5, 0.2: 91.0},
            },
        }
    )  # fmt: skip


def save_outcomes(folder: Path, pictures: Path) -> None:
    """Outcomes of all variants: the original's row as it was measured, and a draw of right and wrong answers for each variant."""
    loaded = Model.open(MODEL, weights="random")
    row = evaluate_many({"original": loaded}, pictures, config=Evaluate(limit=12), progress=False)[0]
    sites = find_sites(loaded.module).attention
    entries, logits = sum(site.entries for site in sites), sum(site.entries * site.head_dim for site in sites)

    def outcome(variant: Variant | None) -> Outcome:
        share = 0.0 if variant is None else variant.freeze
        rng = np.random.default_rng(0 if variant is None else int(variant.key, 16))
        correct = rng.random(12) < 0.8 - 0.3 * share
        saved, size = logits if share == 1 else 0, 1000 + int(100 * share)
        own = row.model_copy(update={"top1": 100 * float(correct.mean()), "labeled": True, "macs": row.macs - saved, "size_bytes": size})
        return Outcome(variant, "context", own, correct, int(share * entries), entries)

    for variant in [None, *expand(load_study(folder / "recipe.yaml"))]:
        outcome(variant).save(folder / "outcomes")


@pytest.fixture(scope="session")
def finished_grid(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """The folder of a grid run: real statistics, artifacts and picture, drawn outcomes."""
    folder = tmp_path_factory.mktemp("grid")
    save_recipe(grid_recipe(pictures), folder / "recipe.yaml")
    loaded = Model.open(MODEL, weights="random")
    unfrozen = unfrozen_plan(loaded.identity, find_sites(loaded.module).signature(), Quantize())
    calibrate(loaded, pictures, Calibrate(limit=12), out=folder / "statistics" / "fp32-12.safetensors", progress=False)
    for seed in (0, 1):
        name = f"w4a4-seed{seed}"
        compress(loaded, unfrozen, images=pictures, config=Compress(seed, 4), out=folder / "quantized" / name)
        calibrate(
            folder / "quantized" / name, pictures, Calibrate(limit=12), out=folder / "statistics" / f"{name}-12.safetensors", progress=False
        )
    take_picture(loaded, pictures, folder / "picture.safetensors")
    save_outcomes(folder, pictures)
    return folder


@pytest.fixture
def grid_folder(finished_grid: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(finished_grid, tmp_path / "grid"))
