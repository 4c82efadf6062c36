"""The page of a run with a search: its figures are those of the search file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vitfrost
from vitfrost.budget.record import load_search, save_search
from vitfrost.errors import VitfrostError
from vitfrost.reporting.build import report
from vitfrost.reporting.parts import read_parts
from vitfrost.reporting.search import build_search
from vitfrost.statistics.record import Statistics


@pytest.fixture(scope="module")
def searched(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with statistics, plan and search of the digits model."""
    folder = tmp_path_factory.mktemp("searched")
    vitfrost.calibrate("vitfrost_digits", pictures, limit=6, progress=False, out=folder / "statistics.safetensors")
    vitfrost.plan_under_budget(
        Statistics.load(folder / "statistics.safetensors"), "vitfrost_digits", pictures, target_macs=0.93, search_images=8,
        out=folder / "plan.yaml", progress=False,
    )  # fmt: skip
    return folder


def test_page_shows_every_measurement_and_step(searched: Path, tmp_path: Path, page_of: Callable[..., Any]) -> None:
    page = page_of(searched, tmp_path / "page.html")
    record = load_search(searched / "plan.search.json")
    found = build_search(read_parts(searched))
    assert found is not None
    assert found.heads is not None
    alone = {(each.site, each.head): each.kl for each in record.alone if each.kind == "head"}
    assert [[text for text, _ in row] for row in found.heads.rows] == [
        [f"{1000 * alone[f'blocks.{layer}.attn', head]:.2f}" for head in range(4)] for layer in range(6)
    ]
    assert "search" in page.ids
    assert f"It ended at {record.outcome.said}" in page.text  # type: ignore[union-attr]
    for number, taken in enumerate(record.steps, 1):
        assert f"step {number}, {taken.move}: KL {taken.kl:.4g} nats" in page.source
        assert taken.move in page.text
    assert "labelled images" in page.text
    command = " ".join(line for line in page.text.replace("\\", " ").split("vitfrost plan ")[-1].split())
    assert command.startswith("--statistics STATISTICS --model vitfrost_digits --weights WEIGHTS --images SEARCH_IMAGES --target-macs 0.93")
    assert "--search-over heads layers ranks --search-images 8 --seed 0" in command
    marks = [len(drawn.marks) for chart in found.charts for drawn in chart.curves]
    assert marks == [len(record.steps) + 1] * 3  # KL; agreement and top-1


def test_a_search_of_layers_that_has_not_ended(searched: Path, tmp_path: Path, page_of: Callable[..., Any]) -> None:
    folder = tmp_path / "run"
    shutil.copytree(searched, folder)
    record = load_search(folder / "plan.search.json")
    layers = tuple(each for each in record.measurements if each.kind in (None, "layer"))
    (folder / "plan.search.json").unlink()
    save_search(record.model_copy(update={"measurements": layers, "steps": (), "outcome": None}), folder / "other.search.json")
    page = page_of(folder, tmp_path / "page.html")
    assert "It has not ended yet" in page.text
    assert "all heads frozen" in page.text
    assert "One head frozen alone" not in page.text


def test_a_search_of_another_model_is_refused(searched: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(searched, folder)
    record = load_search(folder / "plan.search.json")
    other = record.subject.model_copy(update={"model": record.subject.model.model_copy(update={"state_hash": "0" * 64})})
    save_search(record.model_copy(update={"subject": other}), folder / "plan.search.json")
    with pytest.raises(VitfrostError, match="mixes runs"):
        report(folder)
    (folder / "plan.search.json").write_text('{"kind": "vitfrost search", "version": 2}')
    with pytest.raises(VitfrostError, match="search version 2"):
        report(folder)
