"""The example in C says of a picture what Python does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitfrost
from vitfrost.configs import Export, Quantize

from .simulation import quantized, write

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


def test_a_deit_tiny_of_four_bits_is_small_on_disk_and_in_memory(classify: Path, engine: Any, tmp_path: Path) -> None:
    """The library is stripped: at most 1 MB. The file has at most 3.4 MB; a process that opens and runs it takes at most 25 MB."""
    assert (Path(engine.__file__).parent / engine.library.NAME).stat().st_size <= 1e6
    options = {"depth": 12, "embed_dim": 192, "num_heads": 3, "num_classes": 1000}
    model = write(quantized(4, 4, name="deit_tiny_patch16_224", size=224, **options), tmp_path / "model.vfn")
    assert model.stat().st_size <= 3.4e6
    picture = tmp_path / "picture.ppm"
    Image.new("RGB", (224, 224), (90, 120, 30)).save(picture)
    # From a small process: what one holds before it becomes another program counts as that one's memory.
    script = (
        "import os, sys\n"
        "_, status, used = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0)\n"
        "print(status, used.ru_maxrss, file=sys.stderr)"
    )
    command = [sys.executable, "-S", "-E", "-c", script, classify, model, picture, *["0.5"] * 6]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    status, kibibytes = map(int, ended.stderr.split())
    assert status == 0
    assert kibibytes * 1024 <= 25e6
