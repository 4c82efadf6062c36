"""The command line: its names are fixed, its help is quick, and the whole path goes through it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from vitfrost.artifact import Artifact
from vitfrost.plans.schema import Plan
from vitfrost.statistics.record import Statistics
from vitfrost.vit.digits import WEIGHTS

FLAGS = {
    "demo": ["--out"],
    "inspect": ["--model"],
    "calibrate": ["--model", "--weights", "--images", "--limit", "--seed", "--out"],
    "plan": [
        "--statistics", "--freeze", "--by", "--scope", "--unit", "--frozen-bits", "--weight-bits", "--activation-bits", "--seed", "--out",
    ],
    "search": [
        "--statistics", "--model", "--max-drop", "--target-macs", "--target-latency", "--runtime", "--threads", "--images", "--labels",
        "--search-over", "--search-images", "--rescore", "--seed", "--constants", "--window", "--tolerance", "--compact-init",
        "--weight-bits", "--record", "--resume", "--out",
    ],
    "compress": ["--model", "--weights", "--plan", "--statistics", "--images", "--seed", "--out"],
    "evaluate": ["--model", "--weights", "--images", "--labels", "--reference", "--json"],
    "export": ["--model", "--weights", "--format", "--precision", "--images", "--calibration-images", "--seed", "--out", "--overwrite"],
    "predict": ["--top", "--threads", "--json"],
    "bench": [
        "--runtime", "--precision", "--batch", "--threads", "--image-size", "--images", "--weights", "--rounds", "--seed", "--against",
        "--device", "--out", "--json", "--resume",
    ],
    "report": ["--out"],
    "run": ["--out", "--resume"],
}  # fmt: skip
POSITIONAL = {
    "calibrate": "ARTIFACT", "evaluate": "ARTIFACT", "export": "ARTIFACT", "predict": "EXPORT", "bench": "WHAT...", "report": "RUN",
    "run": "RECIPE",
}  # fmt: skip
DEFAULTS = {
    "calibrate": {"--limit": "1000", "--seed": "0"},
    "plan": {
        "--freeze": "0.2, or none where layers are changed in other ways", "--by": "entropy", "--scope": "head",
        "--unit": "entry", "--frozen-bits": "4", "--seed": "0",
        "--weight-bits": "4 where single weights are frozen, else 32",
    },
    "search": {"--search-images": "200", "--rescore": "lazy"},
    "compress": {"--seed": "0"},
    "export": {"--calibration-images": "300", "--seed": "0"},
}  # fmt: skip
HEAVY = ("torch", "timm", "torchvision", "numpy", "numba", "matplotlib", "jinja2", "sklearn")


def _process(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=200, env=environment)


def test_help_lists_the_verbs_and_loads_nothing_heavy() -> None:
    code = f"""
import runpy, sys
sys.argv = ["vitfrost", "--help"]
try:
    runpy.run_module("vitfrost", run_name="__main__")
except SystemExit as error:
    assert not error.code
