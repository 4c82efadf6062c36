"""An int8 graph in ONNX Runtime's own operators computes what the quantized graph does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from vitfrost.deploy.fuse import fuse  # noqa: E402

RNG = np.random.default_rng(0)
TOKENS, CHANNELS, HEADS = 5, 12, 3


def save(path: Path, nodes: list[Any], constants: dict[str, np.ndarray], channels: int) -> Path:
    """A graph from x [B, N, C] to y."""
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", TOKENS, CHANNELS])]
    results = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", TOKENS, channels])]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "graph", values, results, initializers), opset_imports=[helper.make_opsetid("", 23)], ir_version=10
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def run(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).uniform(-1, 1, (2, TOKENS, CHANNELS)).astype(np.float32)
    return np.asarray(session.run(None, {"x": x})[0])


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def linear(bias: np.ndarray | None, zero: int, name: str = "y") -> tuple[list[Any], dict[str, np.ndarray]]:
    """Quantized tokens times a quantized weight, with or without a bias; `zero` is the weight's zero point."""
    constants = {
        "s": np.float32(2 / 255), "z": np.uint8(128), "w": RNG.integers(-63, 64, (CHANNELS, CHANNELS)).astype(np.int8),
        "ws": RNG.uniform(0.01, 0.02, CHANNELS).astype(np.float32), "wz": np.full(CHANNELS, zero, np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1),
        helper.make_node("MatMul", ["xd", "wd"], [name if bias is None else "product"]),
    ]
    if bias is not None:
        constants["bias"] = bias
        nodes.append(helper.make_node("Add", ["bias", "product"], [name]))
    return nodes, constants


def test_a_quantized_product_takes_its_bias_with_it(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", *linear(RNG.standard_normal(CHANNELS).astype(np.float32), 0), CHANNELS)
    before = run(path)
    assert fuse(path) == {"MatMulIntegerToFloat": 1}
    assert operators(path) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1}
    np.testing.assert_allclose(run(path), before, atol=1e-5)


def test_tokens_that_three_products_read_are_quantized_once(tmp_path: Path) -> None:
    nodes, constants = linear(None, 0, "a")
    nodes += [helper.make_node("MatMul", ["xd", "wd"], ["b"]), helper.make_node("Sub", ["a", "b"], ["c"])]
    nodes += [helper.make_node("Mul", ["c", "a"], ["d"]), helper.make_node("Add", ["d", "b"], ["y"])]
    path = save(tmp_path / "m.onnx", nodes, constants, CHANNELS)
    before = run(path)
    assert fuse(path) == {"MatMulIntegerToFloat": 2}
    assert operators(path)["QuantizeLinear"] == 1
    np.testing.assert_allclose(run(path), before, atol=1e-5)


@pytest.mark.parametrize(("bias", "zero"), [((CHANNELS,), 3), ((TOKENS, CHANNELS), 0)], ids=["zero points", "no bias per channel"])
def test_what_the_operator_cannot_do_stays(tmp_path: Path, bias: tuple[int, ...], zero: int) -> None:
    path = save(tmp_path / "m.onnx", *linear(RNG.standard_normal(bias).astype(np.float32), zero), CHANNELS)
    before = run(path)
    assert fuse(path) == ({} if zero else {"MatMulIntegerToFloat": 1})
    assert operators(path)["Add"] == 1
    np.testing.assert_allclose(run(path), before, atol=1e-5)


def attention(mask: np.ndarray | None = None, **options: Any) -> tuple[list[Any], dict[str, np.ndarray]]:
    constants = {"cut": np.array([0, 0, HEADS, CHANNELS // HEADS]), "join": np.array([0, 0, CHANNELS]), "half": np.float32(0.5)}
    nodes = [helper.make_node("Mul", ["x", "half"], ["k"]), helper.make_node("Neg", ["x"], ["v"])]
    for source in ("x", "k", "v"):
        nodes.append(helper.make_node("Reshape", [source, "cut"], [f"{source}cut"]))
        nodes.append(helper.make_node("Transpose", [f"{source}cut"], [f"{source}heads"], perm=[0, 2, 1, 3]))
    more = {} if mask is None else {"mask": mask}
    nodes.append(helper.make_node("Attention", ["xheads", "kheads", "vheads", *more], ["o"], **options))
    nodes.append(helper.make_node("Transpose", ["o"], ["tokens"], perm=[0, 2, 1, 3]))
    nodes.append(helper.make_node("Reshape", ["tokens", "join"], ["y"]))
    return nodes, constants | more


@pytest.mark.parametrize("options", [{}, {"scale": 1.7}])
def test_attention_keeps_its_scale(tmp_path: Path, options: dict[str, float]) -> None:
    path = save(tmp_path / "m.onnx", *attention(**options), CHANNELS)
    before = run(path)
    assert fuse(path) == {"MultiHeadAttention": 1}
    assert operators(path) == {"Mul": 1, "Neg": 1, "MultiHeadAttention": 1}
    np.testing.assert_allclose(run(path), before, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"is_causal": 1}, {"softcap": 2.0}, {"mask": -np.eye(TOKENS, dtype=np.float32)}], ids=lambda one: next(iter(one))
)
def test_other_attention_stays(tmp_path: Path, options: dict[str, Any]) -> None:
    path = save(tmp_path / "m.onnx", *attention(**options), CHANNELS)
    assert fuse(path) == {}
    assert operators(path)["Attention"] == 1


def test_gelu_by_its_tanh_form_is_close(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [helper.make_node("Gelu", ["x"], ["y"])], {}, CHANNELS)
    before = run(path)
    assert fuse(path) == {"FastGelu": 1}
    assert 0 < np.abs(run(path) - before).max() < 5e-4
