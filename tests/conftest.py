"""Fixtures shared by all tests; jaxtyping's shape annotations are checked with beartype under pytest only."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, which asks for it once

sys.dont_write_bytecode = False  # what the next line makes of every module takes 15 seconds to compile, in each worker

import jaxtyping  # noqa: E402

from .annotations import RunningTest, checked  # noqa: E402

jaxtyping.jaxtyped = checked(jaxtyping.jaxtyped)  # what the import hook decorates everything with
jaxtyping.install_import_hook("vitfrost", "beartype.beartype")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from PIL import Image  # noqa: E402

from vitfrost.model import Model  # noqa: E402

from .pages import Browser, Page  # noqa: E402
from .processes import Started  # noqa: E402

if TYPE_CHECKING:
    from vitfrost.artifact import Artifact
    from vitfrost.statistics.record import Statistics
settings.register_profile("vitfrost", deadline=None, max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vitfrost")


@pytest.hookimpl(tryfirst=True)  # before the plugin reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the folders that `exported` takes seconds to make run in one worker, so they are made once."""
    for item in items:
        if "exported" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("exported"))


def pytest_collection_finish() -> None:
    """What has been imported by now stays: the garbage collector need not look at it in every full collection."""
    gc.freeze()
    gc.set_threshold(5000, 10, 10)


def pytest_runtest_setup() -> None:
    """Annotations are checked in every test anew."""
    RunningTest.number += 1


@contextmanager
def unchecked_shapes() -> Iterator[None]:
    """Annotations are not checked meanwhile."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Annotations are not checked: for the whole path, whose parts are checked in tests of their own; checks take a quarter of its time."""
    with unchecked_shapes():
        yield


@pytest.fixture(scope="session", autouse=True)
def _unchecked_traces() -> Iterator[None]:
    """Annotations are not meant for the symbols that stand for sizes in a trace."""
    import torch

    trace = torch.export.export
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.export, "export", unchecked_shapes()(trace))
        yield


SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real weights and images beside the repository; skips where it is absent."""
    if not (SHARED_DATA / "deit_tiny_patch16_224" / "model.safetensors").is_file():
        pytest.skip(f"no real weights and images at {SHARED_DATA}")
    return SHARED_DATA


def write_pictures(folder: Path, count: int, size: int = 40, seed: int = 0, classes: int = 10) -> Path:
    """Colored noise with a bright blob, one PNG each, and labels.csv; deterministic."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lines = ["file,label"]
    for index in range(count):
        pixels = rng.integers(0, 120, (size, size, 3), dtype=np.uint8)
        y, x = rng.integers(0, size - 8, 2)
        pixels[y : y + 8, x : x + 8] += 120
        Image.fromarray(pixels).save(folder / f"{index:04d}.png")
        lines.append(f"{index:04d}.png,{index % classes}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty labeled pictures."""
    return write_pictures(tmp_path_factory.mktemp("pictures") / "images", 40)


@dataclass(frozen=True)
class Called:
    """How a command ended."""

    status: int
    out: str
    err: str


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Called]:
    """Run a command line in this process: call("plan", "--statistics", path, ...); `main` of another program than `vitfrost`."""
    from vitfrost import cli

    def called(*words: object, main: Callable[[list[str]], None] = cli.main) -> Called:
        capsys.readouterr()
        status = 0
        try:
            main([str(word) for word in words])
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 0
        return Called(status, *capsys.readouterr())

    return called


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """What vitfrost logged since the last call, progress and warnings, line by line."""
    caplog.set_level(logging.INFO, "vitfrost")

    def logged() -> str:
        text = "\n".join(caplog.messages)
        caplog.clear()
        return text

    return logged


@pytest.fixture
def started() -> type[Started]:
    """Start a command line as a process of its own: started("plan", "--statistics", path, ...)."""
    return Started


@dataclass(frozen=True)
class Prepared:
    """The files of the main path for the bundled digits model."""

    statistics: Path
    plan: Path
    artifact: Path


@pytest.fixture(scope="session")
def prepared(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Statistics, plan and artifact of `vitfrost_digits`, made by the commands."""
    from vitfrost.cli import main

    folder = tmp_path_factory.mktemp("prepared")
    made = Prepared(folder / "statistics.safetensors", folder / "plan.yaml", folder / "artifact")
    model = ["--model", "vitfrost_digits"]
    main(["calibrate", *model, "--images", str(pictures), "--limit", "12", "--out", str(made.statistics)])
    main(["plan", "--statistics", str(made.statistics), "--out", str(made.plan)])
    drawn = ["--images", str(pictures), "--calibration-images", "4"]
    main(["compress", *model, "--plan", str(made.plan), "--statistics", str(made.statistics), *drawn, "--out", str(made.artifact)])
    return made


@dataclass(frozen=True)
class Shallow:
    """A model of two layers, for what does not depend on how many there are."""

    model: Model
    statistics: Statistics
    pictures: Path

    def compress(self, out: Path, *methods: Any) -> Artifact:
        """The model compressed into `out` by the methods, in full precision unless they say otherwise."""
        import vitfrost
        from vitfrost.configs import Compress, Quantize

        quantized = any(isinstance(method, Quantize) for method in methods)
        plan = vitfrost.plan(self.statistics, *methods, *(() if quantized else (Quantize(32, 32),)))
        config = Compress(calibration_images=4, compact_images=8)
        return vitfrost.compress(self.model, plan, statistics=self.statistics, images=self.pictures, config=config, out=out)


@pytest.fixture(scope="session")
def shallow(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Shallow:
    """Two layers like the bundled digits model's, with weights from a file that give logits as large as a trained model's; statistics."""
    from safetensors.torch import save_file

    import vitfrost

    weights = tmp_path_factory.mktemp("shallow") / "model.safetensors"
    state = Model.open("vitfrost_digits", weights="random", options={"depth": 2}).module.state_dict()
    save_file(state | {"head.weight": 100 * state["head.weight"]}, weights)
    model = Model.open("vitfrost_digits", weights=weights, options={"depth": 2})
    return Shallow(model, vitfrost.calibrate(model, pictures, vitfrost.Calibrate(limit=12), progress=False), pictures)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundled digits model as exported folders in fp32, by format."""
    import vitfrost
    from vitfrost.configs import Export

    folder = tmp_path_factory.mktemp("exported")
    forms: tuple[Any, ...] = ("onnx", "openvino")
    return {form: vitfrost.export("vitfrost_digits", Export(form), out=folder / form) for form in forms}


@pytest.fixture(scope="session")
def parse_page() -> Callable[[str], Page]:
    """Read a page's text."""
    return Page


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    """Chromium; skips where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine")
    return Browser(program, tmp_path)
