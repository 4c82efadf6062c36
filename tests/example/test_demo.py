"""The demo's folder: what it takes over, what it refuses, and that its recipe is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitfrost.errors import VitfrostError
from vitfrost.evaluation.results import load_results
from vitfrost.example import data
from vitfrost.example.data import write_digit_images
from vitfrost.example.demo import RECIPE, TRAINING, demo
from vitfrost.images.source import open_images
from vitfrost.runs.recipe import load_recipe
from vitfrost.training.recipe import load_training_recipe


def test_the_training_recipe_is_valid(tmp_path: Path) -> None:
    (tmp_path / "training.yaml").write_text(TRAINING)
    recipe = load_training_recipe(tmp_path / "training.yaml")
    assert recipe.teacher is not None
    assert recipe.teacher.original
    assert recipe.data.train[0].source == str(tmp_path / "data" / "calibration")


def test_the_recipe_is_valid_and_finds_the_pictures_beside_it(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    write_digit_images(tmp_path / "data")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.model.name == "vitfrost_digits"
    assert (recipe.plan.freeze, recipe.plan.weight_bits, recipe.plan.activation_bits) == (0.2, 4, 4)
    assert len(open_images(recipe.calibration.images)) >= recipe.calibration.limit
    assert recipe.evaluation is not None
    assert len(open_images(recipe.evaluation.images, need_labels=True)) == 355


def test_a_folder_that_is_no_demo_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(VitfrostError, match="is no demo"):
        demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_edited_recipe_is_not_overwritten(tmp_path: Path) -> None:
    edited = RECIPE.replace("freeze: 0.2", "freeze: 0.5")
    (tmp_path / "recipe.yaml").write_text(edited)
    with pytest.raises(VitfrostError, match="is no demo"):
        demo(tmp_path)
    assert (tmp_path / "recipe.yaml").read_text() == edited


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(VitfrostError, match="is a file"):
        demo(tmp_path / "taken")


@pytest.fixture
def a_third(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo draws from a third of its pictures."""
    whole = data.load_split
    monkeypatch.setattr(data, "load_split", lambda name: tuple(part[::3] for part in whole(name)))


@pytest.mark.usefixtures("a_third", "unchecked")
def test_the_demo_ends_with_a_table_and_a_report_and_a_second_call_takes_it_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = demo(tmp_path / "demo")
    original, _quantized, compressed = load_results(report.parent / "results.json").rows
    assert original.top1 is not None
    assert original.top1 >= 98
    assert compressed.top1 is not None
    assert compressed.top1 >= 90
    shown = capsys.readouterr().out
    assert str(report) in shown
    assert "closed form" in shown
    (distilled,) = load_results(report.parent.parent / "trained" / "result.json").rows
    assert f"{distilled.top1:.2f}" in shown
    assert distilled.top1 is not None
    assert distilled.top1 >= 80  # it starts at less than 15
    assert distilled.macs is not None
    assert original.macs is not None
    assert distilled.macs < 0.85 * original.macs
    assert report.stat().st_size > 10_000
    plan = report.parent / "plan.yaml"
    before = plan.stat().st_mtime_ns
    assert demo(tmp_path / "demo") == report
    assert plan.stat().st_mtime_ns == before
