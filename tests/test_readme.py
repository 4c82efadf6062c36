"""The blocks of the README and of the notebook run, in their order, in one folder, on the bundled model.

What a reader has, ImageNet's pictures and a model that timm downloads, is replaced by what `REPLACED` names, and by nothing else.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from vitfrost.example.data import write_digit_images

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REPLACED = {
    "deit_tiny_patch16_224": "vitfrost_digits",
    "--limit 300": "--limit 40",
    "limit=300": "limit=40",
    # The demo's recipe times what it searches: see tests/example/test_demo.py.
    "--target-latency 0.93 --runtime onnxruntime-int8": "--target-macs 0.95 --search-over layers --search-images 40",
    'target_latency=0.93, runtime="onnxruntime-int8"': 'target_macs=0.95, over=("layers",), images=40',
    "--runtime onnxruntime --images": "--runtime onnxruntime --precision fp32 --rounds 2 --no-memory --images",
    "recipes/fast.yaml": "digits.yaml",
}
# Without export and bench, which the demo's recipe has: see tests/example/test_demo.py.
DIGITS = """\
kind: vitfrost recipe
version: 1
model: {name: vitfrost_digits}
calibration: {images: nowhere, limit: 40}
search: {target_macs: 0.95, over: [layers, windows], images: 40}
windowed: {window: 3}
repair: {images: 40}
evaluation: {images: nowhere}
"""
NOT_RUN = ("make ", "pip install ")
NATIVE = "native"  # in commands that take the native engine, which is built where there is a C++ compiler


def _blocks() -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.M | re.S)


def _replaced(text: str) -> str:
    for theirs, ours in REPLACED.items():
        text = text.replace(theirs, ours)
    return text


def _commands(text: str) -> list[str]:
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's folder: pictures to calibrate on, labeled pictures, one picture, a recipe."""
    monkeypatch.chdir(tmp_path)
    calibration, test = write_digit_images(tmp_path / "digits")
    calibration.rename("calibration")
    Path("imagenet-val").mkdir()
    rows = (test / "labels.csv").read_text().splitlines()
    chosen = rows[:1] + rows[1::8]
    for row in chosen[1:]:
        (test / row.partition(",")[0]).rename(Path("imagenet-val") / row.partition(",")[0])
    Path("imagenet-val/labels.csv").write_text("\n".join(chosen) + "\n")
    Path("picture.jpg").write_bytes((tmp_path / "calibration" / "0000.png").read_bytes())
    Path("digits.yaml").write_text(DIGITS)
    return tmp_path


@pytest.mark.usefixtures("unchecked")
@pytest.mark.timeout(600)
def test_every_block_runs_in_order_in_one_folder(folder: Path, call: Callable) -> None:
    pytest.importorskip("onnxruntime")
    python = 0
    for language, text in _blocks():
        if language == "python":
            python += 1
            exec(compile(_replaced(text), "README.md", "exec"), {})
            continue
        for line in _commands(text):
            if line.startswith(NOT_RUN) or (NATIVE in line and find_spec("vitfrost_native") is None):
                continue
            words = shlex.split(_replaced(line), comments=True)
            assert words[0] == "vitfrost", line
            done = call(*words[1:])
            assert done.status == 0, f"{line}\n{done.err}"
    assert python == 1
    assert {"statistics.safetensors", "fast.yaml", "fast", "fast-int8", "fast.json", "fast-bench", "w4a4", "small-int8"} <= set(
        os.listdir()
    )
    assert (folder / "runs" / "fast" / "report.html").is_file()


def test_no_two_lines_write_the_same_place() -> None:
    outs = re.findall(r"--(?:out|json) (\S+)", README) + re.findall(r'out="([^"]+)"', README)
    assert len(outs) >= 10
    assert len({out.rstrip("/") for out in outs}) == len(outs)


@pytest.mark.parametrize("theirs", REPLACED)
def test_what_is_replaced_stands_there(theirs: str) -> None:
    assert theirs in README


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


@pytest.mark.usefixtures("unchecked")
@pytest.mark.timeout(600)
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5
    assert all(cell["outputs"] == [] for cell in cells if cell["cell_type"] == "code")
    names: dict[str, object] = {}
    for number, source in enumerate(code):
        exec(compile(source, f"cell {number}", "exec"), names)
    assert (tmp_path / "vitfrost-notebook" / "deploy" / "export.json").is_file()
