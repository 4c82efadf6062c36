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
        (lambda about: about.update(classes=0), "damaged"),
        (lambda about: about.pop("preprocessing"), "damaged: KeyError 'preprocessing'"),
        (lambda about: about["preprocessing"].update(interpolation="none"), "interpolation 'none' is unknown"),
        (lambda about: about.update(sha256={}), "truncated or altered"),
        (lambda about: about.update(model=[]), "damaged"),
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
