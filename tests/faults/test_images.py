"""Folders of images and labels with something wrong in them, through all verbs that read images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitfrost.statistics.record import Statistics

GOOD, CONVERTED, SKIPPED = 10, 5, 4


@pytest.fixture
def mixed(pictures: Path, tmp_path: Path) -> Path:
    """Good pictures, pictures that need conversion, and files that are no pictures; labels for all."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name in sorted(pictures.glob("*.png"))[:GOOD]:
        shutil.copy(name, folder)
    noise = np.random.default_rng(1).integers(0, 256, (30, 44, 4), dtype=np.uint8)
    Image.fromarray(noise[..., 0]).save(folder / "gray.png")
    Image.fromarray(noise, "CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(noise).save(folder / "rgba.png")
    Image.fromarray(noise[:1, :1, :3]).save(folder / "pixel.png")
    Image.fromarray(noise[..., 0]).convert("1").save(folder / "bits.png")
    (folder / "text.png").write_text("no picture")
    (folder / "nothing.png").write_bytes(b"")
    (folder / "cut.png").write_bytes((folder / "0000.png").read_bytes()[:1500])
    (folder / "cut.jpg").write_bytes((folder / "cmyk.jpg").read_bytes()[:900])
    rows = [f"{file.name},{index % 10}" for index, file in enumerate(sorted(folder.iterdir()))]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    return folder


def test_every_verb_skips_what_is_no_picture_and_converts_the_rest(call: Callable, mixed: Path, tmp_path: Path) -> None:
    statistics, plan, artifact, row = (tmp_path / name for name in ("s.safetensors", "plan.yaml", "artifact", "row.json"))
    calibrated = call("calibrate", "--model", "vitfrost_digits", "--images", mixed, "--out", statistics, "--batch-size", 3)
    assert calibrated.status == 0
    assert "vitfrost: 4 of 19 images were skipped (" in calibrated.err
    assert all(name in calibrated.err for name in ("cut.jpg: ", "cut.png: ", "nothing.png: ", "text.png: not an image"))
    assert f"{GOOD + CONVERTED} images ({SKIPPED} skipped)" in calibrated.out
    header = Statistics.load(statistics).header
    assert (header.images, header.skipped) == (GOOD + CONVERTED, SKIPPED)
    assert call("plan", "--statistics", statistics, "--out", plan).status == 0
    words = ("--plan", plan, "--statistics", statistics, "--images", mixed)
    assert call("compress", "--model", "vitfrost_digits", *words, "--out", artifact).status == 0
    drawn = json.loads((artifact / "config.json").read_text())["quantization"]
    assert (drawn["images"], drawn["skipped"]) == (GOOD + CONVERTED, SKIPPED)
    assert call("evaluate", artifact, "--images", mixed, "--reference", "vitfrost_digits", "--json", row).status == 0
    found = json.loads(row.read_text())
    assert (found["images"], found["skipped"], found["labeled"]) == (GOOD + CONVERTED, SKIPPED, True)


def _without_pictures(folder: Path) -> Path:
    folder.mkdir()
    (folder / "notes.txt").write_text("no picture")
    return folder


def _unusable(folder: Path) -> Path:
    folder.mkdir()
    for index in range(3):
        (folder / f"{index}.png").write_text("no picture")
    (folder / "labels.csv").write_text("file,label\n0.png,0\n1.png,1\n2.png,2\n")
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder, "no image folder"),
        (_without_pictures, "holds no images; files ending in"),
        (_unusable, "none of the 3 images of"),
    ],
)
def test_folders_without_a_usable_picture(refused, prepared, tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    folder = make(tmp_path / "images")
    model = ("--model", "vitfrost_digits", "--images", folder)
    for words in (
        ("calibrate", *model, "--out", tmp_path / "s.safetensors"),
        ("compress", *model, "--plan", prepared.plan, "--statistics", prepared.statistics, "--out", tmp_path / "artifact"),
        ("evaluate", *model, "--json", tmp_path / "row.json"),
        ("evaluate", prepared.artifact, "--images", folder, "--reference", "vitfrost_digits", "--json", tmp_path / "row.json"),
    ):
        line = refused(*words)
        assert message in line
        assert str(folder) in line


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda rows: rows[:-2], "misses an image of the folder: 0038.png and 1 more; add a row or remove the image"),
        (lambda rows: [*rows, rows[4]], "names a file twice: '0003.png' (line 42); keep one row per file"),
        (lambda rows: [*rows[:-1], "0039.png,10"], "has a label out of range: 10 for '0039.png' (line 41); labels must be 0 to 9"),
        (lambda rows: [*rows[:-1], "0039.png,-1"], "has a label out of range: -1"),
        (lambda rows: [*rows[:-1], "0039.png,cat"], "has a label that is not an integer: 'cat'"),
        (lambda rows: [*rows, "0040.png,1"], "names a file that is not in"),
        (lambda rows: rows[1:], "has no header with the columns file,label"),
    ],
)
def test_wrong_labels(refused, pictures: Path, tmp_path: Path, edit: Callable[[list[str]], list[str]], message: str) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(edit((pictures / "labels.csv").read_text().split())) + "\n")
    words = ("--model", "vitfrost_digits", "--images", pictures, "--labels", table, "--json", tmp_path / "row.json")
    line = refused("evaluate", *words)
    assert message in line
    assert str(table) in line


def test_no_labels_and_no_reference(refused, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(pictures, folder, ignore=shutil.ignore_patterns("labels.csv"))
    line = refused("evaluate", "--model", "vitfrost_digits", "--images", folder)
    assert "has no labels" in line
    assert "labels.csv" in line
