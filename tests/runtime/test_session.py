from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitfrost
from vitfrost.errors import VitfrostError
from vitfrost.files import sha256_of_file
from vitfrost.images.decode import to_rgb
from vitfrost.images.preprocess import Preprocess
from vitfrost.model import as_model
from vitfrost.runtime import open_export
from vitfrost.runtime.predict import text_of


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_what_a_session_says_of_itself(exported: dict[str, Path], form: str) -> None:
    session = open_export(exported[form], threads=1)
    assert session.threads == 1
    assert session.precision == "fp32"
    assert re.fullmatch({"onnx": r"onnxruntime [\d.]+ cpu", "openvino": r"openvino [\d.]+ cpu"}[form], session.runtime)
    assert session.size_bytes == sum(path.stat().st_size for path in exported[form].iterdir() if path.name != "export.json")
    assert session.about["model"]["name"] == "vitfrost_digits"


def pictures_of(folder: Path) -> list[Path]:
    """Pictures of several shapes and modes; one is turned by its EXIF data, which nobody reads."""
    rng = np.random.default_rng(0)
    made = []
    for mode, size in (("RGB", (40, 31)), ("RGBA", (13, 70)), ("L", (24, 24)), ("P", (32, 50)), ("I;16", (9, 9))):
        values = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        image = Image.fromarray(values[..., 0].astype(np.uint16) * 200) if mode == "I;16" else Image.fromarray(values).convert(mode)
        made.append(folder / f"{mode.replace(';', '')}.png")
        image.save(made[-1])
    exif = Image.Exif()
    exif[0x0112] = 6
    made.append(folder / "turned.jpg")
    Image.fromarray(rng.integers(0, 256, (31, 40, 3), dtype=np.uint8)).save(made[-1], exif=exif)
    return made


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_predictions_are_those_of_the_model_on_the_same_bits(exported: dict[str, Path], form: str, tmp_path: Path) -> None:
    files, loaded, session = pictures_of(tmp_path), as_model("vitfrost_digits"), open_export(exported[form], threads=1)
    preprocess = Preprocess(loaded.preprocessing)
    found = session.predict(files, top=3)
    for file, prediction in zip(files, found, strict=True):
        with Image.open(file) as image:
            pixels = preprocess(to_rgb(image))
            assert np.array_equal(session.preprocess(image), pixels.numpy())
        with torch.no_grad():
            best = loaded.module(pixels[None]).softmax(-1)[0].topk(3)
        assert prediction.file == str(file)
        assert list(prediction.classes) == best.indices.tolist()
        assert np.allclose(prediction.probabilities, best.values.numpy(), atol=1e-5)
    assert session.predict(str(files[0]), top=3) == found[:1]


def test_the_command_prints_classes_or_json(exported: dict[str, Path], pictures: Path, call: Callable) -> None:
    files = [pictures / "0000.png", pictures / "0001.png"]
    ended = call("predict", exported["onnx"], *files, "--top", "2", "--threads", "1")
    assert ended.status == 0
    assert re.fullmatch(rf"{re.escape(str(files[0]))}: \d [\d.]+ %, \d [\d.]+ %\n.*0001.png: .*\n", ended.out)
    rows = json.loads(call("predict", exported["onnx"], *files, "--json").out)
    expected = vitfrost.predict(exported["onnx"], files, threads=1)
    assert [row["classes"] for row in rows] == [list(one.classes) for one in expected]
    assert all(len(row["probabilities"]) == 5 for row in rows)


