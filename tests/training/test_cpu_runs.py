"""The list of runs in benchmarks/hmhsa_cffn_runs.py: what is compared differs in the structure alone, and results are read as written."""

from __future__ import annotations

import base64
import importlib.util
import json
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from vitfrost.training.recipe import TrainingRecipe, load_training_recipe

ROOT = Path(__file__).parents[2]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def driver() -> ModuleType:
    return script("hmhsa_cffn_runs")


def recipe_of(driver: ModuleType, run: Any) -> TrainingRecipe:
    return load_training_recipe(ROOT / driver.RECIPE, run.variants)


def test_what_matters_most_comes_first_and_has_three_seeds(driver: ModuleType) -> None:
    planned = driver.runs()
    assert [(run.name, run.seed) for run in planned[:3]] == [("baseline", 0), ("both", 0), ("quick_width", 0)]
    seeds = {name: sorted(run.seed for run in planned if run.name == name) for name in driver.TITLES}
    assert all(seeds[name] == [0, 1, 2] for name in ("baseline", "both", "quick_width"))
    assert all(seeds[name] == [0, 1] for name in ("hmhsa", "cffn", "quick_heads", "head_copies"))
    assert all(seeds[name] == [0] for name in driver.KNOBS)
    assert len({run.folder for run in planned}) == len(planned)


def test_all_runs_see_the_same_pictures_in_the_same_order(driver: ModuleType) -> None:
    """The order is a function of seed, epoch and number of pictures; the seed is the driver's, the rest is in these parts."""
    recipes = {run.name: recipe_of(driver, run) for run in driver.runs()}
    alike = {"data", "augment", "mixing", "schedule", "batch_size", "precision", "products", "seed", "ema", "drop_until"}
    seen = {json.dumps(recipe.model_dump(mode="json", include=alike), sort_keys=True) for recipe in recipes.values()}
    assert len(seen) == 1
    assert recipes["baseline"].precision == "fp32"
    assert recipes["baseline"].data.train[0].limit is None
    assert len({recipe.hash() for recipe in recipes.values()}) == len(recipes)


def test_a_curve_has_the_mean_loss_of_each_epoch(driver: ModuleType, tmp_path: Path) -> None:
    lines = [
        {"step": 1, "epoch": 0.5, "loss": 4.0},
        {"step": 2, "epoch": 1.0, "loss": 3.0},
        {"step": 2, "epoch": 1.0, "top1": 5.0},
        {"step": 3, "epoch": 1.5, "loss": 2.0},
        {"step": 4, "epoch": 2.0, "top1": 9.0, "result": True},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    points = [{"epoch": 1.0, "loss": 3.5, "top1": 5.0}, {"epoch": 2.0, "loss": 2.0, "top1": 9.0}]
    assert list(driver.curve(tmp_path)) == points


def test_what_is_not_finished_gives_no_numbers(driver: ModuleType, tmp_path: Path) -> None:
    begun = tmp_path / "baseline-s0"
    begun.mkdir()
    (begun / "metrics.jsonl").write_text('{"step": 1, "epoch": 1.0, "top1": 5.0}\n')
    found = driver.gather(Namespace(runs=tmp_path, known=None))
    assert found["runs"] == found["means"] == []
    assert {"name": "baseline", "title": "baseline", "seed": 0} in found["waiting"]
    assert len(found["waiting"]) == len(driver.runs())


def test_results_of_before_are_compared_with_picture_by_picture_and_not_trained_again(driver: ModuleType, tmp_path: Path) -> None:
    def row(name: str, right: list[int]) -> dict[str, Any]:
        packed = base64.b64encode(np.packbits(np.array(right * 8, bool)).tobytes()).decode()
        return {"name": name, "title": driver.TITLES[name], "seed": 0, "images": 24, "right": packed, "differences": {}}

    (tmp_path / "before.json").write_text(json.dumps({"runs": [row("baseline", [1, 1, 0]), row("both", [0, 1, 0])]}))
    options = Namespace(runs=tmp_path, known=tmp_path / "before.json", seeds=None)
    found = driver.gather(options)
    assert [(run["name"], len(run["differences"])) for run in found["runs"]] == [("baseline", 0), ("both", 1)]
    assert found["runs"][1]["differences"]["baseline"]["value"] == pytest.approx(-100 / 3, abs=1e-3)
    assert len(found["waiting"]) == len(driver.runs()) - 2
    left = driver.to_train(options)
    assert driver.Run("both", 0) not in left
    taught = left.index(driver.Run("taught", 0))
    assert left[taught - 1] == driver.Run("baseline", 0)  # the teacher's weights are not here
    assert len(left) == len(driver.runs()) - 1
    options.seeds = [1, 2]
    assert {run.seed for run in driver.to_train(options)} == {1, 2}


def test_a_documents_marked_part_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    tables = script("hmhsa_cffn_tables")
    path = tmp_path / "text.md"
    path.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    text = tables.status({"runs": [], "means": [], "waiting": [{"name": "both", "title": "both", "seed": seed} for seed in (0, 2)]}, None)
    tables.put(text, path)
    assert text == "None of the 2 runs is finished. Not finished yet, so without numbers: both (seed 0, 2)."
    assert path.read_text() == f"before\n{tables.BEGIN}\n{text}\n{tables.END}\nafter\n"
    path.write_text("before\n")
    with pytest.raises(ValueError, match="has no lines"):
        tables.put(text, path)
