"""On a machine that has NumPy, Pillow and one runtime, and nothing else, an export runs and gives the same bits."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vitfrost
from vitfrost.runtime import open_export

CODE = """
import sys
for name in ("torch", "timm", "torchvision", "pydantic", "rich", "sklearn", "jaxtyping", "tyro", "yaml"):
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(f"{name} is there")
import numpy as np
from vitfrost.runtime import open_export
session = open_export(sys.argv[1], threads=1)
np.save(sys.argv[2], session.run(np.load(sys.argv[3])))
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with links to vitfrost, NumPy and Pillow alone, to be an interpreter's only packages."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "vitfrost").symlink_to(Path(vitfrost.__file__).parent)
    for name in ("numpy", "PIL"):
        link(folder, name)
    return folder


def link(folder: Path, name: str) -> None:
    found = importlib.util.find_spec(name)
    assert found is not None
    assert found.origin is not None
    package = Path(found.origin).parent
    (folder / name).symlink_to(package)
    for libraries in package.parent.glob(f"{'pillow' if name == 'PIL' else name}.libs"):
        (folder / libraries.name).symlink_to(libraries)


def run(packages: Path, *words: object) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, "-S", *map(str, words)], env={**environment, "PYTHONPATH": str(packages)}, cwd=packages, capture_output=True,
        text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(("form", "runtime"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_it_runs_and_gives_the_same_bits(
    exported: dict[str, Path], bare: Path, pictures: Path, tmp_path: Path, form: str, runtime: str
) -> None:
    link(bare, runtime)
    pixels = np.random.default_rng(0).standard_normal((3, 3, 32, 32), dtype=np.float32)
    np.save(tmp_path / "pixels.npy", pixels)
    ended = run(bare, "-c", CODE, exported[form], tmp_path / "logits.npy", tmp_path / "pixels.npy")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert np.array_equal(np.load(tmp_path / "logits.npy"), open_export(exported[form], threads=1).run(pixels))

    ended = run(bare, "-m", "vitfrost.runtime", exported[form], pictures / "0000.png", "--top", "2", "--threads", "1", "--json")
    assert ended.returncode == 0, ended.stderr
    expected = vitfrost.predict(exported[form], pictures / "0000.png", top=2, threads=1)[0]
    assert json.loads(ended.stdout)[0]["classes"] == list(expected.classes)
    ended = run(bare, "-m", "vitfrost.runtime", exported[form], pictures / "none.png")
    assert ended.returncode == 2
    assert ended.stderr == f"vitfrost: cannot read {pictures / 'none.png'}: No such file or directory\n"


@pytest.mark.parametrize(("form", "runtime"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_missing_runtime_is_named(exported: dict[str, Path], pictures: Path, tmp_path: Path, form: str, runtime: str) -> None:
    (tmp_path / "vitfrost").symlink_to(Path(vitfrost.__file__).parent)
    for name in ("numpy", "PIL"):
        link(tmp_path, name)
    ended = run(tmp_path, "-m", "vitfrost.runtime", exported[form], pictures / "0000.png")
    assert ended.returncode == 2
    assert ended.stderr == f"vitfrost: {runtime} is not installed; pip install {runtime}\n"
