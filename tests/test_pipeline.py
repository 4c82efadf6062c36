"""`run`: which stages a recipe asks for, where its paths lead, and what a change does again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from vitfrost.artifact import Artifact
from vitfrost.errors import VitfrostError
from vitfrost.plans.file import load_plan
from vitfrost.runs.recipe import load_recipe
from vitfrost.runs.run import run
from vitfrost.statistics.record import Statistics

RECIPE = {
    "kind": "vitfrost recipe",
    "version": 1,
    "model": {"name": "vitfrost_digits", "weights": "random"},
    "calibration": {"images": "images", "limit": 4},
    "plan": {"freeze": 0.1, "weight_bits": 32, "activation_bits": 32},
}


def _write(folder: Path, **changes: object) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | changes))
    return path


def _announced(text: str) -> dict[str, bool]:
    """Stage -> whether it was done now."""
    lines = [line.split("] ")[1] for line in text.splitlines() if line.startswith("[")]
    return {line.split(" -> ")[0].split(": already")[0]: " -> " in line for line in lines}


@pytest.fixture
def images(pictures: Path, tmp_path: Path) -> Path:
    """The pictures beside the recipe."""
    (tmp_path / "images").symlink_to(pictures, target_is_directory=True)
    return tmp_path / "images"


def test_a_changed_recipe_does_again_what_the_change_touches(images: Path, tmp_path: Path, messages: Callable[[], str]) -> None:
    recipe, out = _write(tmp_path), tmp_path / "run"
    assert run(recipe, out, progress=False) == out
    stages = ["calibrate", "plan", "compress", "report"]
    assert _announced(messages()) == dict.fromkeys(stages, True)
    assert not (out / "results.json").exists()
    assert load_recipe(out / "recipe.yaml") == load_recipe(recipe)
    first = Statistics.load(out / "statistics.safetensors")
    assert first.header.images == 4
    assert load_plan(out / "plan.yaml").statistics.hash == first.content_hash

    _write(tmp_path, plan=RECIPE["plan"] | {"freeze": 0.3})
    run(recipe, out, resume=True, progress=False)
    assert _announced(messages()) == {stage: stage != "calibrate" for stage in stages}
    assert Artifact.load(out / "artifact").plan.freeze.ratio == 0.3

    _write(tmp_path, plan=RECIPE["plan"] | {"freeze": 0.3}, calibration={"images": "images", "limit": 5})
    run(recipe, out, resume=True, progress=False)
    assert all(_announced(messages()).values())
    assert Statistics.load(out / "statistics.safetensors").header.images == 5

    (out / "statistics.safetensors").unlink()
    run(recipe, out, resume=True, progress=False)
    assert _announced(messages()) == {stage: stage == "calibrate" for stage in stages}

    (out / "stages.json").write_text("[]")
    with pytest.raises(VitfrostError, match="is damaged; remove it"):
        run(recipe, out, resume=True, progress=False)


def test_the_command_replaces_the_paths_of_the_recipe(call: Callable, pictures: Path, tmp_path: Path) -> None:
    from vitfrost.vit.digits import WEIGHTS

    recipe = _write(tmp_path, calibration={"images": "nowhere", "limit": 4}, evaluation={"images": "nowhere", "limit": 8})
    refused = call("run", recipe, "--out", tmp_path / "run")
    assert refused.status == 2
    assert f"no image folder {(tmp_path / 'nowhere').resolve()}" in refused.err
    assert not (tmp_path / "run").exists()
    words = ("--weights", WEIGHTS, "--calibration", pictures, "--images", pictures)
    done = call("run", recipe, "--out", tmp_path / "run", *words)
    assert done.status == 0, done.err
    assert str(tmp_path / "run" / "report.html") in done.out
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    assert [(row["name"], row["images"], row["precision"]) for row in rows] == [("original", 8, "fp32"), ("compressed", 8, "fp32")]
    assert rows[0]["weight_tag"] == "file:digits.safetensors"
    written = (tmp_path / "run" / "artifact" / "config.json").read_text()
    assert str(tmp_path) not in written
    assert str(pictures) not in written
