from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitfrost.errors import VitfrostError
from vitfrost.runtime import open_export
from vitfrost.runtime.folder import read_export


@pytest.fixture
def folder(exported: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported["openvino"], tmp_path / "export"))


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    about = json.loads((folder / "export.json").read_text())
    edit(about)
    (folder / "export.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda about: about.update(version=2), "exported model version 2, this vitfrost reads up to 1; update vitfrost"),
        (lambda about: about.update(version="1"), "version is '1'; it should be 1; export again"),
        (lambda about: about.update(kind="vitfrost plan"), "is not an exported model: its kind is 'vitfrost plan'"),
        (lambda about: about.update(format="tflite"), "damaged"),
        (lambda about: about.update(classes=-1), "damaged: classes is -1"),
        (lambda about: about.pop("preprocessing"), "damaged: preprocessing is missing"),
        (lambda about: about["preprocessing"].update(interpolation="none"), "interpolation 'none' is unknown"),
        (lambda about: about.update(sha256={}), "truncated or altered"),
        (lambda about: about.update(model=[]), r"damaged: model is \[\]"),
        (lambda about: about["model"].update(image_size=[32, 33]), "pictures are read at"),
        (lambda about: about["model"].pop("weight_tag"), "damaged: model.weight_tag is missing"),
        (lambda about: about["preprocessing"].update(std=[0, 1, 1]), "the std"),
        (lambda about: about["preprocessing"].update(std=[1e-300, 1, 1]), "the std"),
        (lambda about: about["preprocessing"].update(mean=[0, 0, 1e300]), "the mean"),
        (lambda about: about["preprocessing"].update(crop_pct=1e-320), "crop_pct"),
        (lambda about: about["preprocessing"].update(input_size=[3, 10**6, 10**6]), "input size"),
        (lambda about: about["sha256"].update({"../model.bin": "0" * 64}), "damaged: sha256 is"),
        (lambda about: about.update(classes=7), "is not the one that export.json tells of"),
        (lambda about: about.update(class_names=["a"] * 9), "9 class_names for 10 classes"),
        (lambda about: about.update(seeds={"export": "x"}), "damaged: seeds is"),
    ],
)
def test_what_it_says_must_have_a_meaning(folder: Path, edit: Callable[[dict[str, Any]], Any], message: str) -> None:
    assert read_export(folder)["classes"] == 10
    change(folder, edit)
    with pytest.raises(VitfrostError, match=message):
        open_export(folder)


def test_altered_truncated_and_missing_files_are_refused(folder: Path) -> None:
    weights = folder / "model.bin"
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)
    with pytest.raises(VitfrostError, match=r"model\.bin is not the file that was exported"):
        open_export(folder)
    weights.write_bytes(content[:100])
    with pytest.raises(VitfrostError, match="truncated or altered"):
        open_export(folder)
    weights.unlink()
    with pytest.raises(VitfrostError, match=r"has no model\.bin; export again"):
        open_export(folder)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VitfrostError, match="no folder"):
        open_export(tmp_path / "nowhere")
    with pytest.raises(VitfrostError, match=r"it has no export\.json; make one with vitfrost export"):
        open_export(tmp_path)
    (tmp_path / "export.json").write_text("{")
    with pytest.raises(VitfrostError, match="not readable JSON"):
        open_export(tmp_path)
