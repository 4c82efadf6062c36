"""A grid from recipe to outcomes: equal to the verbs one by one, killed and resumed, and what a change does again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import vitfrost
from vitfrost.configs import Compress, FreezeEntries, Run
from vitfrost.errors import VitfrostError
from vitfrost.evaluation.results import load_results
from vitfrost.studies.__main__ import main
from vitfrost.studies.outcome_files import OUTCOMES, grid_outcomes
from vitfrost.studies.run import run_study
from vitfrost.studies.summary import points, select
from vitfrost.studies.variants import UNFROZEN

RECIPE: dict[str, Any] = {
    "kind": "vitfrost recipe",
    "version": 1,
    "model": {"name": "vitfrost_digits"},
    "calibration": {"images": "images", "limit": 8},
    "compress": {"calibration_images": 4},
    "evaluation": {"images": "images", "limit": 20},
    "grid": {
        "seeds": [0, 1],
        "blocks": [
            {"name": "EAM", "freeze": [0.2, 0.6], "statistics": ["fp32", "quantized"], "frozen_bits": [32, 4]},
            {"name": "fisher", "by": "fisher", "scope": "model", "freeze": 0.6, "statistics": "quantized"},
            {"name": "alone", "freeze": 0.6, "weight_bits": 32, "activation_bits": 32, "frozen_bits": 32},
        ],
    },
    "quick": {"grid": {"seeds": [1]}, "evaluation": {"limit": 5}},
}


pytestmark = [
    pytest.mark.xdist_group("stages"),  # one first run for all
    pytest.mark.usefixtures("unchecked"),  # but the fixture `whole`, the first run of everything
]


@pytest.fixture(scope="module")
def recipe(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with a small grid, beside its pictures."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "images").symlink_to(pictures, target_is_directory=True)
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The grid's folder after an undisturbed run."""
    return run_study(recipe, tmp_path_factory.mktemp("whole") / "run", progress=False)


def _state(folder: Path) -> dict[str, bytes]:
    """Bytes of everything whose bytes are promised: all but times in rows, the report of them, and what a killed process half wrote."""
    kept = {}
    for path in (path for path in sorted(folder.rglob("*")) if ".part" not in str(path.relative_to(folder))):
        if path.is_file() and path.suffix in (".safetensors", ".yaml"):
            kept[str(path.relative_to(folder))] = path.read_bytes()
        elif path.parent.name == OUTCOMES:
            data = json.loads(path.read_text())
            data["row"]["seconds_per_image"] = None
            kept[str(path.relative_to(folder))] = json.dumps(data, sort_keys=True).encode()
    return kept


def test_a_variant_is_what_the_verbs_make_one_by_one(recipe: Path, whole: Path, pictures: Path) -> None:
    found = points(grid_outcomes(whole))
    point = select(found, "EAM", freeze=0.6, statistics="quantized", frozen_bits=4)[0]
    assert point.seeds == (0, 1)
    statistics = vitfrost.calibrate(
        whole / "quantized" / "w4a4-seed1", pictures, vitfrost.Calibrate(limit=8, sensitivity=True), progress=False
    )
    plan = vitfrost.plan(statistics, FreezeEntries(0.6))
    model = vitfrost.compress(
        "vitfrost_digits", plan, statistics=statistics, images=pictures, config=Compress(seed=1, calibration_images=4)
    )
    row = vitfrost.evaluate(model, pictures, config=vitfrost.Evaluate(limit=20), reference="vitfrost_digits", progress=False)
    assert row is not None
    ours = point.outcomes[1].row
    for field in ("top1", "top5", "agreement", "kl", "images_hash", "kind", "precision", "state_hash", "top1_difference", "macs"):
        assert getattr(ours, field) == getattr(row, field), field
    assert ours.plan_hash == row.plan_hash
    assert ours.seeds == {"calibration": 1, "statistics": 0, "plan": 0}
    assert point.share == pytest.approx(0.6, abs=1e-3)
    assert len(load_results(whole / "results.json").rows) == len(found) * 2
    assert {outcome.row.name for outcome in grid_outcomes(whole)} == {row.name for row in load_results(whole / "results.json").rows}
    alone = select(found, "alone")[0]
    assert alone.outcomes[0].row.kind == "executed"
    assert select(found, UNFROZEN)[0].difference.value == 0
    assert (whole / "report.html").is_file()


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(started: Callable, recipe: Path, whole: Path, tmp_path: Path) -> None:
    out, script = tmp_path / "run", tmp_path / "studies.py"
    script.write_text("from vitfrost.studies.__main__ import main\nmain()\n")
    seen: set[int] = set()
    waits: list[Callable[[], bool]] = [
        lambda: (out / "quantized" / "w4a4-seed0").exists(),
        lambda: len(list((out / OUTCOMES).glob("*.json"))) >= 4,
        lambda: (out / "statistics" / "w4a4-seed1-8.safetensors").exists(),
    ]
    for wait in waits:
        process = started("run", recipe, "--out", out, *(["--resume"] if out.exists() else []), script=script)
        deadline = time.monotonic() + 60
        while not wait() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        process.communicate()
        seen.add(len(list((out / OUTCOMES).glob("*.json"))) if (out / OUTCOMES).exists() else 0)
    assert len(seen) > 1, "the run was never killed between outcomes"
    run_study(recipe, out, resume=True, progress=False)
    assert _state(out) == _state(whole)


