"""Names of classes, from a file or a list to artifact, export and prediction; the model's flags on the command line and in recipes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file

import vitfrost as vf
from vitfrost.class_names import imagenet_names, names_from_plain, plain_names, read_class_names
from vitfrost.configs.model import ModelPart
from vitfrost.errors import VitfrostError
from vitfrost.model import open_part
from vitfrost.runs.recipe import load_recipe
from vitfrost.vit.load import create_model

from .conftest import Called

NAMES = ["zero", "one", "two", "three", "four"]


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a model of one layer with a head of five classes, and their names."""
    folder = tmp_path_factory.mktemp("fine-tuned")
    save_file(create_model("vitfrost_digits", depth=1, num_classes=5, seed=1).state_dict(), folder / "mine.safetensors")
    (folder / "names.txt").write_text("\n".join(NAMES) + "\n\n", encoding="utf-8")
    return folder


def test_names_travel_from_the_command_line_to_predictions(
    call: Callable[..., Called], fine_tuned: Path, pictures: Path, tmp_path: Path
) -> None:
    model = [
        "--model", "vitfrost_digits", "--weights", fine_tuned / "mine.safetensors", "--class-names", fine_tuned / "names.txt",
        "--mean", 0.1, 0.2, 0.3, "--std", 0.4, 0.5, 0.6, "--model-option", "depth=1",
    ]  # fmt: skip
    measured = call("calibrate", *model, "--images", pictures, "--limit", 4, "--out", tmp_path / "s.safetensors")
    assert measured.status == 0, measured.err
    vf.plan(tmp_path / "s.safetensors", vf.Quantize(32, 32), out=tmp_path / "plan.yaml")
    made = call("compress", *model, "--plan", tmp_path / "plan.yaml", "--out", tmp_path / "artifact")
    assert made.status == 0, made.err
    about = json.loads((tmp_path / "artifact" / "config.json").read_text())["model"]
    assert (about["class_names"], about["classes"], about["options"]) == (NAMES, 5, {"depth": 1, "num_classes": 5})
    assert about["preprocessing"]["mean"] == [0.1, 0.2, 0.3]
    exported = vf.export(tmp_path / "artifact", out=tmp_path / "exported")
    found = vf.predict(exported, [pictures / "0000.png"], top=2)[0]
    assert found.names == tuple(NAMES[index] for index in found.classes)
    said = call("predict", exported, pictures / "0000.png", "--top", 1)
    assert f"{found.classes[0]} {found.names[0]} " in said.out
    assert json.loads(call("predict", exported, pictures / "0000.png", "--json").out)[0]["names"][0] == found.names[0]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--classes", 3], "head"),
        (["--model-option", "depth"], "KEY=VALUE"),
        (["--model-option", "checkpoint_path=a.pth"], "'checkpoint_path' is not allowed"),
        (["--std", 0.5, 0, 0.5], "std .* is out of range"),
        (["--class-names", "nowhere.txt"], "nowhere.txt cannot be read"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(
    call: Callable[..., Called], fine_tuned: Path, pictures: Path, tmp_path: Path, words, what
) -> None:
    model = ["--model", "vitfrost_digits", "--weights", fine_tuned / "mine.safetensors"]
    model += [] if "--model-option" in words else ["--model-option", "depth=1"]
    called = call("calibrate", *model, *words, "--images", pictures, "--out", tmp_path / "s.safetensors")
    assert called.status == 2
    assert [bool(re.search(what, line)) for line in called.err.splitlines() if line.startswith("vitfrost: ")] == [True], called.err


def test_a_recipe_has_the_same_part(fine_tuned: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "kind: vitfrost recipe\nversion: 1\nmodel:\n  name: vitfrost_digits\n  weights: mine.safetensors\n  class_names: names.txt\n"
        "  mean: [0.1, 0.2, 0.3]\n  options: {depth: 1}\ncalibration:\n  images: pictures\n"
    )
    for file in fine_tuned.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model = open_part(load_recipe(tmp_path / "recipe.yaml").model)
    assert (model.classes, model.class_names, model.preprocessing.mean) == (5, tuple(NAMES), (0.1, 0.2, 0.3))


def test_settings_of_older_recipes_stay_what_they_were() -> None:
    assert ModelPart(name="a", weights="w").settings() == {
        "name": "a", "weights": "w", "image_size": None, "crop_pct": None, "crop_mode": None, "whole_squares": False,
    }  # fmt: skip


def test_imagenet_is_known_by_its_name() -> None:
    names = imagenet_names()
    assert (len(names), names[0], plain_names(names)) == (1000, "tench", "imagenet-1k")
    assert names_from_plain("imagenet-1k", 1000) == names
    assert plain_names(("a", "b")) == ["a", "b"]
    assert plain_names(None) is names_from_plain(None, 3) is None
    for wrong in (["a"], "cifar", 3):
        with pytest.raises(ValueError, match="class_names"):
            names_from_plain(wrong, 2)
    with pytest.raises(VitfrostError, match="has 1 names, but the model has 2 classes"):
        read_class_names(["a"], 2)


def test_only_trained_heads_of_imagenet_have_its_names() -> None:
    assert vf.Model.open("test_vit", weights="random").class_names is None
    assert vf.Model.of(create_model("test_vit")).class_names == imagenet_names()
    assert vf.Model.of(create_model("test_vit", num_classes=10)).class_names is None
