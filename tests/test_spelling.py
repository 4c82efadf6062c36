"""Files and command lines of versions that spelled the British way."""

from __future__ import annotations

import json
from pathlib import Path

from vitfrost.plans.schema import Plan
from vitfrost.runs.recipe import load_recipe
from vitfrost.spelling import american, american_words, hashed

PLAN = """\
kind: vitfrost plan
version: 1
model: {name: vitfrost_digits, image_size: [32, 32], weight_tag: t, state_hash: s, classes: 10}
statistics: {hash: h, images_hash: i, images: 3, precision: quantised, observed: before}
freeze: {ratio: 0.5, renormalise: mass, order: merge-quantise}
quantize: {weight_bits: 4}
layers: []
"""


def test_a_plan_of_an_earlier_version_is_read_and_keeps_its_hash(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN)
    plan = Plan.load(tmp_path / "plan.yaml")
    assert plan.freeze is not None
    assert plan.statistics is not None
    assert (plan.freeze.renormalize, plan.freeze.order, plan.statistics.precision) == ("mass", "merge-quantize", "quantized")
    assert plan.content_hash == "0c091f49d230b2f53079aadb168196d3adcc2e6206dda3090cf2c7dd5cf10066"


def test_a_recipe_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "kind: vitfrost recipe\nversion: 1\nmodel: {name: vitfrost_digits}\ncalibration: {images: quantised, precision: quantised}\n"
        "plan: {renormalise: mass, order: quantise-merge}\n"
    )
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert (recipe.calibration.precision, recipe.plan.renormalize, recipe.plan.order) == ("quantized", "mass", "quantize-merge")
    assert Path(recipe.calibration.images).name == "quantised"  # a folder keeps its name


def test_words_come_back_as_they_were() -> None:
    old = {
        "order": "quantise-merge",
        "seeds": [1],
        "grid": {"statistics": ["fp32", "quantised"]},
        "renormalise": "none",
        "name": "artefact",
    }
    assert hashed(american(old)) == old
    assert json.dumps(american(american(old))) == json.dumps(american(old))
    assert american_words(["plan", "--renormalise", "mass", "--order", "merge-quantise"]) == [
        "plan", "--renormalize", "mass", "--order", "merge-quantize",
    ]  # fmt: skip
