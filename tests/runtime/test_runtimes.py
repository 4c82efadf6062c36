"""A runtime is one class: named in the registry, it opens exported folders and is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vitfrost.errors import VitfrostError
from vitfrost.runtime import open_export
from vitfrost.runtime.runtimes import FORMATS, PRECISIONS, RUNTIMES, OnnxRuntime, cause_of, cores, default_threads
from vitfrost.timing.cells import plan_cells
from vitfrost.timing.sessions import ModelSource, Opening
from vitfrost.timing.subjects import Subject


class Added(OnnxRuntime):
    """A runtime that somebody added: it reads the format of another one."""

    name = "added"
    hints = ("fp32", "bf16")
    int8 = ({},)

    def __init__(self, folder: Path, threads: int, hint: str):
        super().__init__(folder, threads, "fp32")
        self.label, self.precision = "added 1 cpu", hint

    def run(self, pixels: np.ndarray) -> np.ndarray:
        return 2 * super().run(pixels)


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RUNTIMES, "added", Added)


@pytest.mark.usefixtures("added")
def test_an_added_runtime_opens_folders_of_its_format(exported: dict[str, Path]) -> None:
    pixels = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)
    session = open_export(exported["onnx"], threads=1, precision_hint="bf16", runtime="added")
    assert (session.runtime, session.precision, session.threads) == ("added 1 cpu", "bf16", 1)
    assert np.array_equal(session.run(pixels), 2 * open_export(exported["onnx"], threads=1).run(pixels))
    opened = Opening("added", (32, 32), 1, export=str(exported["onnx"])).open()
    assert np.array_equal(opened.run(pixels), session.run(pixels))
    with pytest.raises(VitfrostError, match="is exported as openvino, which added does not read"):
        open_export(exported["openvino"], runtime="added")


@pytest.mark.usefixtures("added")
def test_an_added_runtime_is_put_beside_the_others() -> None:
    source = ModelSource("vitfrost_digits", False, "random")
    subject = Subject("digits", True, source, "random:0", "", None, 1, (32, 32), source=source)
    cells, left_out = plan_cells([subject], ["onnxruntime", "added"], PRECISIONS, "cpu")
    found = [(cell.shown_precision, cell.graph) for cell in cells if cell.runtime == "added"]
    assert found == [(precision, graph) for precision in ("fp32", "bf16 hint", "int8", "int8 + bf16 hint") for graph in ("plain", "lean")]
    assert [left.name for left in left_out] == ["onnxruntime bf16"]


def test_every_runtime_says_what_it_is() -> None:
    assert {kind.name: kind.precisions() for kind in RUNTIMES.values()} == {
        "openvino": ("fp32", "bf16", "int8"),
        "onnxruntime": ("fp32", "int8"),
        "native": ("int8",),
    }
    assert {form: kind.name for form, kind in FORMATS.items()} == {"onnx": "onnxruntime", "openvino": "openvino", "native": "native"}


def test_threads_are_those_of_the_environment_or_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, expected in (("3", 3), ("0", cores()), ("many", cores()), ("", cores())):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert default_threads() == expected


def test_the_cause_is_what_the_innermost_error_says_first() -> None:
    def wrapped(how: str) -> Exception:
        try:
            try:
                raise ValueError("the strides do not fit\n\nwhile executing a node")
            except ValueError as inner:
                raise TypeError("step 2 failed; file an issue") from (inner if how == "from" else None)
        except TypeError as error:
            return error

    assert cause_of(wrapped("from")) == "ValueError the strides do not fit"
    assert cause_of(wrapped("none")) == "TypeError step 2 failed; file an issue"
    assert cause_of(KeyError()) == "KeyError"