def test_what_is_measured_stays_and_only_a_change_is_measured_again(
    recipe: Path, whole: Path, tmp_path: Path, messages: Callable[[], str]
) -> None:
    times = {path.name: path.stat().st_mtime_ns for path in (whole / OUTCOMES).iterdir()}
    run_study(recipe, whole, resume=True, progress=False)
    said = messages()
    assert said.count("already there") == said.count("[")
    changed = yaml.safe_load(recipe.read_text())
    changed["grid"]["blocks"][0]["freeze"] = [0.2, 0.4]
    other = recipe.with_name("changed.yaml")
    other.write_text(yaml.safe_dump(changed))
    run_study(other, whole, resume=True, progress=False)
    after = {path.name: path.stat().st_mtime_ns for path in (whole / OUTCOMES).iterdir()}
    assert all(after[name] == stamp for name, stamp in times.items())  # the old ones are kept, also those no longer asked for
    assert len(after) == len(times) + 2 * 2 * 2
    assert {point.freeze for point in select(points(grid_outcomes(whole)), "EAM")} == {0.2, 0.4}
    damaged = whole / OUTCOMES / min(name for name in times if not name.startswith("original"))
    damaged.write_text("{")
    (whole / "stages.json").unlink()  # all stages are looked at again
    run_study(recipe, whole, resume=True, progress=False)
    assert json.loads(damaged.read_text())["kind"] == "vitfrost outcome"


def test_the_quick_variant_and_the_table_on_the_command_line(recipe: Path, tmp_path: Path, call: Any) -> None:
    found = call("run", recipe, "--quick", "--out", tmp_path / "run", main=main)
    assert found.status == 0
    assert "fisher" in found.out
    assert "unfrozen" in found.out
    assert {outcome.row.images for outcome in grid_outcomes(tmp_path / "run")} == {5}
    assert all("\n" not in line or line for line in found.err.splitlines())


def test_a_list_runs_what_it_can_and_names_the_rest(recipe: Path, tmp_path: Path) -> None:
    data = yaml.safe_load(recipe.read_text()) | {"quick": None}
    data["calibration"]["images"] = data["evaluation"]["images"] = str(recipe.parent / "images")
    data["grid"] = {"blocks": [{"name": "EAM", "freeze": 0.2}]}
    data["model"] |= {"weights": "random", "options": {"depth": 2}}
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(data))
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(data | {"model": {"name": "xcit_nano_12_p16_224", "weights": "random"}}))
    (tmp_path / "all.yaml").write_text(yaml.safe_dump({"kind": "vitfrost recipes", "version": 1, "recipes": ["bad.yaml", "good.yaml"]}))
    out = tmp_path / "runs"
    with pytest.raises(VitfrostError, match=r"1 of 2 recipes did not run \(bad\); the first, bad: Xcit uses .*; mend it and add --resume"):
        run_study(tmp_path / "all.yaml", out, progress=False)
    assert (out / "good" / "report.html").is_file()
    assert (out / "report.html").is_file()


def test_weights_may_be_a_folder_of_models(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(VitfrostError, match=r"has no weights of vitfrost_digits; put them at .*vitfrost_digits.model.safetensors"):
        run_study(recipe, tmp_path / "run", Run(weights=tmp_path), progress=False)


def test_the_main_command_points_to_this_one_and_back(recipe: Path, finished_grid: Path, call: Any, tmp_path: Path) -> None:
    listed = tmp_path / "all.yaml"
    listed.write_text("kind: vitfrost recipes\nversion: 1\nrecipes: [grid.yaml]\n")
    for path in (recipe, listed):
        refused = call("run", path, "--out", tmp_path / "run")
        assert refused.status == 2
        program = f"python -m vitfrost.studies run {path} --out DIR"
        assert refused.err == f"vitfrost: {path} is a study, a grid of plans or a list of recipes; run {program}\n"
    refused = call("report", finished_grid, "--out", tmp_path / "page.html")
    assert refused.status == 2
    program = f"python -m vitfrost.studies report {finished_grid}"
    assert refused.err == f"vitfrost: {finished_grid} is the folder of a study; make its page with {program}\n"
    made = call("report", finished_grid, "--out", tmp_path / "page.html", main=main)
    assert made.out == f"{tmp_path / 'page.html'}\n"
    single = tmp_path / "recipe.yaml"
    single.write_text(yaml.safe_dump({key: value for key, value in RECIPE.items() if key != "grid"}))
    refused = call("run", single, "--out", tmp_path / "run", main=main)
    assert refused.err == f"vitfrost: {single} is no study, it has no grid; use vitfrost run or vitfrost report\n"
    assert "(see python -m vitfrost.studies --help" in call("run", "--out", tmp_path / "run", main=main).err
    assert not (tmp_path / "run").exists()


def test_it_is_a_program() -> None:
    found = subprocess.run([sys.executable, "-m", "vitfrost.studies", "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert "usage: python -m vitfrost.studies" in found.stdout
    assert "report" in found.stdout
