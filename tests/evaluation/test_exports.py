"""Exported models are measured like any other: executed, on their own runtime, beside the same references."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import vitfrost
from vitfrost.errors import VitfrostError
from vitfrost.evaluation.description import describe
from vitfrost.model import as_model
from vitfrost.runtime import open_export


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_a_row_says_what_ran(exported: dict[str, Path], pictures: Path, call: Callable, tmp_path: Path, form: str) -> None:
    words = ("--images", pictures, "--limit", "20", "--reference", "vitfrost_digits", "--json", tmp_path / "row.json")
    assert call("evaluate", exported[form], *words).status == 0
    row = json.loads((tmp_path / "row.json").read_text())
    original, session = (
        vitfrost.evaluate("vitfrost_digits", pictures, config=vitfrost.Evaluate(limit=20), progress=False),
        open_export(exported[form], 1),
    )
    assert (row["kind"], row["precision"], row["runtime"]) == ("executed", "fp32", session.runtime)
    assert row["threads"] == original.threads
    assert (row["agreement"], row["top1"], row["images_hash"]) == (100.0, original.top1, original.images_hash)
    assert row["kl"] < 1e-6
    assert row["size_bytes"] == session.size_bytes
    assert row["macs"] == describe(as_model("vitfrost_digits")).macs
    assert (row["state_hash"], row["weight_tag"]) == (original.state_hash, original.weight_tag)


def test_two_exports_are_compared_with_each_other(exported: dict[str, Path], pictures: Path) -> None:
    row = vitfrost.evaluate(exported["onnx"], pictures, config=vitfrost.Evaluate(limit=12), reference=exported["openvino"], progress=False)
    assert row.agreement == 100.0
    assert row.top1_difference.value == 0


def test_it_brings_its_own_weights_and_size(exported: dict[str, Path], pictures: Path) -> None:
    with pytest.raises(VitfrostError, match="brings its own image size"):
        vitfrost.evaluate(vitfrost.Model.open(exported["onnx"], image_size=64), pictures, progress=False)
