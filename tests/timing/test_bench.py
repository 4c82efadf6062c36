"""Real runs: what a row says, resuming, artifacts beside their models, the exported runtimes."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitfrost
from vitfrost.configs import Bench, FreezeEntries
from vitfrost.errors import VitfrostError
from vitfrost.images.source import open_images
from vitfrost.model import Model
from vitfrost.runtime.runtimes import OnnxRuntime, OpenVino
from vitfrost.timing.benchmark import Benchmark, load_benchmark
from vitfrost.timing.cells import plan_cells
from vitfrost.timing.exports import place_of, with_exports
from vitfrost.timing.sessions import ModelSource
from vitfrost.timing.subjects import Subject, open_subjects

pytestmark = pytest.mark.xdist_group("bench")  # its runs are made once

EXTRA = ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf")
EXPORTS = pytest.mark.skipif(any(find_spec(name) is None for name in EXTRA), reason="the extra export is not installed")


def test_rows_say_what_was_measured(measured: tuple[Path, Benchmark]) -> None:
    folder, made = measured
    inspected = vitfrost.inspect("vitfrost_digits")
    assert load_benchmark(folder / "bench.json") == made
    assert [(row.batch, row.threads, row.image_size) for row in made.rows] == [(1, 1, (32, 32)), (3, 1, (32, 32))]
    for row in made.rows:
        assert (row.name, row.subject, row.original) == ("vitfrost_digits, torch fp32",) + ("vitfrost_digits",) * 2
        assert (row.kind, row.precision, row.effective_precision, row.device) == ("executed", "fp32", "fp32", "cpu")
        assert (row.unmodified, row.random_weights, row.weights) == (True, False, "vitfrost_digits.digits")
        assert (row.macs, row.file_bytes) == (inspected["macs_total"], 4 * inspected["parameters_total"])
        assert len(row.round_ms) == 3
        assert 0 < row.p50_ms <= row.p90_ms
        assert row.to_peer is not None
        assert row.to_peer.value == 1
        assert row.limit_share is not None
        assert row.limit_share > 0
        assert row.runtime_version.startswith("torch 2")
    first, (rate,) = made.rows[0], made.rates_of(made.rows[0])
    shares = [first.macs / (4 * 128**3) * above / below for above, below in zip(rate.round_ms, first.round_ms, strict=True)]
    assert first.limit_share == pytest.approx(sorted(shares)[1], rel=1e-3)
    assert "torch int8" in {left.name for left in made.left_out}
    assert {"ratios.png", "ratios.svg"} <= {path.name for path in folder.iterdir()}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak")
def test_memory_holds_the_weights_and_grows_with_the_batch(measured: tuple[Path, Benchmark]) -> None:
    from vitfrost.timing.memory import peak_memory
    from vitfrost.timing.sessions import ModelSource, Opening

    rows = measured[1].rows
    assert all(row.peak_memory_bytes is not None and row.peak_memory_bytes > row.file_bytes for row in rows)
    source = ModelSource("vitfrost_digits", False, "random", (32, 32), {"depth": 1})
    large = peak_memory(Opening("torch", (32, 32), source=source), 500)
    assert large is not None
    assert large > 500 * 65 * 64 * 3 * 4  # queries, keys and values of all pictures at once
    assert peak_memory(Opening("onnxruntime", (32, 32), export="nowhere"), 1) is None


def test_a_run_is_not_written_over_and_goes_on_where_it_was(measured: tuple[Path, Benchmark]) -> None:
    folder, made = measured
    config, options = Bench(("torch",), batch=(1, 3), rounds=3), {"out": folder, "progress": False}
    with pytest.raises(VitfrostError, match="holds a run already; add --resume"):
        vitfrost.bench("timm:vitfrost_digits", config, **options)
    before = {path: path.stat().st_mtime_ns for path in (folder / "groups").iterdir()}
    assert len(before) == 2
    again = vitfrost.bench("timm:vitfrost_digits", config, **options, resume=True)
    assert again == made
    assert {path: path.stat().st_mtime_ns for path in (folder / "groups").iterdir()} == before
    first, second = sorted(before)
    first.unlink()
    third = vitfrost.bench("timm:vitfrost_digits", config, **options, resume=True)
    assert first.is_file()
    assert second.stat().st_mtime_ns == before[second]
    assert third.rows[1] == made.rows[1]
    assert third.rows[0].round_ms != made.rows[0].round_ms


def test_artifacts_are_measured_beside_their_model(call: Callable, prepared, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    words = ("bench", prepared.artifact, "--runtime", "torch", "--rounds", 2, "--no-memory", "--json", out)
    called = call(*words)
    assert called.status == 0, called.err
    made = load_benchmark(out)
    rows = {row.subject: row for row in made.rows}
    assert set(rows) == {"artifact", "vitfrost_digits"}
    artifact, peer = rows["artifact"], rows["vitfrost_digits"]
    assert (artifact.kind, artifact.precision, artifact.random_weights) == ("simulated", "W4/A4", False)
    assert artifact.plan_hash is not None
    assert (peer.kind, peer.weights, peer.random_weights) == ("executed", "random:0", True)
    assert artifact.to_unmodified.to == artifact.to_peer.to == peer.name
    assert "random weights" in called.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json"]


def test_two_sizes_of_a_model_are_groups_of_their_own(tmp_path: Path) -> None:
    config = Bench(("torch",), image_size=(32, 48), rounds=2, memory=False)
    made = vitfrost.bench(["timm:vitfrost_digits"], config, weights="random", progress=False)
    assert [[row.image_size for row in rows] for rows in made.groups()] == [[(32, 32)], [(48, 48)]]
    assert made.rows[1].macs > made.rows[0].macs


@pytest.fixture(scope="module")
def artifact_run(shallow, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Benchmark]:
    """The folder and the result of an artifact, every head frozen, beside its model on ONNX Runtime and PyTorch."""
    folder = tmp_path_factory.mktemp("exported")
    shallow.compress(folder / "frozen", FreezeEntries(1.0, bits=32))
    config = Bench(("onnxruntime", "torch"), rounds=2, memory=False)
    return folder / "run", vitfrost.bench(folder / "frozen", config, weights="random", out=folder / "run", progress=False)


@EXPORTS
def test_an_artifact_and_its_model_on_two_runtimes(artifact_run: tuple[Path, Benchmark]) -> None:
    rows = {row.name: row for row in artifact_run[1].rows}
    kinds = [(row.subject, row.runtime, row.precision, row.graph) for row in rows.values()]
    onnx = {("onnxruntime", precision) for precision in ("fp32", "int8")}
    assert sorted(kinds) == sorted(
        [("frozen", *names, "lean") for names in onnx]
        + [("vitfrost_digits", *names, graph) for names in onnx for graph in ("lean", "plain")]
        + [("vitfrost_digits", "onnxruntime", "int8 (dynamic ranges)", "plain")]
        + [(subject, "torch", "fp32", "plain") for subject in ("frozen", "vitfrost_digits")]
    )
    peers = [row for row in rows.values() if row.unmodified and row.graph == "plain"]
    fastest = min(peers, key=lambda row: row.p50_ms).name  # not that of our lean graph, whichever is faster
    for name, row in rows.items():
        if row.subject == "frozen":
            assert (row.kind, row.effective_precision, row.random_weights) == ("executed", row.precision, False)
            assert row.to_unmodified.to == name.replace("frozen", "vitfrost_digits")
            assert row.macs < rows[row.to_unmodified.to].macs
        assert row.to_peer.to == fastest
        drawn = {"int8": "noise (4 pictures), for time only", "int8 (dynamic ranges)": "none"}
        assert row.calibration == drawn.get(row.precision)
    assert len(list((artifact_run[0] / "exports").iterdir())) == 7


@EXPORTS
def test_exported_folders_are_measured_as_they_are(
    artifact_run: tuple[Path, Benchmark], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One way of each int8; the others are exported by other tests.
    monkeypatch.setattr(OpenVino, "int8", ({"attention": "float"},))
    monkeypatch.setattr(OnnxRuntime, "int8", ({"ranges": "static"},))
    pictures = torch.from_numpy(np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32))
    graph = next(path for path in (artifact_run[0] / "exports").iterdir() if "onnx-int8-lean" in path.name)
    options = {"images": pictures, "progress": False, "json": tmp_path / "b.json"}
    made = vitfrost.bench(graph, Bench(("openvino", "onnxruntime"), ("bf16", "int8"), rounds=2, memory=False), **options)
    rows = {row.name: row for row in made.rows}
    assert rows[f"{graph.name}, onnxruntime int8, lean graph"].calibration.startswith("4 pictures")
    for kind in ("openvino int8 (float attention)", "onnxruntime int8"):
        row = rows[f"vitfrost_digits, {kind}"]
        assert (row.effective_precision, row.weights) == ("int8", "random:0")
        assert row.calibration.startswith("8 pictures")
        assert row.file_bytes < rows["vitfrost_digits, openvino bf16 hint"].file_bytes
    in_floats = rows["vitfrost_digits, openvino int8 (float attention)"]
    assert (in_floats.effective_precision, in_floats.unmodified) == ("int8", True)
    absent = {left.name: left.why for left in made.left_out}
    # As this CPU has it: a row that computed in bf16, or none and the reason.
    name = "vitfrost_digits, openvino int8 (float attention) + bf16 hint"
    assert rows[name].effective_precision == "int8+bf16" if name in rows else "this CPU has no bf16" in absent[name]
    with pytest.raises(VitfrostError, match="is exported for onnxruntime, which is not among the runtimes openvino"):
        vitfrost.bench(graph, Bench(runtime=("openvino",), precision=("bf16",)), json=tmp_path / "c.json", progress=False)


def test_pictures_of_one_folder_are_told_apart(pictures: Path) -> None:
    whole = open_images(pictures)
    assert place_of(whole) == place_of(open_images(pictures))
    assert len({place_of(each) for each in (whole, whole.subset(5, 0), whole.subset(5, 1))}) == 3


@EXPORTS
def test_what_has_no_attention_to_leave_is_exported_once(artifact_run: tuple[Path, Benchmark], tmp_path: Path) -> None:
    subjects = open_subjects([artifact_run[0].parent / "frozen"], "random", None)
    cells, _ = plan_cells(subjects[:1], ["openvino"], ["int8"], "cpu")
    names = ["frozen, openvino int8, lean graph", "frozen, openvino int8 (float attention), lean graph"]
    assert [cell.name for cell in cells] == names
    made, left_out = with_exports(cells, tmp_path, None, 0)
    assert [cell.name for cell in made] == names[:1]
    assert [(left.name, left.why) for left in left_out] == [(cells[1].name, "it has no products of attention to leave in floating point")]
    assert len(list((tmp_path / "exports").iterdir())) == 1


@EXPORTS
def test_a_model_without_anything_to_leave_out_has_one_graph(tmp_path: Path) -> None:
    options = {"depths": (1,), "num_heads": (3,), "img_size": 56}
    loaded = Model.open("swin_tiny_patch4_window7_224", weights="random", image_size=56, options={"depths": (1,), "num_heads": (3,)})
    source = ModelSource(loaded.name, False, "random", (56, 56), options)
    subject = Subject(
        "swin", True, source, loaded.weight_tag, loaded.state_hash, None, 1, (56, 56), source=source, loaded=loaded, peer="swin"
    )
    cells, _ = plan_cells([subject], ["onnxruntime"], ["fp32"], "cpu")
    made, left_out = with_exports(cells, tmp_path, None, 0)
    assert [cell.name for cell in made] == ["swin, onnxruntime fp32"]
    assert [(left.name, left.why) for left in left_out] == [("swin, onnxruntime fp32, lean graph", "its lean graph is the plain one")]


def test_settings_are_kept_beside_what_was_measured(measured: tuple[Path, Benchmark]) -> None:
    assert json.loads((measured[0] / "bench-settings.json").read_text())["what"] == ["vitfrost_digits"]


def test_models_in_memory_are_timed_beside_each_other(shallow: Any, tmp_path: Path) -> None:
    artifact = vitfrost.compress(shallow.model, vitfrost.plan(shallow.model, vitfrost.FreezeHeads(0.5)))
    config = vitfrost.Bench(runtime=("torch",), precision=("fp32",), rounds=3, memory=False)
    made = vitfrost.bench([shallow.model, artifact], config, json=tmp_path / "bench.json", progress=False)
    assert {row.subject: row.unmodified for row in made.rows} == {"vitfrost_digits": True, "model 2": False}
    assert {row.plan_hash for row in made.rows} == {None, artifact.plan_hash}
    assert len(repr(made)) < 200
    other = vitfrost.Model.of(shallow.model.module, name="mine")
    with pytest.raises(vitfrost.VitfrostError, match="timm cannot make this mine again"):
        vitfrost.bench(other, config, json=tmp_path / "bench.json", progress=False)
