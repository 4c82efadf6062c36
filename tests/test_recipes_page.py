"""The pages of recipes name every key, and what they show is read."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from vitfrost.configs import Repair, WindowHeads
from vitfrost.configs.model import ModelPart
from vitfrost.runs.recipe import CalibrationPart, CompressPart, EvaluationPart, Recipe
from vitfrost.training.recipe import TrainingRecipe

DOCS = Path(__file__).parents[1] / "docs"
RECIPES = (DOCS / "recipes.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", RECIPES.split("## Many plans")[0], flags=re.M))


def test_every_part_has_a_row() -> None:
    assert ROWS.keys() == Recipe.model_fields.keys() - {"kind", "version"}


@pytest.mark.parametrize(
    ("part", "keys"),
    [
        ("model", {field.name for field in fields(ModelPart)}),
        ("calibration", set(CalibrationPart.model_fields)),
        ("compress", set(CompressPart.model_fields)),
        ("evaluation", set(EvaluationPart.model_fields)),
        ("repair", {field.name for field in fields(Repair)} & {"method", "images", "penalty"}),
        ("windowed", {field.name for field in fields(WindowHeads)} & {"window", "outside"}),
    ],
)
def test_a_row_names_every_key(part: str, keys: set[str]) -> None:
    assert keys
    assert keys <= set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", ROWS[part]))))


def test_the_example_of_training_is_a_recipe() -> None:
    text = (DOCS / "training.md").read_text(encoding="utf-8").split("## A recipe")[1]
    found = re.search(r"```yaml\n(.*?)```", text, flags=re.S)
    assert found is not None
    TrainingRecipe.model_validate(yaml.safe_load(found[1]))
