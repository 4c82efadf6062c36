"""The engine behind vitfrost's verbs: exported, predicted, evaluated, timed and searched for, like the other runtimes."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import vitfrost
from vitfrost.budget.runtimes import find_target
from vitfrost.budget.timer import RuntimeTimer
from vitfrost.configs import Bench, Export, FreezeHeads, Quantize
from vitfrost.errors import VitfrostError
from vitfrost.model import as_model
from vitfrost.runtime import open_export
from vitfrost.runtime.runtimes import import_runtime
from vitfrost.timing import roofline
from vitfrost.timing import rounds as timing
from vitfrost.timing.table import format_benchmark

pytestmark = pytest.mark.usefixtures("engine")


@pytest.fixture(scope="module")
def artifact(shallow: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the heads frozen, W4/A8."""
    folder = tmp_path_factory.mktemp("native") / "small"
    shallow.compress(folder, FreezeHeads(0.5, kind="dense"), Quantize(4, 8, "strict"))
    return folder


@pytest.fixture(scope="module")
def deployed(artifact: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact as the engine's folder."""
    return vitfrost.export(artifact, Export("native"), out=tmp_path_factory.mktemp("native") / "deploy", images=pictures)


def test_the_command_writes_an_artifact_as_it_is(artifact: Path, pictures: Path, call: Callable, tmp_path: Path) -> None:
    ended = call("export", artifact, "--format", "native", "--images", pictures, "--out", tmp_path / "deploy")
    assert ended.status == 0, ended.err
    assert re.search(r"MB; logits differ by at most .*, best classes agree on .* \(native [\d.]+ \w+\)", ended.out)
    about = json.loads((tmp_path / "deploy" / "export.json").read_text())
    assert (about["format"], about["precision"], about["bits"], about["calibration"]) == ("native", "int8", "W4/A8", None)
    assert {path.name for path in (tmp_path / "deploy").iterdir()} == {"export.json", "model.vfn"}
    assert about["parity"]["correlation"] > 0.99
    assert about["checked"]["precision"] == "W4/A8"


def test_a_model_in_floating_point_is_written_in_8_bits(shallow: Any, pictures: Path, tmp_path: Path) -> None:
    folder = vitfrost.export(shallow.model, Export("native", calibration_images=16), out=tmp_path / "deploy", images=pictures)
    about = json.loads((folder / "export.json").read_text())
    assert (about["bits"], about["calibration"]["images"]) == ("W8/A8", 16)
    assert about["parity"]["correlation"] > 0.99
    with pytest.raises(VitfrostError, match=r"has activations in floating point; give images to calibrate 8 bits \(--images DIR\)"):
        vitfrost.export(shallow.model, Export("native"), out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_session_says_what_runs_it(deployed: Path, artifact: Path) -> None:
    session = open_export(deployed, threads=2)
    assert re.fullmatch(r"native [\d.]+ \w+", session.runtime)
    assert (session.precision, session.threads) == ("W4/A8", 2)
    assert session.size_bytes == (deployed / "model.vfn").stat().st_size
    pixels = np.random.default_rng(0).standard_normal((3, 3, 32, 32), dtype=np.float32)
    with torch.no_grad():
        wanted = as_model(artifact).module(torch.from_numpy(pixels)).numpy()
    assert np.abs(session.run(pixels) - wanted).max() < 0.05 * np.ptp(wanted)
    with pytest.raises(VitfrostError, match="native computes in fp32 on a CPU"):
        open_export(deployed, precision_hint="bf16")
    with pytest.raises(VitfrostError, match="is exported as native, which onnxruntime does not read"):
        open_export(deployed, runtime="onnxruntime")


def test_predictions_with_and_without_vitfrost_are_the_same(
    deployed: Path, engine: Any, pictures: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitfrost_native.__main__ import main
    from vitfrost_native.predict import shares_of

    files = [pictures / "0000.png", pictures / "0001.png"]
    wanted = vitfrost.predict(deployed, files, top=3, threads=1)
    capsys.readouterr()
    assert main([str(deployed), *map(str, files), "--top", "3", "--json"]) == 0
    for one, other in zip(wanted, json.loads(capsys.readouterr().out), strict=True):
        assert (one.file, list(one.classes), list(one.probabilities)) == (other["file"], other["classes"], other["probabilities"])
    assert main([str(deployed), str(files[0]), "--top", "1"]) == 0
    assert re.fullmatch(rf"{re.escape(str(files[0]))}: \d [\d.]+ %\n", capsys.readouterr().out)
    monkeypatch.setattr("vitfrost_native.predict.TOP", 99)  # a model with fewer classes
    assert shares_of(np.array([0.5])) == pytest.approx([0.6225], abs=1e-4)  # one output is a sigmoid
    assert main([str(deployed), str(pictures / "none.png"), str(files[0])]) == 2
    printed = capsys.readouterr()
    assert printed.out.count("%") == 10
    assert re.fullmatch(r"vitfrost: 1 of 2 pictures cannot be read \(.*none.png: No such file or directory\)\n", printed.err)
    for words, message in (
        ([deployed, pictures / "none.png"], "cannot read .*none.png: No such file"),
        ([pictures, files[0]], "is no native export: there is no .*export.json"),
        ([deployed, files[0], "--top", "99"], "top is 99, and the model has 10 classes"),
    ):
        assert main([*map(str, words)]) == 2
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1
        assert re.search(message, printed)


def test_numpy_and_pillow_are_all_it_needs(deployed: Path, engine: Any, pictures: Path, tmp_path: Path) -> None:
    """In an interpreter with no other packages, and no vitfrost."""
    import numpy
    import PIL

    for package in (numpy, PIL, engine):
        folder = Path(str(package.__file__)).parent
        (tmp_path / folder.name).symlink_to(folder)
        for libraries in folder.parent.glob(f"{'pillow' if folder.name == 'PIL' else folder.name}.libs"):
            (tmp_path / libraries.name).symlink_to(libraries)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-S", "-m", "vitfrost_native", deployed, pictures / "0000.png", "--json"]
    ended = subprocess.run([*map(str, command)], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    wanted = vitfrost.predict(deployed, pictures / "0000.png", threads=1)[0]
    assert json.loads(ended.stdout)[0]["probabilities"] == list(wanted.probabilities)


def test_a_model_file_that_was_altered_is_refused(deployed: Path, artifact: Path, pictures: Path, tmp_path: Path, capsys: Any) -> None:
    from vitfrost_native.__main__ import main

    (tmp_path / "export.json").write_bytes((deployed / "export.json").read_bytes())
    data = bytearray((deployed / "model.vfn").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.vfn").write_bytes(data)
    with pytest.raises(VitfrostError, match=r"model\.vfn is not the file that was exported"):
        open_export(tmp_path)
    assert main([str(tmp_path), str(pictures / "0000.png")]) == 2
    assert "model.vfn is not the file that was exported" in capsys.readouterr().err


def test_rows_of_evaluate_are_executed(deployed: Path, artifact: Path, pictures: Path) -> None:
    executed, simulated = (vitfrost.evaluate(str(folder), pictures, progress=False) for folder in (deployed, artifact))
    assert (executed.kind, executed.precision, simulated.kind, simulated.precision) == ("executed", "W4/A8", "simulated", "W4/A8")
    assert executed.runtime.startswith("native")


def test_bench_puts_it_beside_the_peers(artifact: Path, engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "SIDE", 128)
    monkeypatch.setattr(timing, "SLOT_SECONDS", 0.01)
    config = Bench(("native", "torch"), rounds=2, isa=True, profile=True, memory=False)
    made = vitfrost.bench(artifact, config, weights="random", out=tmp_path / "run", progress=False)
    rows = {(row.subject, row.precision): row for row in made.rows if row.runtime == "native"}
    isas = engine.isas()
    assert set(rows) == {(name, f"{bits} ({isa})") for name, bits in (("small", "W4/A8"), ("vitfrost_digits", "W8/A8")) for isa in isas}
    for (name, precision), row in rows.items():
        assert (row.kind, row.effective_precision) == ("executed", precision.partition(" ")[0])
        assert row.runtime_version.endswith(precision.partition("(")[2].strip(")"))
        assert row.to_peer.to == "vitfrost_digits, torch fp32"
        assert row.limit_share > 0
        assert (row.to_unmodified is None) == (name == "vitfrost_digits")
        assert row.calibration == ("none" if name == "small" else "noise (4 pictures), for time only")
        assert sum(step.ms for step in row.profile) > 0
    simulated = next(row for row in made.rows if row.subject == "small" and row.runtime == "torch")
    assert (simulated.kind, simulated.profile) == ("simulated", None)
    shown = io.StringIO()
    Console(width=100, file=shown).print(format_benchmark(made))
    text = shown.getvalue()
    assert f"small, native W4/A8 ({isas[0]}): " in text
    assert "GMAC/s" in text


def test_an_exported_folder_is_timed_as_it_is(deployed: Path, tmp_path: Path) -> None:
    config = Bench(("native",), rounds=2, memory=True)
    made = vitfrost.bench(deployed, config, weights="random", json=tmp_path / "b.json", progress=False)
    row = next(row for row in made.rows if row.subject == "deploy")
    assert (row.precision, row.calibration, row.file_bytes) == ("W4/A8", "none", (deployed / "model.vfn").stat().st_size)
    assert 0 < row.peak_memory_bytes < 50e6


def test_a_search_times_models_on_it(shallow: Any, pictures: Path) -> None:
    target = find_target("native", 1)
    assert (target.name, target.packages) == ("native", ("vitfrost_native",))
    assert target.setup().runtime == "native"
    with RuntimeTimer(shallow.model, target, pictures, 0, False) as timer:
        timed = timer.time({"same": lambda: shallow.model}, "test", 0.1)
    assert len(timed.models["same"]) == len(timed.original) >= 12


def test_without_the_package_every_way_to_it_says_so(
    artifact: Path, deployed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vitfrost_native", None)
    command = r"vitfrost_native is not installed; make install, or pip install \./native \(it takes a C\+\+ compiler\)"
    for run in (lambda: open_export(deployed), lambda: import_runtime("vitfrost_native")):
        with pytest.raises(VitfrostError, match=command):
            run()
    with pytest.raises(VitfrostError, match=command):
        vitfrost.export(artifact, Export("native"), out=tmp_path / "deploy")
    assert not (tmp_path / "deploy").exists()
