"""The page of a grid: its numbers are those of the outcomes, it chooses itself, and what is missing is said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from vitfrost.configs import Calibrate
from vitfrost.errors import VitfrostError
from vitfrost.files import read_json, write_json
from vitfrost.model import Model
from vitfrost.reporting.summary import signed
from vitfrost.studies import criteria, paper
from vitfrost.studies.grid_page import report_study
from vitfrost.studies.grid_parts import read_grid
from vitfrost.studies.outcome_files import load_outcomes, outcome_path
from vitfrost.studies.picture import take_picture
from vitfrost.studies.recipe import load_study
from vitfrost.studies.summary import between, gain, points, select
from vitfrost.studies.variants import UNFROZEN, expand

PageOf = Callable[..., Any]
HEADS, FIRST, CHOSEN = 24, 6, 2


def test_page_is_well_formed_and_needs_nothing_from_outside(finished_grid: Path, page_of: PageOf, tmp_path: Path) -> None:
    page = page_of(finished_grid, tmp_path / "page.html")
    assert "http://" not in page.source
    assert "https://" not in page.source
    assert all(reference.startswith(("#", "data:")) for reference in page.references)
    anchors = {reference[1:] for reference in page.references if reference.startswith("#")}
    assert anchors <= set(page.ids)
    assert {f"figure-{number}" for number in range(1, 7)} | {"table-1"} <= anchors
    whole_maps = len({"lowest", "highest"}) + ("the paper's L2H3:" in page.text)
    assert len(page.images) == (1 + 4) + (FIRST + HEADS) + whole_maps + (CHOSEN + HEADS)
    assert len(page.source) < 1_000_000
    assert "None" not in page.text
    assert "nan" not in page.text.split()


def test_table_one_holds_published_and_own_numbers(finished_grid: Path) -> None:
    recipe = load_study(finished_grid / "recipe.yaml")
    own = points(load_outcomes(finished_grid / "outcomes", expand(recipe)))
    (unfrozen,) = select(own, UNFROZEN)
    table = paper.table_one(read_grid(finished_grid))
    assert table is not None
    assert [name for name, _ in table.rows] == ["Full precision", "RepQ-ViT", "EAM 4bits, τ = 10 %", "EAM 4bits, τ = 20 %"]
    cells = {name: [cell.value for cell in cells] for name, cells in table.rows}
    assert cells["Full precision"][:2] == ["32/32", "97.50"]
    assert cells["RepQ-ViT"] == ["4/4", "91.25", f"{unfrozen.top1.value:.2f}", "–", "–"]
    for share, published, difference in ((0.1, "91.50", "+0.25"), (0.2, "91.00", "−0.25")):
        (point,) = select(own, "a", statistics="quantized", frozen_bits=4, freeze=share)
        expected = ["4/4", published, f"{point.top1.value:.2f}", difference, signed(point.difference.value)]
        assert cells[f"EAM 4bits, τ = {100 * share:g} %"] == expected
        assert point.difference.value == pytest.approx(100 * (point.correct.mean() - unfrozen.correct.mean()))


def test_figures_five_and_six_are_drawn_from_the_points(finished_grid: Path, page_of: PageOf, tmp_path: Path) -> None:
    recipe = load_study(finished_grid / "recipe.yaml")
    own = points(load_outcomes(finished_grid / "outcomes", expand(recipe)))
    parts = read_grid(finished_grid)
    five, six = paper.figure_five(parts), paper.figure_six(parts)
    assert five is not None
    assert six is not None
    drawn = {curve.curve.name: [reading.y for reading in curve.curve.readings] for curve in five.charts[0].curves}
    assert len(drawn) == 4
    for statistics, bits, name in (("quantized", 4, "EAM 4bits"), ("fp32", 32, "EAM FP32")):
        line = next(values for key, values in drawn.items() if key.startswith(name))
        assert line == [point.top1.value for point in select(own, "a", statistics=statistics, frozen_bits=bits)]
    published = five.charts[1].curves[-1].curve
    assert [(reading.x, reading.y) for reading in published.readings] == [(10.0, 0.25), (20.0, -0.25)]
    assert not any("97.5" in title or "91.2" in title for drawn in five.charts[0].curves for _, title in drawn.marks)
    entropy, random = select(own, "a", statistics="quantized", frozen_bits=4), select(own, "b")
    gaps = [between(one, other) for one, other in zip(entropy, random, strict=True)]
    assert [reading.y for reading in six.charts[1].curves[0].curve.readings] == [gap.value for gap in gaps]
    assert [cells[-1] for _, cells in six.table.rows] == [gain(gap) for gap in gaps]
    text = page_of(finished_grid, tmp_path / "page.html").text
    for gap in gaps:
        assert signed(gap.value) in text


def test_other_criteria_and_numbers_of_images_are_compared(finished_grid: Path) -> None:
    parts = read_grid(finished_grid)
    (comparison,) = criteria.comparisons(parts)
    assert [name for name, _ in comparison.table.rows] == ["entropy", "random", "lowest mean", "lowest variance"]
    assert comparison.table.columns == ["20 %", "100 %"]
    assert comparison.against is not None
    assert comparison.against.title == "Difference to “entropy”, points"
    mean = next(line for line in parts.lines if line.by == "mean")
    assert dict(comparison.table.rows)["lowest mean"][0].value == signed(mean.points[0.2].difference.value)
    assert dict(comparison.table.rows)["entropy"][1].value == "–"
    (ranking,) = criteria.rankings(parts)
    assert ranking.title == "W4/A4, 50 % frozen"
    differences = [float(row.value.replace("−", "-")) for row in ranking.rows]
    assert differences == sorted(differences, reverse=True)
    assert {"entropy, per layer", "entropy, whole model", "random", "entropy"} <= {row.label for row in ranking.rows}
    assert [row.label for row in ranking.rows if row.reference] == ["entropy"]
    assert all(0 <= row.left <= row.dot <= row.left + row.length + 0.02 <= 100.04 for row in ranking.rows)
    (images,) = criteria.over_images(parts)
    assert [label for _, label in images.chart.x_ticks] == ["4", "8", "12"]
    assert [name for name, _ in images.table.rows] == ["4", "8", "12"]


def test_names_of_blocks_do_not_matter(finished_grid: Path, grid_folder: Path) -> None:
    data = yaml.safe_load((grid_folder / "recipe.yaml").read_text())
    for number, block in enumerate(data["grid"]["blocks"]):
        block["name"] = f"another {number}"
    (grid_folder / "recipe.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    before, after = read_grid(finished_grid), read_grid(grid_folder)
    for figure in (paper.table_one, paper.figure_five, paper.figure_six, paper.freezing_alone, criteria.comparisons, criteria.over_images):
        assert figure(before) == figure(after)


def test_equal_folders_give_equal_pages(finished_grid: Path, grid_folder: Path, tmp_path: Path) -> None:
    assert report_study(finished_grid, tmp_path / "a.html").read_bytes() == report_study(grid_folder, tmp_path / "b.html").read_bytes()


def remove(folder: Path, wanted: Callable[[Any], bool]) -> int:
    """Delete the outcomes of some variants; how many they were."""
    found = [variant for variant in expand(load_study(folder / "recipe.yaml")) if wanted(variant)]
    for variant in found:
        outcome_path(folder / "outcomes", variant).unlink()
    return len(found)


def test_a_grid_in_the_middle_of_its_measurements(grid_folder: Path, page_of: PageOf) -> None:
    removed = remove(grid_folder, lambda variant: variant.seed == 1 and variant.freeze > 0 and variant.plan["by"] == "entropy")
    text = page_of(grid_folder).text
    assert f"{removed} of {len(expand(load_study(grid_folder / 'recipe.yaml')))} variants are not measured yet" in text
    assert "1 of 2 seeds" in text
    assert f"W4/A4, entropy ({removed})" in text


def test_variants_wait_for_their_unfrozen_model(grid_folder: Path, page_of: PageOf) -> None:
    assert remove(grid_folder, lambda variant: variant.block == UNFROZEN and variant.seed == 1) == 1
    quantized = [variant for variant in read_grid(grid_folder).variants if variant.source.quantizes]
    waiting = sum(variant.seed == 1 for variant in quantized) - 1
    text = page_of(grid_folder).text
    assert f"{waiting} measured variants are left out until the unfrozen model of their seed is measured" in text
    assert "unfrozen models (1)" in text


MISSING = {
    "outcomes": ("so there is no table", "Nothing is measured yet"),
    "picture.safetensors": ("has no picture.safetensors , so no attention is drawn",),
    "statistics": ("so there is nothing to draw", "their maps are not compared"),
    "statistics/fp32-12.safetensors": ("of the quantized model, because the original's statistics are not in this run", "not compared"),
    "statistics/w4a4-seed0-12.safetensors": ("in the quantized model w4a4-seed1",),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_part_is_left_out(grid_folder: Path, name: str, page_of: PageOf) -> None:
    path = grid_folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = page_of(grid_folder).text
    for sentence in MISSING[name]:
        assert sentence in text


def test_a_grid_of_other_blocks_leaves_the_papers_figures_out(grid_folder: Path, page_of: PageOf) -> None:
    data = yaml.safe_load((grid_folder / "recipe.yaml").read_text())
    data["grid"]["blocks"] = [block for block in data["grid"]["blocks"] if block["name"] == "b"]
    del data["published"]
    (grid_folder / "recipe.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    text = page_of(grid_folder).text
    for sentence in (
        "no measured variant that freezes the lowest entropy", "no measured pair of entropy and random", "no freezing without quantization",
        "The recipe names no published values",
    ):  # fmt: skip
        assert sentence in text
    assert [one.chart.title for one in criteria.comparisons(read_grid(grid_folder))] == ["W4/A4: criterion"]


def test_parts_of_other_models_are_refused(grid_folder: Path, pictures: Path) -> None:
    other = Model.open("vitfrost_digits", weights="random", seed=7)
    take_picture(other, pictures, grid_folder / "picture.safetensors")
    with pytest.raises(VitfrostError, match=r"mixes runs: picture\.safetensors is of other weights"):
        report_study(grid_folder)
    path = outcome_path(grid_folder / "outcomes", None)
    data = read_json(path)
    data["row"]["state_hash"] = "0" * 64
    write_json(path, data)
    with pytest.raises(VitfrostError, match="mixes runs: its outcomes are of the weights"):
        report_study(grid_folder)
    assert not (grid_folder / "report.html").exists()


def test_figures_of_windowed_models(grid_folder: Path, pictures: Path, page_of: PageOf) -> None:
    from vitfrost.statistics.calibrate import calibrate

    shutil.rmtree(grid_folder)
    model = Model.open("swin_tiny_patch4_window7_224", weights="random", image_size=112)
    calibrate(model, pictures, Calibrate(limit=2), out=grid_folder / "statistics" / "fp32-2.safetensors", progress=False)
    take_picture(model, pictures, grid_folder / "picture.safetensors")
    recipe = {
        "kind": "vitfrost recipe", "model": {"name": "swin_tiny_patch4_window7_224", "image_size": 112},
        "calibration": {"images": "i", "limit": 2}, "evaluation": {"images": "i"},
        "grid": {"blocks": [{"name": "a", "freeze": [0.1], "weight_bits": 32, "activation_bits": 32}]},
    }  # fmt: skip
    (grid_folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    page = page_of(grid_folder)
    heads = 2 * 3 + 2 * 6 + 6 * 12 + 2 * 24
    assert len(page.images) == (1 + 24) + (FIRST + heads) + 3
    assert "This model has no class token: the mean over all queries of each head of layer 11" in page.text
    assert "the mean over the queries of a window stands for its row" in page.text


@pytest.mark.browser
def test_a_browser_shows_the_page_without_the_network(finished_grid: Path, tmp_path: Path, browser: Any) -> None:
    page = report_study(finished_grid, tmp_path / "page.html")
    images = page.read_text(encoding="utf-8").count("<img ")
    for width in (1280, 500):
        assert browser.look_at(page, width) == {"images": images, "loaded": images, "wide": False, "fetched": 0, "refused": 0}
    pixels = browser.photograph(page, 1280)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
