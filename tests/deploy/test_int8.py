"""int8: what is quantized, how, on which pictures, and that nothing leaves the machine or its folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitfrost
from vitfrost.configs import Export, Quantize
from vitfrost.deploy.export import export_graph
from vitfrost.deploy.graph import to_openvino, trace
from vitfrost.deploy.int8 import attention_products, keeps_attention_float, quantize_openvino, reduces_range
from vitfrost.images.batches import images_hash, take_usable
from vitfrost.images.preprocess import Preprocess
from vitfrost.images.source import open_images
from vitfrost.runtime import open_export


def test_onnx_quantizes_the_layers_with_weights_only(shallow: Any, pictures: Path, tmp_path: Path) -> None:
    import onnx

    config = Export("onnx", "int8", calibration_images=8, weight_range="reduced", graph="plain", seed=3)
    folder = vitfrost.export(shallow.model, config, images=pictures, out=tmp_path / "out")
    about = json.loads((folder / "export.json").read_text())
    loaded, drawn = shallow.model, open_images(pictures).subset(40, 3)
    batch = take_usable(drawn, Preprocess(loaded.preprocessing), 8)
    assert about["calibration"] == {"images": 8, "images_hash": images_hash(drawn, batch.digests), "seed": 3, "skipped": 0}
    assert (about["weight_range"], about["graph"]) == ("reduced", "plain")
    assert (about["parity"]["images"], about["parity"]["tolerance"]) == (36, None)

    graph = onnx.load(folder / "model.onnx").graph
    made_by = {name: node for node in graph.node for name in node.output}
    constants = {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer}
    layers = [node for node in graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    assert len(layers) == 1 + 2 * 4 + 1
    for layer in layers:
        activation, weight = (made_by[name] for name in layer.input[:2])
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        codes, scales = (constants[name] for name in weight.input[:2])
        assert codes.dtype == np.int8
        assert np.abs(codes.astype(int)).max() <= 64  # 7 bits
        assert scales.size in codes.shape
        assert scales.size > 1
        assert constants[activation.input[2]].dtype == np.uint8
    assert not any(name.startswith("float") for name in os.listdir(folder))
    pixels = batch.pixels.numpy()
    assert open_export(folder, threads=1).precision == "int8"
    differences = open_export(folder, threads=1).run(pixels) - loaded.module(batch.pixels).detach().numpy()
    assert 0 < np.abs(differences).max() < 1

    lean = vitfrost.export(shallow.model, replace(config, graph="lean"), images=pictures, out=tmp_path / "lean")
    assert json.loads((lean / "export.json").read_text())["graph"] == "lean"
    kinds = Counter(node.op_type for node in onnx.load(lean / "model.onnx").graph.node)
    # Patches; queries, keys, values, their mix and two of the feed-forward block in both layers. The classifier stays a Gemm.
    assert (kinds["MatMulIntegerToFloat"], kinds["MultiHeadAttention"], kinds["Gemm"]) == (1 + 2 * 6, 2, 1)
    assert kinds["MatMul"] == kinds["Conv"] == kinds["Attention"] == 0
    closer = open_export(lean, threads=1).run(pixels) - loaded.module(batch.pixels).detach().numpy()
    assert 0 < np.abs(closer).mean() < np.abs(differences).mean()  # outputs of products are not rounded


def test_dynamic_ranges_need_no_pictures_and_look_at_the_whole_batch(shallow: Any, tmp_path: Path) -> None:
    config = Export("onnx", "int8", ranges="dynamic")
    folder = vitfrost.export(shallow.model, config, out=tmp_path / "out")
    floating = vitfrost.export(shallow.model, Export("onnx"), out=tmp_path / "floating")
    again = export_graph(shallow.model, config, tmp_path / "again", floating=floating)
    assert (again / "model.onnx").read_bytes() == (folder / "model.onnx").read_bytes()  # traced or not
    about = json.loads((folder / "export.json").read_text())
    assert (about["ranges"], about["calibration"], about["graph"]) == ("dynamic", None, "lean")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pixels[1] *= 20
    session = open_export(folder, threads=1)
    with torch.no_grad():
        expected = shallow.model.module(pixels[:1]).numpy()
    alone, beside = session.run(pixels[:1].numpy()), session.run(pixels.numpy())[:1]
    assert 0 < np.abs(alone - expected).max() < np.abs(beside - expected).max()


def test_openvino_int8_sends_nothing_and_leaves_nothing_elsewhere(shallow: Any, pictures: Path, tmp_path: Path) -> None:
    home, out = tmp_path / "home", tmp_path / "out"
    home.mkdir()
    shallow.compress(tmp_path / "artifact", Quantize(32, 32))
    words = ["export", tmp_path / "artifact", "--format", "openvino", "--precision", "int8", "--images", pictures]
    code = """
