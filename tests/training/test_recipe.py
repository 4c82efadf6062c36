"""Training recipes: strict keys, variants, paths, and the hash that a checkpoint belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from vitfrost.errors import VitfrostError
from vitfrost.plans.file import overlaid
from vitfrost.training.recipe import TrainingRecipe, load_training_recipe, save_training_recipe

BASE: dict[str, Any] = {
    "kind": "vitfrost training",
    "version": 1,
    "model": {"name": "vitfrost_digits"},
    "data": {"train": [{"source": "pictures"}], "evaluation": {"source": "held/out"}},
    "optimizer": {"lr": 0.001},
    "schedule": {"epochs": 3, "warmup": 1},
}


def written(folder: Path, changes: dict[str, Any] | None = None, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(overlaid(BASE, changes or {}), sort_keys=False))
    return path


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "recipes" / "training").iterdir()), ids=lambda path: path.stem)
def test_every_variant_of_the_recipes_of_the_project_is_one(path: Path) -> None:
    """By itself, or after the one that makes it small."""
    variants = yaml.safe_load(path.read_text()).get("variants", {})
    for name in variants:
        for first in [[], *([small] for small in ("quick", "cpu") if small in variants and small != name)]:
            load_training_recipe(path, [*first, name])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizers": {"lr": 1}}, "optimizers is"),
        ({"optimizer": {"lr": 0}}, "optimizer.lr is 0"),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr is nan"),
        ({"schedule": {"epochs": 3, "steps": 5}}, "schedule.epochs or steps is to be given"),
        ({"schedule": {"epochs": None}}, "schedule.epochs or steps is to be given"),
        ({"schedule": {"warmup": 3}}, "as long as the whole training"),
        ({"schedule": {"follow": "time"}}, "there is no time_limit"),
        ({"teacher": {"original": True}}, "the model is untrained"),
        ({"teacher": {"kind": "soft"}}, "original is to be true, or name"),
        ({"teacher": {"original": True, "options": {"depth": 2}}, "model": {"weights": "w.pt"}}, "options belong to a teacher with a name"),
        ({"teacher": {"name": "a", "temperature": 0}}, "teacher.temperature is 0"),
        ({"data": {"train": []}}, "data.train is []"),
        ({"data": {"train": [{"source": "a", "split": "half"}]}}, "data.train[0].split is 'half'"),
        ({"data": {"train": [{"source": "a", "labels": "none"}]}}, "needs a teacher"),
        ({"augment": {"flips": 1}}, "augment.flips is"),
        ({"augment": {"flip": 2}}, "augment.flip is 2"),
        ({"mixing": {"smoothing": 1}}, "mixing.smoothing is 1"),
        ({"checkpoint_every": {"steps": 1, "seconds": 2}}, "steps or seconds is to be given"),
        ({"ema": 1}, "ema is 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"precision": "fp16"}, "precision is 'fp16'"),
        ({"version": 2}, "has training recipe version 2"),
        ({"kind": "vitfrost recipe"}, "is not a training recipe"),
        ({"variants": ["a"]}, "variants is a mapping"),
        ({"plan": {"hallucinates": {}}}, "plan"),
        ({"plan": {"hallucinate": {"share": 0.5, "inter_map": "copy", "bias": False}}}, "bias has no effect where inter_map is copy"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(VitfrostError) as caught:
        load_training_recipe(written(tmp_path, changes))
    assert said in str(caught.value)
    assert str(tmp_path / "recipe.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_are_relative_to_the_recipe_and_pictures_to_the_data(tmp_path: Path) -> None:
    changes = {"model": {"weights": "w.pt"}, "plan": "plan.yaml", "start": {"statistics": "s.safetensors", "images": "cal"}}
    path = written(tmp_path, changes)
    recipe = load_training_recipe(path)
    assert (recipe.model.weights, recipe.plan) == (str(tmp_path / "w.pt"), str(tmp_path / "plan.yaml"))
    assert (recipe.start.statistics, recipe.start.images) == (str(tmp_path / "s.safetensors"), str(tmp_path / "cal"))
    assert recipe.data.train[0].source == str(tmp_path / "pictures")
    folder, pack = tmp_path / "data", tmp_path / "pack.npz"
    folder.mkdir()
    pack.touch()
    moved = load_training_recipe(path, data=folder)
    assert moved.data.evaluation is not None
    assert (moved.data.train[0].source, moved.data.evaluation.source) == (str(folder / "pictures"), str(folder / "held/out"))
    assert (moved.model.weights, moved.start.images) == (str(tmp_path / "w.pt"), str(folder / "cal"))
    packed = load_training_recipe(path, data=pack)
    assert packed.data.evaluation is not None
    assert {packed.data.train[0].source, packed.data.evaluation.source} == {str(pack)}
    with pytest.raises(VitfrostError, match="no data"):
        load_training_recipe(path, data=tmp_path / "absent")


def test_variants_are_laid_over_in_order_and_null_takes_away(tmp_path: Path) -> None:
    variants = {
        "wide": {"model": {"options": {"embed_dim": 96}}, "ema": 0.9},
        "short": {"schedule": {"epochs": None, "steps": 7}, "ema": None},
    }
    path = written(tmp_path, {"variants": variants})
    plain, wide, both = (load_training_recipe(path, names) for names in ((), ("wide",), ("wide", "short")))
    assert (plain.model.options, wide.model.options, wide.ema) == ({}, {"embed_dim": 96}, 0.9)
    assert (both.model.options, both.ema, both.schedule.steps, both.schedule.epochs) == ({"embed_dim": 96}, None, 7, None)
    with pytest.raises(VitfrostError, match="no variant 'long'; its variants are wide, short"):
        load_training_recipe(path, ("long",))


def test_the_hash_is_of_what_decides_the_result(tmp_path: Path) -> None:
    first = load_training_recipe(written(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    moved = load_training_recipe(written(tmp_path / "elsewhere", {"threads": 1, "checkpoint_every": {"steps": 3}, "log_every": 2}))
    other = load_training_recipe(written(tmp_path, {"seed": 1}))
    assert first.hash() == moved.hash()
    assert first.hash() != other.hash()
    assert str(tmp_path) not in str(first.without_paths())


def test_a_saved_recipe_is_the_same_recipe(tmp_path: Path) -> None:
    changes = {"augment": {"flip": 0.5, "scale": [0.9, 1.1]}, "plan": {"compact": {"ratio": 0.5}}, "ema": 0.99}
    recipe = load_training_recipe(written(tmp_path, changes))
    save_training_recipe(recipe, tmp_path / "again" / "recipe.yaml")
    again = load_training_recipe(tmp_path / "again" / "recipe.yaml")
    assert isinstance(again, TrainingRecipe)
    assert again == recipe
    assert again.hash() == recipe.hash()
