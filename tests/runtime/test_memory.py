"""Graphs that ask for more memory than there is: one line, and no memory taken."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest

from vitfrost.errors import VitfrostError
from vitfrost.runtime.memory import most_bytes
from vitfrost.runtime.runtimes import OnnxRuntime, OpenVino, start

SIDES = (1 << 20, 1 << 22)  # 17 TB


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def test_the_bound_is_of_this_machine() -> None:
    assert 1 << 26 < most_bytes() < 1 << 50


def test_onnx_runtime_takes_no_more(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    kind, make = onnx.TensorProto.FLOAT, onnx.helper
    ports = [make.make_tensor_value_info(name, kind, ["batch", 1]) for name in ("pixels", "logits")]
    sides = make.make_tensor("sides", onnx.TensorProto.INT64, [2], SIDES)
    nodes = [
        make.make_node("Expand", ["pixels", "sides"], ["large"]),
        make.make_node("ReduceMax", ["large"], ["most"], keepdims=1),
        make.make_node("Add", ["pixels", "most"], ["logits"]),
    ]
    model = make.make_model(make.make_graph(nodes, "g", *([port] for port in ports), [sides]), opset_imports=[make.make_opsetid("", 18)])
    model.ir_version = 9
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    before = _peak()
    opened = start(OnnxRuntime, tmp_path, 1, "fp32")
    with pytest.raises(Exception, match="Available memory of"):
        opened.run(np.ones((1, 1), np.float32))
    assert _peak() - before < 1 << 29


def test_openvino_is_given_no_such_graph(tmp_path: Path) -> None:
    ov = pytest.importorskip("openvino")
    from openvino import opset13 as make

    pixels = make.parameter([-1, 1], ov.Type.f32, name="pixels")
    large = make.broadcast(make.constant(np.float32(1)), make.constant(np.array(SIDES, np.int64)))
    most = make.reduce_max(large, make.constant(np.array([0, 1])))
    ov.save_model(ov.Model([make.add(pixels, most)], [pixels], "g"), tmp_path / "model.xml", compress_to_fp16=False)
    with pytest.raises(VitfrostError, match=r"a tensor of 1048576 x 4194304 \(.*\), which takes more than the \d+ MB of memory"):
        start(OpenVino, tmp_path, 1, "fp32")
