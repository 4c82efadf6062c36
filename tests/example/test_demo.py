"""The demo's folder: what it takes over, what it refuses, and that its recipe is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitfrost.errors import VitfrostError
from vitfrost.example.data import write_digit_images
from vitfrost.example.demo import RECIPE, demo
from vitfrost.images.source import open_images
from vitfrost.measure.results import load_results
from vitfrost.recipe import load_recipe


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


def test_the_demo_ends_with_a_table_and_a_report_and_a_second_call_takes_it_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = demo(tmp_path / "demo")
    original, _quantised, compressed = load_results(report.parent / "results.json").rows
    assert original.top1 is not None
    assert original.top1 >= 98
    assert compressed.top1 is not None
    assert compressed.top1 >= 90
    assert str(report) in capsys.readouterr().out
    assert report.stat().st_size > 10_000
    plan = report.parent / "plan.yaml"
    before = plan.stat().st_mtime_ns
    assert demo(tmp_path / "demo") == report
    assert plan.stat().st_mtime_ns == before
