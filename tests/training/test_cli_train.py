"""The command `vitfrost train`: its table, its paths, its one-line refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vitfrost.training.recipe import load_training_recipe

RECIPES = Path(__file__).parents[2] / "recipes" / "training"


def test_a_run_ends_with_a_table_and_the_artifact_can_be_evaluated(
    call: Callable, written: Callable[..., Path], pictures: Path, tmp_path: Path
) -> None:
    recipe = written(
        data={"train": [{"source": "images"}], "evaluation": {"source": "images"}}, variants={"one": {"schedule": {"epochs": 1}}}
    )
    images = tmp_path / "data"
    images.mkdir()
    (images / "images").symlink_to(pictures)
    called = call("train", recipe, "--out", tmp_path / "run", "--data", images, "--variant", "one", "--seed", 3)
    assert called.status == 0, called.err
    assert "seed: 3" in (tmp_path / "run" / "recipe.yaml").read_text().splitlines()
    assert "vitfrost_digits" in called.out
    assert called.out.rstrip().endswith("artifact")
    evaluated = call("evaluate", tmp_path / "run" / "artifact", "--images", pictures)
    assert evaluated.status == 0, evaluated.err
    top1 = called.out.split("fp32")[1].split()[1]
    assert top1 in evaluated.out
    again = call("train", recipe, "--out", tmp_path / "run", "--data", images, "--variant", "one", "--seed", 3, "--resume")
    assert again.status == 0, again.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("absent.yaml",), "no training recipe absent.yaml"),
        (("RECIPE", "--variant", "long"), "has no variant 'long'; its variants are taught"),
        (("RECIPE", "--data", "absent"), "no data absent"),
        (("RECIPE", "--weights", "absent.pt"), "no weights file"),
        (("RECIPE", "--weights", "random", "--variant", "taught"), "the model is untrained"),
        (("RECIPE", "--device", "tpu"), "the device 'tpu' cannot be used here"),
    ],
)
def test_refusals_are_one_line(call: Callable, written: Callable[..., Path], tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    recipe = written(variants={"taught": {"model": {"weights": "timm"}, "teacher": {"original": True}}})
    called = call("train", *(recipe if word == "RECIPE" else word for word in words), "--out", tmp_path / "run")
    assert called.status == 2
    assert called.err.startswith("vitfrost: ")
    assert called.err.count("\n") == 1
    assert said in called.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_that_ships_is_valid_in_all_its_variants(path: Path) -> None:
    import yaml

    names = yaml.safe_load(path.read_text()).get("variants", {})
    recipes = [load_training_recipe(path, variants) for variants in [(), *((name,) for name in names)]]
    assert len({recipe.hash() for recipe in recipes}) == len(recipes)
