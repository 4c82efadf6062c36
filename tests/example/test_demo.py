"""The demo's folder: what it takes over, what it refuses, and that its recipe is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitfrost.errors import VitfrostError
from vitfrost.evaluation.results import load_results
from vitfrost.example import data
from vitfrost.example.data import write_digit_images
from vitfrost.example.demo import FAST, RECIPE, WITHOUT_EXPORT, demo
from vitfrost.images.source import open_images
from vitfrost.plans.schema import Plan
from vitfrost.runs.recipe import load_recipe
from vitfrost.timing.benchmark import load_benchmark


@pytest.mark.parametrize("rest", [FAST, WITHOUT_EXPORT], ids=["with runtimes", "without"])
def test_the_recipe_is_valid_and_finds_the_pictures_beside_it(tmp_path: Path, rest: str) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE + rest)
    write_digit_images(tmp_path / "data")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.model.name == "vitfrost_digits"
    assert recipe.search is not None
    assert (recipe.export is None) == (recipe.bench is None) == (rest == WITHOUT_EXPORT)
    assert len(open_images(recipe.calibration.images)) >= recipe.calibration.limit
    assert recipe.evaluation is not None
    assert len(open_images(recipe.evaluation.images, need_labels=True)) == 355


def test_a_folder_that_is_no_demo_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(VitfrostError, match="is no demo"):
        demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_edited_recipe_is_not_overwritten(tmp_path: Path) -> None:
    edited = (RECIPE + FAST).replace("0.85", "0.5")
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
def test_the_demo_ends_with_a_smaller_and_faster_model_and_a_second_call_takes_it_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = demo(tmp_path / "demo")
    run = report.parent
    original, compressed, exported = load_results(run / "results.json").rows
    assert original.top1 is not None
    assert original.top1 >= 98
    for row in (compressed, exported):
        assert row.top1 is not None
        assert row.top1 >= 90
    assert (exported.kind, exported.precision) == ("executed", "int8")
    assert exported.macs is not None
    assert original.macs is not None
    assert exported.macs < 0.95 * original.macs
    plan = Plan.load(run / "plan.yaml")
    assert plan.latency is not None
    assert plan.latency.ratio <= 0.85
    rows = load_benchmark(run / "bench" / "bench.json").rows
    before = next(row for row in rows if row.unmodified and row.precision == "fp32" and row.graph == "plain")
    after = next(row for row in rows if not row.unmodified)
    assert after.file_bytes < 0.6 * before.file_bytes
    assert after.p50_ms < before.p50_ms
    shown = capsys.readouterr().out
    assert str(report) in shown
    assert max(map(len, shown.splitlines()[:-1])) <= 80
    assert f"{exported.top1:.2f}" in shown
    assert f"{after.file_bytes / 1e6:.2f}" in shown
    page = report.read_text()
    assert page.index("Accuracy kept") < page.index("Time beside the fastest peer")
    assert "not measured" not in page
    stamp = (run / "plan.yaml").stat().st_mtime_ns
    assert demo(tmp_path / "demo") == report
    assert (run / "plan.yaml").stat().st_mtime_ns == stamp
