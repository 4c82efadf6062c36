"""What people give that is nearly right: sizes as height x width, names and folders of the hub, models without attention that is known."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import vitfrost
from vitfrost.configs import Bench
from vitfrost.errors import VitfrostError
from vitfrost.model import Model
from vitfrost.timing.group import measure_group

TINY = ("--model", "vit_tiny_patch16_224", "--weights", "random", "--model-option", "depth=1")


def test_sizes_are_height_by_width(call: Callable, tmp_path: Path) -> None:
    assert call("inspect", *TINY, "--image-size", "64x32", "--json", tmp_path / "a.json").status == 0
    assert json.loads((tmp_path / "a.json").read_text())["image_size"] == [64, 32]
    assert "give pixels, such as 224, or height x width" in call("inspect", *TINY, "--image-size", "64x").err
    bench = ("bench", "timm:test_vit", "--weights", "random", "--runtime", "torch", "--precision", "fp32", "--rounds", 2, "--no-memory")
    ended = call(*bench, "--image-size", "64x96,64", "--json", tmp_path / "bench.json")
    assert ended.status == 0, ended.err
    assert [row["image_size"] for row in json.loads((tmp_path / "bench.json").read_text())["rows"]] == [[64, 64], [64, 96]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf-hub:timm/vit_tiny_patch16_224", "nothing else is downloaded; give the architecture's name, such as vit_tiny_patch16_224"),
        ("facebook/deit-tiny", "no artifact folder facebook/deit-tiny"),
        ("convit_tiny", "ConVit has GPSA at 'blocks.0.attn', which is not supported"),
        ("x" * 5000, "timm has no model 'xxx"),
    ],
)
def test_names_that_are_none_of_ours(name: str, message: str) -> None:
    with pytest.raises(VitfrostError, match=message):
        vitfrost.inspect(Model.open(name, weights="random"))


def test_folders_of_the_hub(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = Model.open("test_vit", weights="random").module.state_dict()
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit", "num_classes": 1000}))
    assert Model.open("test_vit", weights=tmp_path).weight_tag == f"file:{tmp_path.name}"
    with pytest.raises(VitfrostError, match="holds weights of test_vit, no artifact; name the model, and give --weights"):
        Model.open(tmp_path)


def test_a_cell_that_cannot_be_exported_is_left_out_and_not_tried_again(tmp_path: Path) -> None:
    """A graph with an operator that OpenVINO does not have, beside PyTorch, which has it."""
    model = Model.open("vit_tiny_patch16_224", weights="random", image_size=32, options={"depth": 1, "dynamic_img_size": True})
    config = Bench(("openvino", "torch"), precision=("fp32",), rounds=2, memory=False)
    made = vitfrost.bench([model], config, out=tmp_path / "run", progress=False)
    assert {row.runtime for row in made.rows} == {"torch"}
    (left,) = [left for left in made.left_out if "openvino" in left.name and "lean" not in left.name]
    assert "No conversion rule found for operations" in left.why
    files = sorted((tmp_path / "run" / "exports").glob("*.failed.json"))
    assert files
    files[0].write_text(files[0].read_text().replace("No conversion rule", "No such rule"))
    again = vitfrost.bench([model], config, out=tmp_path / "run", resume=True, progress=False)
    assert any("No such rule" in left.why for left in again.left_out)


def test_a_group_that_fails_is_left_out_and_measured_by_a_run_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a cell whose exporter raises what nobody expects."""
    measured = measure_group

    def fails(cells, batch, *more):
        if batch == 2:
            raise MemoryError("no room for 2")
        return measured(cells, batch, *more)

    def exports(*given, **more):
        raise RecursionError("too deep")

    monkeypatch.setattr("vitfrost.timing.bench.measure_group", fails)
    monkeypatch.setattr("vitfrost.timing.exports.export_graph", exports)
    model = Model.open("vitfrost_digits", weights="random", options={"depth": 1})
    config = Bench(("onnxruntime", "torch"), batch=(1, 2), precision=("fp32",), rounds=2, memory=False)
    made = vitfrost.bench([model], config, out=tmp_path / "run", progress=False)
    assert {(row.runtime, row.batch) for row in made.rows} == {("torch", 1)}
    why = " ".join(left.why for left in made.left_out)
    assert "RecursionError too deep" in why
    assert "32 px, batch 2, threads 1 could not be measured: MemoryError no room for 2" in why
    monkeypatch.setattr("vitfrost.timing.bench.measure_group", measured)
    again = vitfrost.bench([model], config, out=tmp_path / "run", resume=True, progress=False)
    assert {(row.runtime, row.batch) for row in again.rows} == {("torch", 1), ("torch", 2)}
    assert any("RecursionError too deep" in left.why for left in again.left_out)


def test_a_full_disk_is_said_whatever_a_tool_says_of_it_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given, **more):
        raise RuntimeError("basic_ios::clear: iostream error")

    room = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr("vitfrost.deploy.export._write_graph", full)
    monkeypatch.setattr("vitfrost.deploy.export.shutil.disk_usage", lambda path: room)
    model = Model.open("vitfrost_digits", weights="random", options={"depth": 1})
    config = Bench(("openvino", "torch"), precision=("fp32",), rounds=2, memory=False)
    made = vitfrost.bench([model], config, out=tmp_path / "run", progress=False)
    assert all("No space left on device" in left.why for left in made.left_out)
    assert not list((tmp_path / "run" / "exports").iterdir())
