"""The results file: round trip, strictness, readable errors."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from vitfrost.errors import VitfrostError
from vitfrost.evaluation.results import Difference, Results, Row, environment, format_rows, load_results, save_results


def a_row(**changes: Any) -> Row:
    fields = {
        "name": "W4/A4", "kind": "simulated", "runtime": "torch 2.13.0 cpu", "threads": 2, "precision": "W4/A4", "images": 650,
        "images_hash": "0a", "labeled": True, "top1": 67.123456789, "top5": 88.0, "interval": (63.4, 70.6), "agreement": 75.5,
        "agreement_interval": (72.0, 78.6), "kl": 0.31, "kl_interval": (0.29, 0.33), "reference": "original",
        "top1_difference": Difference(value=-12.4, interval=(-15.2, -9.6)), "seeds": {"calibration": 3}, "weight_tag": "file:a",
        "state_hash": "ff", "plan_hash": "ab", "size_bytes": 3_200_000, "macs": 1_253_683_200, "seconds_per_image": 0.05,
        "environment": environment(),
    }  # fmt: skip
    return Row.model_validate({**fields, **changes})


def test_round_trip_rounds_percent_to_four_decimals(tmp_path: Path) -> None:
    rows = [a_row(), a_row(name="original", top1=None, interval=None, labeled=False)]
    save_results(Results(rows=rows), tmp_path / "results.json")
    loaded = load_results(tmp_path / "results.json")
    assert loaded.rows == rows
    assert loaded.rows[0].top1 == 67.1235
    assert set(loaded.rows[0].environment) == {"python", "torch", "timm", "cpu", "platform"}


@pytest.mark.parametrize("changes", [{"kind": "guessed"}, {"images": 0}, {"kl": float("nan")}, {"surprise": 1}, {"threads": 0}])
def test_rows_are_strict(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        a_row(**changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda data: data.update(kind="shopping list"),
            "is not a results file: its kind is 'shopping list', and should",
        ),
        (lambda data: data.update(version=2), "update vitfrost"),
        (lambda data: data["rows"][0].pop("kind"), r"damaged: rows\[0\]\.kind is missing; measure again"),
        (lambda data: data["rows"][0].update(top1="many"), r"damaged: rows\[0\]\.top1 is 'many'; it should be a valid number"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "results.json"
    save_results(Results(rows=[a_row()]), path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(VitfrostError, match=message) as caught:
        load_results(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_truncated_files(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(VitfrostError, match="no results file"):
        load_results(path)
    save_results(Results(rows=[a_row()]), path)
    path.write_text(path.read_text()[:100])
    with pytest.raises(VitfrostError, match="not readable JSON"):
        load_results(path)


def test_table_leaves_empty_columns_out() -> None:
    from rich.console import Console

    console = Console(width=200, file=io.StringIO())
    console.print(format_rows([a_row(agreement=None, agreement_interval=None, skipped=2), a_row(name="original", agreement=None)]))
    text = console.file.getvalue()
    for cell in ("67.12 ", "[63.40, 70.60]", "-12.40 ", "[-15.20, -9.60]"):
        assert cell in text
    assert "(2 skipped)" in text
    assert "agreement" not in text