def test_bad_input_is_one_line(exported: dict[str, Path], pictures: Path, call: Callable, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    picture = pictures / "0000.png"
    for words, message in (
        ((exported["onnx"], tmp_path / "text.png"), "text.png: not an image"),
        ((exported["onnx"], tmp_path / "none.png"), "none.png: No such file or directory"),
        ((exported["onnx"], picture, "--top", "11"), "top is 11; the model has 10 classes"),
        ((exported["onnx"], picture, "--threads", "0"), "threads must be at least 1"),
        ((tmp_path, picture), "has no export.json"),
    ):
        ended = call("predict", *words)
        assert (ended.status, ended.err.count("\n")) == (2, 1)
        assert message in ended.err


@pytest.mark.parametrize("pixels", [np.zeros((1, 3, 32, 31), np.float32), np.zeros((3, 32, 32), np.float32),
                                    np.zeros((0, 3, 32, 32), np.float32), np.zeros((1, 3, 32, 32))])  # fmt: skip
def test_other_shapes_and_types_are_refused(exported: dict[str, Path], pixels: np.ndarray) -> None:
    with pytest.raises(VitfrostError, match=r"float32 \[B, 3, 32, 32\]"):
        open_export(exported["onnx"], threads=1).run(pixels)


def test_a_runtime_older_than_a_graph_asks_for_is_said(exported: dict[str, Path], tmp_path: Path, messages: Callable[[], str]) -> None:
    folder = Path(shutil.copytree(exported["onnx"], tmp_path / "export"))
    about = json.loads((folder / "export.json").read_text())
    assert about["needs"] == {"onnxruntime": "1.23"}
    about["needs"] = {"onnxruntime": "99.1"}
    (folder / "export.json").write_text(json.dumps(about))
    open_export(folder, threads=1)
    said = "export needs onnxruntime 99.1 or newer, and here is "
    assert said in messages()
    (folder / "model.onnx").write_bytes(b"of an opset to come")
    about["sha256"] = {"model.onnx": sha256_of_file(folder / "model.onnx")}
    (folder / "export.json").write_text(json.dumps(about))
    with pytest.raises(VitfrostError, match=said):
        open_export(folder, threads=1)


def test_hints_are_for_openvino(exported: dict[str, Path]) -> None:
    with pytest.raises(VitfrostError, match="onnxruntime computes in fp32 on a CPU; the precision hint bf16 goes with openvino exports"):
        open_export(exported["onnx"], precision_hint="bf16")
    with pytest.raises(VitfrostError, match="'int4' is unknown; choose one of fp32, bf16"):
        open_export(exported["openvino"], precision_hint="int4")


def test_one_unreadable_picture_does_not_cost_the_others(exported: dict[str, Path], pictures: Path, call: Callable, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    files = [pictures / "0000.png", tmp_path / "text.png", pictures / "0001.png"]
    expected = call("predict", exported["onnx"], files[0], files[2]).out
    ended = call("predict", exported["onnx"], *files)
    assert (ended.status, ended.out) == (2, expected)
    assert ended.err == f"vitfrost: 1 of 3 pictures cannot be read ({files[1]}: not an image)\n"
    rows = json.loads(call("predict", exported["onnx"], *files, "--json").out)
    assert [row.get("problem") for row in rows] == [None, "not an image", None]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The digits model with another number of outputs, exported."""

    def made(classes: int) -> Path:
        folder = tmp_path_factory.mktemp("few") / "export"
        model = vitfrost.Model.open("vitfrost_digits", weights="random", classes=classes, options={"depth": 1})
        return vitfrost.export(model, vitfrost.Export("onnx"), out=folder)

    return made


def test_one_output_is_a_sigmoid(few: Callable[[int], Path], pictures: Path) -> None:
    session = open_export(few(1), threads=1)
    (found,) = session.predict(pictures / "0000.png")
    with Image.open(pictures / "0000.png") as image:
        logit = session.run(session.preprocess(image)[None])[0, 0]
    assert found.classes == (0,)
    assert found.probabilities[0] == pytest.approx(1 / (1 + np.exp(-logit)))
    assert found.probabilities[0] != 1


def test_a_model_without_classes_predicts_its_embedding(few: Callable[[int], Path], pictures: Path) -> None:
    session = open_export(few(0), threads=1)
    with Image.open(pictures / "0000.png") as image:
        (wanted,) = session.run(session.preprocess(image)[None])
    (found,) = session.predict(pictures / "0000.png")
    assert session.outputs == "embedding"
    assert found.classes == ()
    assert found.embedding == pytest.approx(wanted.tolist())
    assert f"an embedding of {len(wanted)} numbers" in text_of([found], as_json=False)
    assert json.loads(text_of([found], as_json=True))[0]["embedding"] == list(found.embedding)
    with pytest.raises(VitfrostError, match="gives an embedding, no classes; leave top out"):
        session.predict(pictures / "0000.png", top=1)


def test_three_classes_need_no_top(few: Callable[[int], Path], pictures: Path) -> None:
    assert len(open_export(few(3), threads=1).predict(pictures / "0000.png")[0].classes) == 3


def test_weights_beside_the_graph_are_counted_and_hashed(few: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitfrost.deploy.graph.MOST_BYTES_IN_ONE_FILE", 1000)
    folder = few(4)
    weights = folder / "model.onnx.data"
    session = open_export(folder, threads=1)
    assert session.size_bytes == weights.stat().st_size + (folder / "model.onnx").stat().st_size
    assert session.run(np.zeros((1, 3, 32, 32), np.float32)).shape == (1, 4)
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 0xFF
    weights.write_bytes(content)
    with pytest.raises(VitfrostError, match=r"model\.onnx\.data is not the file that was exported"):
        open_export(folder)
