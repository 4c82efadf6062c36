"""The page of a run with a search: its figures are those of the search file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vitfrost
from vitfrost.budget.history import load_search, save_search
from vitfrost.budget.latency_record import Latencies, LatencyOutcome, LatencySetup, TimedChange, TimedModel
from vitfrost.configs import Search
from vitfrost.errors import VitfrostError
from vitfrost.reporting.build import report
from vitfrost.reporting.parts import read_parts
from vitfrost.reporting.search import build_search


@pytest.fixture(scope="module")
def searched(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with statistics, plan and search of the digits model."""
    folder = tmp_path_factory.mktemp("searched")
    vitfrost.calibrate("vitfrost_digits", pictures, vitfrost.Calibrate(limit=6), progress=False, out=folder / "statistics.safetensors")
    vitfrost.search(
        "vitfrost_digits", pictures, Search(target_macs=0.93, images=8, over=("heads", "layers", "ranks", "windows")),
        vitfrost.WindowHeads(window=3), statistics=folder / "statistics.safetensors", out=folder / "plan.yaml", progress=False,
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
    assert found.windows is not None
    assert [len(row) for row in found.windows.rows] == [4] * 6
    assert "One head windowed alone" in page.text
    assert "search" in page.ids
    assert f"It ended at {record.outcome.said}" in page.text  # type: ignore[union-attr]
    for number, taken in enumerate(record.steps, 1):
        assert f"step {number}, {taken.move}: KL {taken.kl:.4g} nats" in page.source
        assert taken.move in page.text
    assert "labeled images" in page.text
    command = " ".join(line for line in page.text.replace("\\", " ").split("vitfrost search ")[-1].split())
    assert command.startswith("--statistics STATISTICS --model vitfrost_digits --images SEARCH_IMAGES --target-macs 0.93")
    assert "--target-macs 0.93 --search-over heads layers ranks windows --search-images 8" in command
    assert "--windowed-side 3" in command
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


def test_a_search_for_a_latency_shows_what_was_timed(searched: Path, tmp_path: Path, page_of: Callable[..., Any]) -> None:
    folder = tmp_path / "run"
    shutil.copytree(searched, folder)
    record = load_search(folder / "plan.search.json")
    setup = LatencySetup(runtime="openvino-int8", threads=2, versions="openvino 2026.1.0", cpu="some processor")
    sites = tuple(f"blocks.{layer}.attn" for layer in range(6))
    change = TimedChange(kind="heads", sites=sites, amount=3, saved=0.0123, interval=(0.0101, 0.0141), saved_ms=0.0615, rounds=20)
    model = TimedModel(
        state=record.steps[-1].state, predicted=0.911, ratio=0.934, interval=(0.925, 0.941), ms=4.67, original_ms=5.0, rounds=20
    )
    assert record.outcome is not None
    outcome = record.outcome.model_copy(
        update={"latency": LatencyOutcome(setup=setup, predicted=0.911, measured=model, corrections=1), "said": "latency 0.934"}
    )
    steps = tuple(step.model_copy(update={"latency_share": 0.955}) for step in record.steps)
    measurements = tuple(each.model_copy(update={"latency_share": 0.9877}) for each in record.measurements)
    other = Latencies(setup=setup.model_copy(update={"threads": 1}), original_ms=9.0, changes=(change,))
    timed = Latencies(setup=setup, original_ms=5.0, changes=(change,), models=(model,))
    budget = record.budget | {"target_macs": None, "target_latency": 0.94, "runtime": "openvino-int8", "threads": 2}
    changed = {"budget": budget, "outcome": outcome, "steps": steps, "measurements": measurements, "latencies": (timed, other)}
    save_search(record.model_copy(update=changed), folder / "plan.search.json")
    page = page_of(folder, tmp_path / "page.html")
    assert "What changes save on openvino-int8, 2 threads" in page.text
    assert "takes 5.00 ms on some processor" in page.text
    found = build_search(read_parts(folder))
    assert found is not None
    assert found.latency is not None
    assert found.latency.models is not None
    ((where, cells),) = found.latency.changes.rows
    assert [where, *(cell.value for cell in cells)] == ["blocks.0.attn and 5 like it", "3 frozen heads", "0.061", "1.23", "1.01 to 1.41"]
    ((_, cells),) = found.latency.models.rows
    assert [cell.value for cell in cells] == ["91.1", "93.4", "92.5 to 94.1", "4.67", "5.00"]
    assert found.layers is not None
    assert "% of MACs, 0.061 ms (1.23 %)" in found.layers.rows[0][1][0].notes[0]
    assert found.steps is not None
    assert [row[1][-1].value for row in found.steps.rows] == ["95.5"] * len(steps)
    assert ", latency 95.5 %" in page.source
    command = " ".join(page.text.replace("\\", " ").split("vitfrost search ")[-1].split())
    assert "--target-latency 0.94 --runtime openvino-int8 --threads 2" in command
    assert "--target-macs" not in command


def test_a_search_of_another_model_is_refused(searched: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(searched, folder)
    record = load_search(folder / "plan.search.json")
    other = record.subject.model_copy(update={"model": record.subject.model.model_copy(update={"state_hash": "0" * 64})})
    save_search(record.model_copy(update={"subject": other}), folder / "plan.search.json")
    with pytest.raises(VitfrostError, match="mixes runs"):
        report(folder)
    (folder / "plan.search.json").write_text('{"kind": "vitfrost search", "version": 2}')
    with pytest.raises(VitfrostError, match="search of vitfrost version 2"):
        report(folder)
