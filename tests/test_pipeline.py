"""`run`: which stages a recipe asks for, where its paths lead, and what a change does again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from vitfrost.artifact import Artifact
from vitfrost.budget.history import load_search
from vitfrost.errors import VitfrostError
from vitfrost.plans.schema import Plan
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
    assert Plan.load(out / "plan.yaml").statistics.hash == first.content_hash

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


SEARCHED = {key: value for key, value in RECIPE.items() if key != "plan"} | {
    "search": {"target_macs": 0.97, "over": ["layers"], "images": 6},
    "repair": {"images": 6},
}


def test_a_search_takes_the_place_of_the_plan_and_is_made_anew_for_other_statistics(
    images: Path, tmp_path: Path, messages: Callable[[], str]
) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(SEARCHED))
    run(recipe, out, progress=False)
    assert list(_announced(messages())) == ["calibrate", "search", "compress and repair", "report"]
    record = load_search(out / "plan.search.json")
    assert record.subject.statistics == Statistics.load(out / "statistics.safetensors").content_hash
    assert any(layer.constant for layer in Artifact.load(out / "artifact").plan.layers)
    assert Artifact.load(out / "artifact").repair["images"] == 6

    budget = SEARCHED | {"search": SEARCHED["search"] | {"target_macs": 0.95}}
    recipe.write_text(yaml.safe_dump(budget))
    run(recipe, out, resume=True, progress=False)
    assert _announced(messages())["calibrate"] is False
    known = {each.state for each in record.measurements}
    assert known <= {each.state for each in load_search(out / "plan.search.json").measurements}

    recipe.write_text(yaml.safe_dump(budget | {"calibration": {"images": "images", "limit": 5}}))
    run(recipe, out, resume=True, progress=False)
    assert all(_announced(messages()).values())
    assert load_search(out / "plan.search.json").subject.statistics == Statistics.load(out / "statistics.safetensors").content_hash


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan": {"freeze": 0.1}}, "search chooses the plan; leave plan out, or search"),
        ({"calibration": {"images": "images", "precision": "quantized"}}, "search starts from the original"),
        ({"compress": {"repair": "bias"}}, "repair stands in the recipe twice"),
        ({"search": {"target_macs": 0.9, "target_latency": 0.9, "runtime": "openvino-int8"}}, "are two searches"),
        ({"export": {"precision": "bf16"}}, "which is of OpenVINO"),
        ({"bench": {"rounds": 0}}, "rounds"),
        ({"windowed": {"window": 3}}, "windowed goes with a search over windows"),
        ({"search": {"target_macs": 0.9, "over": ["windows"]}, "windowed": {"ratio": 0.5}}, r"windowed\.ratio is given"),
    ],
    ids=str,
)
def test_parts_that_do_not_go_together_are_refused_in_one_line(tmp_path: Path, changes: dict, message: str) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(SEARCHED | changes))
    with pytest.raises(VitfrostError, match=message) as refused:
        load_recipe(tmp_path / "recipe.yaml")
    assert "\n" not in str(refused.value)


def test_a_seed_of_a_plan_that_draws_nothing_is_refused(tmp_path: Path) -> None:
    recipe = {name: part for name, part in SEARCHED.items() if name != "search"}
    (tmp_path / "drawn.yaml").write_text(yaml.safe_dump(recipe | {"plan": {"freeze": 0.1, "by": "random", "seed": 1}}))
    assert load_recipe(tmp_path / "drawn.yaml").plan.methods()[0].seed == 1
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"plan": {"freeze": 0.1, "seed": 1}}))
    with pytest.raises(VitfrostError, match=r"plan\.seed has no effect where plan\.by is entropy; leave it out"):
        load_recipe(tmp_path / "recipe.yaml")


def test_simulated_activations_are_not_exported(tmp_path: Path) -> None:
    with pytest.raises(VitfrostError, match=r"export refuses simulated activations; set plan.activation_bits to 32"):
        load_recipe(_write(tmp_path, plan={"freeze": 0.2}, export={"precision": "int8"}))


def test_the_recipe_of_the_main_job_is_valid() -> None:
    recipe = load_recipe(Path(__file__).parents[1] / "recipes" / "fast.yaml")
    assert recipe.search is not None
    assert recipe.search.target_latency is not None
    assert None not in (recipe.repair, recipe.export, recipe.evaluation, recipe.bench)