import socket, sys
def refuse(*arguments, **options): raise AssertionError("a connection was attempted")
socket.socket.connect = socket.getaddrinfo = refuse
from vitfrost.cli import main
main(sys.argv[1:])
"""
    ended = subprocess.run(
        [sys.executable, "-c", code, *map(str, words), "--calibration-images", "200", "--out", str(out)],
        env={**os.environ, "HOME": str(home), "OMP_NUM_THREADS": "1"}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "has only 40 usable images to calibrate with" in ended.stderr
    assert "connection" not in ended.stderr
    assert not list(home.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"home", "artifact", "out"}
    assert {path.name for path in out.iterdir()} == {"export.json", "model.xml", "model.bin"}
    about = json.loads((out / "export.json").read_text())
    assert about["calibration"]["images"] == 40
    assert about["parity"]["agreement"] >= 0.5
    assert "nncf" in about["versions"]
    assert about["attention"] == ("float" if keeps_attention_float("auto") else "int8")
    graph = (out / "model.xml").read_text()
    assert "FakeQuantize" in graph
    assert 'element_type="i8"' in graph


class Products(torch.nn.Module):
    """Fused attention, the same written out, and a constant map (alone and repeated over the batch), over three tokens of 16."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(16, 48)
        self.map = torch.nn.Parameter(torch.rand(3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x.flatten(2)[:, None]).chunk(3, -1)
        fused = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        repeated = self.map.expand(x.shape[0], 1, 3, 3)
        return (fused + (q @ k.mT).softmax(-1) @ v + self.map @ v + repeated @ v).flatten(1)


def test_openvino_leaves_the_products_of_attention_where_asked() -> None:
    program = trace(Products().eval(), (4, 4), "products")
    pixels = np.random.default_rng(0).standard_normal((8, 3, 4, 4), dtype=np.float32)

    def operators(graph: Any) -> dict[str, Any]:
        return {operator.get_friendly_name(): operator for operator in graph.get_ordered_ops()}

    def quantized_inputs(graph: Any, names: list[str]) -> int:
        sources = [value.get_source_output().get_node() for name in names for value in operators(graph)[name].inputs()]
        return sum(source.get_type_name() == "FakeQuantize" for source in sources)

    graph = to_openvino(program, (4, 4), "products")
    products = attention_products(graph)
    assert sorted(operators(graph)[name].get_type_name() for name in products) == ["MatMul", "MatMul", "ScaledDotProductAttention"]
    others = [name for name, found in operators(graph).items() if found.get_type_name() == "MatMul" and name not in products]
    assert len(others) == 3  # queries, keys and values; the constant map twice
    assert quantized_inputs(quantize_openvino(graph, pixels, True), products) > 0
    left = quantize_openvino(to_openvino(program, (4, 4), "products"), pixels, True, products)
    assert quantized_inputs(left, products) == 0
    assert quantized_inputs(left, others) > 0


def test_weights_keep_to_seven_bits_and_attention_to_floats_where_the_processor_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reduces_range("reduced")
    assert not reduces_range("full")
    assert keeps_attention_float("float")
    assert not keeps_attention_float("int8")
    for words, reduced in (("avx2 fma", True), ("avx2 avx512_vnni", False), ("avx2 avx_vnni", False), ("fp asimddp", False)):
        monkeypatch.setattr(Path, "read_text", lambda *_, words=words, **__: f"flags : {words}\n")
        assert reduces_range("auto") is reduced
        assert keeps_attention_float("auto") is reduced
