"""A folder's parts are found by the names of a run, else by what they are; and the commands that the page prints work."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vitfrost
from vitfrost.artifact import Artifact
from vitfrost.configs import Calibrate, Compact, FreezeHeads, Quantize
from vitfrost.model import Model
from vitfrost.plans.schema import Plan
from vitfrost.reporting.commands import commands, plan_command
from vitfrost.reporting.parts import read_parts
from vitfrost.reporting.verdict import build_verdict


@pytest.mark.parametrize("name", ["results.json", "result.json", "fast.json"])
@pytest.mark.parametrize("one", [True, False])
def test_results_are_read_by_either_name_and_of_either_kind(run_folder: Path, name: str, one: bool) -> None:
    (run_folder / "recipe.yaml").unlink()
    data = json.loads((run_folder / "results.json").read_text())
    (run_folder / "results.json").unlink()
    (run_folder / name).write_text(json.dumps(data["rows"][-1] if one else data))
    found = read_parts(run_folder).compressed
    assert found is not None
    assert found.state_hash == data["rows"][-1]["state_hash"]


def test_a_folder_with_other_names_has_a_verdict(run_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, other in (("artifact", "fast"), ("plan.yaml", "fast.yaml"), ("results.json", "fast.json")):
        (run_folder / name).rename(run_folder / other)
    (run_folder / "recipe.yaml").unlink()
    parts = read_parts(run_folder)
    assert parts.artifact is not None
    assert parts.compressed is not None
    assert not parts.plan_differs
    verdict = build_verdict(parts)
    assert verdict is not None
    assert verdict.answers[1].command is not None
    assert "RUN/fast --images" in verdict.answers[1].command
    shutil.copy(run_folder / "fast.yaml", run_folder / "slow.yaml")
    shutil.copytree(run_folder / "fast", run_folder / "slow")
    with caplog.at_level(logging.WARNING):
        assert read_parts(run_folder).plan is None
    assert "holds several plans (fast.yaml, slow.yaml); the page shows none of them, name the run's plan.yaml" in caplog.text
    assert "holds several artifacts (fast, slow)" in caplog.text


PLANS: list[tuple[Any, ...]] = [
    (FreezeHeads(0.25),),
    (Quantize(8, 8),),
    (Compact(0.5), Quantize(8, 32)),
    (Quantize(8, 32),),
]


@pytest.mark.parametrize("chosen", PLANS)
@pytest.mark.parametrize("known", [True, False])
def test_the_printed_commands_of_a_plan_alone_work(
    chosen: tuple[Any, ...], known: bool, pictures: Path, tmp_path: Path, call: Callable[..., Any]
) -> None:
    model = Model.open("vitfrost_digits", weights="random")
    run = tmp_path / "run"
    run.mkdir()
    statistics = (run if known else tmp_path) / "statistics.safetensors"
    vitfrost.calibrate(model, pictures, Calibrate(limit=2), progress=False, out=statistics)
    made = vitfrost.plan(statistics, *chosen, out=run / "plan.yaml")
    parts = read_parts(run)
    assert commands(parts) == [plan_command(made), "vitfrost report NEW_RUN"]
    verdict = build_verdict(parts)
    assert verdict is not None
    size = verdict.answers[2].command
    assert size is not None
    places = {"STATISTICS": str(statistics), "CALIBRATION_IMAGES": str(pictures)}
    words = [places.get(word, word.replace("RUN/", f"{run}/")) for word in shlex.split(size)]
    ended = call(*words[1:])
    assert ended.status == 0, ended.err
    assert Artifact.load(run / "artifact").plan == Plan.load(run / "plan.yaml")


def test_the_command_of_a_plan_without_statistics_knows_the_artifacts_options(tmp_path: Path, call: Callable[..., Any]) -> None:
    model = Model.open("vitfrost_digits", weights="random", options={"depth": 4}, classes=7)
    made = vitfrost.plan(model, FreezeHeads(0.5, "layer"))
    vitfrost.compress(model, made, out=tmp_path / "artifact")
    again = commands(read_parts(tmp_path))[0]
    assert "--weights random --classes 7 --model-option depth=4" in again
    words = shlex.split(again.replace("\\\n", " ").replace("plan.yaml", str(tmp_path / "again.yaml")))
    assert call(*words[1:]).status == 0
    assert Plan.load(tmp_path / "again.yaml") == made
