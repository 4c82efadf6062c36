"""Flags that are out of range, unknown or missing."""

from __future__ import annotations

from pathlib import Path

import pytest

import vitfrost
from vitfrost.errors import VitfrostError


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--limit", "0", "--limit is 0; it should be greater than or equal to 1"),
        ("--limit", "-5", "--limit is -5; it should be greater than or equal to 1"),
        ("--limit", "9999999", "at most"),
        ("--limit", "1e3", "--limit: '1e3' is not a whole number"),
        ("--seed", "-1", "--seed is -1; it should be greater than or equal to 0"),
        ("--batch-size", "0", "--batch-size is 0; it should be greater than or equal to 1"),
        ("--memory-limit", "0", "--memory-limit is 0.0; it should be greater than 0"),
        ("--memory-limit", "nan", "--memory-limit is nan"),
        ("--memory-limit", "inf", "--memory-limit is inf"),
        ("--memory-limit", "0.00001", "more than the memory limit"),
        ("--image-size", "0", "the image size 0 is out of range"),
        ("--image-size", "-32", "the image size -32 is out of range"),
        ("--crop-pct", "0", "crop_pct 0.0 is out of range; give a number above 0 and at most 1"),
        ("--crop-pct", "nan", "crop_pct nan is out of range"),
        ("--crop-mode", "round", "'round' for argument '--crop-mode'"),
        ("--maps", "between", "--maps: 'between' is none of before, after"),
        ("--maps", "after", "--maps is 'after', but vitfrost_digits has neither quantized maps nor frozen weights; leave it out"),
    ],
)
def test_calibrate_out_of_range(refused, pictures: Path, tmp_path: Path, flag: str, value: str, message: str) -> None:
    words = ("calibrate", "--model", "vitfrost_digits", "--images", pictures, "--out", tmp_path / "s.safetensors")
    assert message in refused(*words, flag, value)


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--freeze", "1.5", "--freeze is 1.5; it should be less than or equal to 1"),
        ("--freeze", "-0.1", "--freeze is -0.1"),
        ("--freeze", "nan", "--freeze is nan"),
        ("--freeze", "much", "--freeze: 'much' is not a number"),
        ("--by", "taste", "--by: 'taste' is none of entropy, mean, variance"),
        ("--scope", "all", "--scope: 'all' is none of head, layer, model"),
        ("--unit", "row", "--unit: 'row' is none of entry, head, layer"),
        ("--ties", "none", "--ties: 'none' is none of"),
        ("--protect", "everything", "--protect: 'everything' is none of cls-rows"),
        ("--renormalize", "yes", "--renormalize: 'yes' is none of"),
        ("--frozen-bits", "1", "--frozen-bits: '1' is none of 2, 3, 4, 5, 6, 7, 8, 32"),
        ("--frozen-bits", "16", "--frozen-bits: '16' is none of"),
        ("--frozen-grid", "row", "--frozen-grid: 'row' is none of"),
        ("--order", "none", "--order: 'none' is none of"),
        ("--weight-bits", "0", "--weight-bits: '0' is none of"),
        ("--activation-bits", "64", "--activation-bits: '64' is none of"),
        ("--levels", "15", "--levels: '15' is none of"),
        ("--seed", "-1", "--seed is -1; it should be greater than or equal to 0"),
        ("--seed", "1.5", "--seed: '1.5' is not a whole number"),
    ],
)
def test_plan_out_of_range(refused, prepared, tmp_path: Path, flag: str, value: str, message: str) -> None:
    assert message in refused("plan", "--statistics", prepared.statistics, "--out", tmp_path / "plan.yaml", flag, value)


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--seed", "-1", "--seed is -1; it should be greater than or equal to 0"),
        ("--calibration-images", "0", "--calibration-images is 0; it should be greater than or equal to 1"),
        ("--image-size", "0", "the image size 0 is out of range"),
        ("--crop-pct", "1.5", "crop_pct 1.5 is out of range"),
    ],
)
def test_compress_out_of_range(refused, prepared, pictures: Path, tmp_path: Path, flag: str, value: str, message: str) -> None:
    words = ("compress", "--model", "vitfrost_digits", "--plan", prepared.plan, "--statistics", prepared.statistics)
    assert message in refused(*words, "--images", pictures, "--out", tmp_path / "artifact", flag, value)


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--limit", "0", "--limit is 0; it should be greater than or equal to 1"),
        ("--seed", "-1", "--seed is -1; it should be greater than or equal to 0"),
        ("--batch-size", "-2", "--batch-size is -2; it should be greater than or equal to 1"),
        ("--reference", "vitfrost_digit", "timm has no model 'vitfrost_digit'; did you mean vitfrost_digits"),
        ("--reference-weights", "some.safetensors", "name the reference model as well"),
    ],
)
def test_evaluate_out_of_range(refused, pictures: Path, tmp_path: Path, flag: str, value: str, message: str) -> None:
    assert message in refused("evaluate", "--model", "vitfrost_digits", "--images", pictures, "--json", tmp_path / "row.json", flag, value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            [],
            "Expected one of {demo, inspect, calibrate, plan, search, compress, resize, evaluate, export, predict, bench, report, run",
        ),
        (["calibrat"], "Unrecognized options: calibrat; Available subcommands: demo, inspect, calibrate"),
        (["calibrate", "--model", "vitfrost_digits"], "Missing from vitfrost calibrate: --images PATH"),
        (["calibrate", "--images", "x", "--out"], "Missing value for argument '--out'"),
        (["calibrate", "--images", "x", "--out", "y"], "give either an ARTIFACT folder or --model NAME"),
        (["evaluate", "x", "--model", "y", "--images", "z"], "give either an ARTIFACT folder or --model NAME"),
        (["plan", "--statistics", "x", "--out", "y", "--frieze", "0.2"], "Unrecognized options: --frieze"),
        (["compress", "--out", "x", "--plan", "y"], "--model NAME"),
        (["run", "--out", "x"], "RECIPE"),
        (["report"], "RUN"),
        (["inspect"], "give either an ARTIFACT folder or --model NAME"),
    ],
)
def test_command_lines_that_are_not_understood(refused, words: list[str], message: str) -> None:
    line = refused(*words)
    assert message in line
    assert not set("│╭╮╰╯─") & set(line)
    assert "----" not in line


def test_options_without_effect_are_called_by_their_flags(refused, prepared, pictures: Path, tmp_path: Path) -> None:
    line = refused("evaluate", "--model", "vitfrost_digits", "--images", pictures, "--seed", "0")
    assert "--seed has no effect without --limit; leave it out" in line
    words = ("plan", "--statistics", prepared.statistics, "--activation-bits", "32", "--out", tmp_path / "plan.yaml")
    line = refused(*words, "--order", "merge-quantize")
    assert "--order has no effect where --activation-bits is 32; leave it out" in line
    assert "--freeze is 1.0, but so many entries are protected" in refused(*words, "--protect", "cls-rows", "--freeze", "1.0")


def test_options_without_effect_are_called_by_their_fields_in_python(pictures: Path) -> None:
    with pytest.raises(VitfrostError, match=r"Evaluate.seed has no effect where limit is None"):
        vitfrost.evaluate("vitfrost_digits", pictures, config=vitfrost.Evaluate(seed=1), progress=False)
    with pytest.raises(VitfrostError, match=r"FreezeEntries.order has no effect where Quantize.activations is 32"):
        vitfrost.plan("vitfrost_digits", vitfrost.FreezeEntries(order="merge-quantize"), vitfrost.Quantize(4, 32))
