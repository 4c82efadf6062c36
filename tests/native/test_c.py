"""The example in C says of a picture what Python does."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitfrost
from vitfrost.configs import Export, Quantize

EXAMPLE = Path(__file__).parents[2] / "examples" / "c"


@pytest.fixture(scope="module")
def classify(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built against the installed package."""
    package = Path(engine.__file__).parent
    if shutil.which("make") is None or shutil.which("cc") is None:
        pytest.skip("no make or no C compiler on this machine")
    if not (package / "vitfrost.h").is_file():
        pytest.skip(f"{package} is no installed package: it has no vitfrost.h")
    folder = tmp_path_factory.mktemp("c")
    for name in ("Makefile", "classify.c"):
        shutil.copy(EXAMPLE / name, folder)
    built = subprocess.run(["make", "-s", "-C", folder, f"PACKAGE={package}"], capture_output=True, text=True, check=False)
    assert (built.returncode, built.stderr) == (0, "")
    return folder / "classify"


def test_it_is_short() -> None:
    assert len((EXAMPLE / "classify.c").read_text().splitlines()) < 80


def test_it_names_the_class_that_python_names(classify: Path, shallow: Any, pictures: Path, tmp_path: Path) -> None:
    shallow.compress(tmp_path / "made", Quantize(4, 8, "strict"))
    folder = vitfrost.export(tmp_path / "made", Export("native"), out=tmp_path / "deploy", images=pictures)
    about = json.loads((folder / "export.json").read_text())["preprocessing"]
    norm = [str(value) for value in (*about["mean"], *about["std"])]
    model = folder / "model.vfn"
    for number in range(3):
        picture = tmp_path / "picture.ppm"
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(picture)
        ended = subprocess.run([classify, model, picture, *norm], capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert int(ended.stdout.split()[0]) == vitfrost.predict(folder, picture, top=1)[0].classes[0]
    (tmp_path / "small.ppm").write_bytes(b"P6 3 3 255\n" + bytes(27))
    for given, message in (
        ((model, tmp_path / "small.ppm"), "small.ppm: no binary PPM (P6, 255) of 32 x 32 pixels"),
        ((model, tmp_path / "none.ppm"), "none.ppm: no binary PPM"),
        ((tmp_path / "none.vfn", picture), "none.vfn"),
        ((folder / "export.json", picture), "export.json"),
    ):
        ended = subprocess.run([classify, *given, *norm], capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
        assert message in ended.stderr
