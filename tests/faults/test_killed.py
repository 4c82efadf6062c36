"""Processes that are killed: what they leave is never taken for a whole file, and a run can be taken up to the same bits."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from vitfrost.artifact import Artifact
from vitfrost.statistics.record import Statistics

from ..processes import Started
from .conftest import contents

MODEL = ("--model", "vitfrost_digits")


# The new file is there, and empty; it is whole, and has not got its name.
MOMENTS = ("open", "os.rename")
KILLED = Path(__file__).with_name("killed_at.py")


def test_calibrate_killed_in_the_middle(started, call, prepared, pictures: Path, tmp_path: Path) -> None:
    """When it opens the last picture."""
    out = tmp_path / "s.safetensors"
    process = started("open", "0039.png", "calibrate", *MODEL, "--images", pictures, "--limit", 40, "--out", out, script=KILLED)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    (tmp_path / f".{out.name}.{process.pid}.part").write_bytes(prepared.statistics.read_bytes()[:100_000])
    assert call("calibrate", *MODEL, "--images", pictures, "--limit", 12, "--out", out).status == 0
    assert out.read_bytes() == prepared.statistics.read_bytes()


@pytest.mark.parametrize("moment", MOMENTS)
def test_calibrate_killed_while_it_writes(started, prepared, pictures: Path, tmp_path: Path, moment: str) -> None:
    out = tmp_path / "s.safetensors"
    shutil.copy(prepared.statistics, out)
    words = ("calibrate", *MODEL, "--images", pictures, "--limit", 3, "--out", out)
    process = started(moment, f".{out.name}.", *words, script=KILLED)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert out.read_bytes() == prepared.statistics.read_bytes()
    assert Statistics.load(out).header.images == 12


def test_compress_killed_in_the_middle(started, prepared, pictures: Path, tmp_path: Path) -> None:
    """When it opens the last picture."""
    out = tmp_path / "artifact"
    words = ("compress", *MODEL, "--plan", prepared.plan, "--statistics", prepared.statistics)
    process = started("open", "0039.png", *words, "--images", pictures, "--calibration-images", 40, "--out", out, script=KILLED)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()


@pytest.mark.parametrize("moment", MOMENTS)
def test_compress_killed_while_it_writes(started, call, prepared, pictures: Path, tmp_path: Path, moment: str) -> None:
    out = tmp_path / "artifact"
    words = ("compress", *MODEL, "--plan", prepared.plan, "--statistics", prepared.statistics, "--images", pictures, "--out", out)
    process = started(moment, f"{tmp_path}/.{out.name}.", *words, script=KILLED)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    (left,) = tmp_path.iterdir()  # which is in nobody's way
    assert left.name.endswith(".part")
    assert call(*words).status == 0
    assert Artifact.load(out).plan_hash == Artifact.load(prepared.artifact).plan_hash


RECIPE = """\
kind: vitfrost recipe
version: 1
model: {{name: vitfrost_digits}}
calibration: {{images: {images}, limit: 12, precision: quantized}}
plan: {{freeze: 0.2, by: random, seed: 3}}
compress: {{calibration_images: 8}}
evaluation: {{images: {images}}}
"""
STAGES = ["calibrate", "quantize", "calibrate quantized", "plan", "compress", "evaluate", "report"]


def _said(line: str) -> Callable[[Started], None]:
    """Kill the process when it has announced this stage."""

    def kill(process: Started) -> None:
        for announced in process.stderr:
            if line in announced:
                os.kill(process.pid, signal.SIGKILL)
                break
        process.communicate()
        assert process.returncode == -signal.SIGKILL

    return kill


def _without_seconds(results: Path) -> dict:
    found = json.loads(results.read_text())
    for row in found["rows"]:
        assert row.pop("seconds_per_image") > 0
    return found


def _announced(text: str) -> dict[str, bool]:
    """Stage -> whether it was done now."""
    lines = [line.split("] ")[1] for line in text.splitlines() if line.startswith("[")]
    return {line.split(" -> ")[0].split(": already")[0]: " -> " in line for line in lines}


def test_a_killed_run_is_finished_with_the_same_bits(started, call, pictures: Path, tmp_path: Path) -> None:
    recipe, whole, killed = tmp_path / "recipe.yaml", tmp_path / "whole", tmp_path / "killed"
    recipe.write_text(RECIPE.format(images=pictures))
    first = call("run", recipe, "--out", whole)
    assert first.status == 0, first.err
    assert _announced(first.err) == dict.fromkeys(STAGES, True)

    for stage in ("] calibrate quantized ->", "] compress ->", "] evaluate ->"):
        _said(stage)(started("run", recipe, "--out", killed, *(("--resume",) if killed.exists() else ())))
    (killed / ".artifact.half.part").mkdir()
    last = call("run", recipe, "--out", killed, "--resume")
    assert last.status == 0, last.err
    done_now = _announced(last.err)
    assert list(done_now) == STAGES
    assert done_now["report"]
    assert not any(done_now[stage] for stage in ("calibrate", "quantize", "calibrate quantized", "plan"))
    measured = {"results.json", "report.html", "stages.json"}
    one, other = (
        {name: data for name, data in contents(run).items() if name not in measured and ".part" not in name} for run in (whole, killed)
    )
    assert {"statistics.safetensors", "statistics.quantized.safetensors", "plan.yaml", "artifact/model.safetensors"} <= one.keys()
    assert one == other
    assert _without_seconds(killed / "results.json") == _without_seconds(whole / "results.json")

    before = contents(killed)
    again = call("run", recipe, "--out", killed, "--resume")
    assert _announced(again.err) == dict.fromkeys(STAGES, False)
    assert contents(killed) == before

    plan = (killed / "plan.yaml").read_text()
    assert "entries: 845" in plan
    (killed / "plan.yaml").write_text(plan.replace("entries: 845", "entries: 100", 1))
    edited = call("run", recipe, "--out", killed, "--resume")
    assert edited.status == 0, edited.err
    assert _announced(edited.err) == {stage: stage in ("compress", "evaluate", "report") for stage in STAGES}
    assert Artifact.load(killed / "artifact").plan.layers[0].heads[0].entries == 100