print("loaded:", *(name for name in {HEAVY!r} if name in sys.modules))
"""
    ended = _process("-c", code)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.endswith("loaded:\n")
    for verb in FLAGS:
        assert re.search(rf"\b{verb}\b", ended.stdout)


@pytest.mark.parametrize("verb", FLAGS)
def test_every_verb_has_help_and_its_fixed_names(call: Callable, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    shown = call(verb, "--help")
    assert (shown.status, shown.err) == (0, "")
    flags = set(re.findall(r"--[a-z][a-z-]*", shown.out))
    assert set(FLAGS[verb]) <= flags
    assert POSITIONAL.get(verb, "") in shown.out
    words = " ".join(re.sub(r"[│|]", " ", shown.out).split())
    assert not re.search(r"\bNone\}|\{None|\(default: (None|False|)\)", words)
    for flag, default in DEFAULTS.get(verb, {}).items():
        assert re.search(rf"{flag} .*?\(default: {re.escape(default)}\)", words), flag


def test_the_module_is_the_program() -> None:
    ended = _process("-m", "vitfrost", "inspect")
    assert ended.returncode == 2
    assert ended.stderr == "vitfrost: give either an ARTIFACT folder or --model NAME\n"


def test_the_path_by_commands(call: Callable, pictures: Path, tmp_path: Path) -> None:
    statistics, plan, artifact, row = (tmp_path / name for name in ("s.safetensors", "plan.yaml", "artifact", "row.json"))
    model = ("--model", "vitfrost_digits")
    called = call("calibrate", *model, "--images", pictures, "--limit", 10, "--seed", 1, "--out", statistics)
    assert called.status == 0, called.err
    header = Statistics.load(statistics).header
    assert (header.images, header.seed, header.precision) == (10, 1, "fp32")
    called = call(
        "plan", "--statistics", statistics, "--freeze", 0.3, "--by", "random", "--scope", "layer", "--unit", "entry",
        "--frozen-bits", 32, "--weight-bits", 6, "--activation-bits", 8, "--seed", 2, "--out", plan,
    )  # fmt: skip
    assert called.status == 0, called.err
    assert "30,42" in called.out
    made = Plan.load(plan)
    assert (made.freeze.ratio, made.freeze.by, made.freeze.scope, made.freeze.bits, made.freeze.seed) == (0.3, "random", "layer", 32, 2)
    assert (made.quantize.weights, made.quantize.activations) == (6, 8)
    called = call("compress", *model, "--plan", plan, "--statistics", statistics, "--images", pictures, "--seed", 4, "--out", artifact)
    assert called.status == 0, called.err
    assert Artifact.load(artifact).seeds == {"calibration": 4, "statistics": 1, "plan": 2}
    called = call("evaluate", artifact, "--images", pictures, "--reference", "vitfrost_digits", "--json", row)
    assert called.status == 0, called.err
    assert "vitfrost_digits (reference)" in called.out
    assert max(map(len, called.out.splitlines())) <= 80
    found = json.loads(row.read_text())
    assert found["images"] == 40
    assert found["interval"][0] <= found["top1"] <= found["interval"][1] <= 100
    assert found["top1"] <= found["top5"] <= 100
    assert 0 <= found["agreement"] <= 100
    assert 0 < found["kl"] < 1
    difference = found["top1_difference"]
    assert difference["interval"][0] <= difference["value"] <= difference["interval"][1]
    assert found["precision"] == "W6/A8"
    assert found["plan_hash"] == Artifact.load(artifact).plan_hash


def test_an_artifact_against_other_weights_of_its_model(call: Callable, prepared, pictures: Path, tmp_path: Path) -> None:
    own, other, row = tmp_path / "own.safetensors", tmp_path / "other.safetensors", tmp_path / "row.json"
    state = load_file(WEIGHTS)
    save_file(state, own)
    save_file(state | {"head.bias": state["head.bias"] + 3 * (state["head.bias"] == state["head.bias"].max())}, other)
    divergence = {}
    for weights in (own, other):
        words = ("--reference", "vitfrost_digits", "--weights", weights, "--json", row)
        assert call("evaluate", prepared.artifact, "--images", pictures, *words).status == 0
        divergence[weights] = json.loads(row.read_text())["kl"]
    assert call("evaluate", prepared.artifact, "--images", pictures, "--reference", "vitfrost_digits", "--json", row).status == 0
    assert json.loads(row.read_text())["kl"] == divergence[own]
    assert divergence[other] > divergence[own] + 0.1


def test_a_model_without_a_reference_has_no_comparison(call: Callable, pictures: Path, tmp_path: Path) -> None:
    row = tmp_path / "row.json"
    assert call("evaluate", "--model", "vitfrost_digits", "--images", pictures, "--limit", 7, "--seed", 3, "--json", row).status == 0
    found = json.loads(row.read_text())
    assert (found["images"], found["agreement"], found["kl"], found["top1_difference"]) == (7, None, None, None)


def test_an_artifact_is_calibrated(call: Callable, prepared, pictures: Path, tmp_path: Path) -> None:
    for maps in ("before", "after"):
        out = tmp_path / f"{maps}.safetensors"
        called = call("calibrate", prepared.artifact, "--images", pictures, "--limit", 6, "--maps", maps, "--out", out)
        assert called.status == 0, called.err
        header = Statistics.load(out).header
        assert (header.precision, header.observed, header.images) == ("quantized", maps, 6)
        assert header.model == Statistics.load(prepared.statistics).header.model
    assert (tmp_path / "before.safetensors").read_bytes() != (tmp_path / "after.safetensors").read_bytes()


def test_inspect_tells_and_writes_what_it_found(call: Callable, prepared, tmp_path: Path) -> None:
    for words in (("--model", "vitfrost_digits"), ("vitfrost_digits",), (prepared.artifact,)):
        called = call("inspect", *words, "--json", tmp_path / "found.json")
        assert called.status == 0, called.err
        assert "blocks.0.attn" in called.out
        assert json.loads((tmp_path / "found.json").read_text())["layers"] == 6
    called = call("inspect", "--model", "resnet18")
    assert called.status == 2
    assert called.err.count("\n") == 1


def test_the_version_is_told(call: Callable) -> None:
    import vitfrost

    assert call("--version").out == f"vitfrost {vitfrost.__version__}\n"
