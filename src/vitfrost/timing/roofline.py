"""How far the limit is: the rate at which this machine multiplies matrices, per precision and number of threads.

A chain of large square products has its turn in every round beside the models, through the same runtimes, so that what else the
machine does meets both. int8 products have uint8 activations and int8 weights with a quantization between them, as quantized models do.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch

from ..runtime.runtimes import OWN_BITS, import_runtime
from ..torch_state import torch_threads
from .benchmark import BenchRow, Rate
from .rounds import paired_ratio

SIDE, PRODUCTS = 1024, 4
_ACTIVATION_STEP, _ZERO_POINT = np.float32(4 / 128), np.uint8(128)


def chain_macs() -> int:
    """Multiply-accumulates of one chain of products."""
    return PRODUCTS * SIDE**3


def open_products(
    runtimes: Iterable[str], precisions: Iterable[str], threads: int, device: str
) -> dict[tuple[str, str], Callable[[], object]]:
    """What runs the products, by runtime ("openvino", "onnxruntime", "torch") and precision, as far as this machine computes in it.

    Without the package onnx, which builds the products, those of the exported runtimes are left out.
    """
    opened: dict[tuple[str, str], Callable[[], object]] = {}
    for runtime in runtimes:
        for precision in precisions:
            with contextlib.suppress(Exception):  # runtimes raise types of their own
                run = _OPEN[runtime](precision, threads, device) if runtime in _OPEN else None
                if run is not None:
                    opened[runtime, precision] = run
    return opened


def share_of_limit(row: BenchRow, rates: Sequence[Rate]) -> float | None:
    """The row's multiply-accumulates per second over those of the fastest products of its precision: the median of the rounds' ratios.

    None where no runtime has products of that precision. `rates`: those of the row's own group.
    """
    best = best_rate(row, rates)
    if best is None:
        return None
    macs = best.gmacs_per_second * 1e9 * statistics.median(best.round_ms) / 1e3  # of one chain
    return row.macs / macs * paired_ratio(best.round_ms, row.round_ms, 0)[0]


def best_rate(row: BenchRow, rates: Sequence[Rate]) -> Rate | None:
    """The fastest products of a row's precision; int8 for all that runs in integers."""
    integers = row.runtime in OWN_BITS or row.effective_precision.startswith("int8")
    precision = "int8" if integers else row.effective_precision
    return max((rate for rate in rates if rate.precision == precision), key=lambda rate: rate.gmacs_per_second, default=None)


def _input() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((SIDE, SIDE), dtype=np.float32)


@cache
def product_chain(int8: bool, side: int) -> bytes:
    """`PRODUCTS` matrix products in a row as an ONNX model, float32 [side, side] in and out; with `int8` as QDQ."""
    onnx = import_runtime("onnx", "export")
    helper, numpy_helper, kind = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT
    rng = np.random.default_rng(1)
    constants: dict[str, Any] = {"step": _ACTIVATION_STEP, "zero": _ZERO_POINT, "weight_step": np.float32(1 / 73 / side**0.5)}
    nodes: list[Any] = []

    def between(name: str) -> str:
        if not int8:
            return name
        nodes.append(helper.make_node("QuantizeLinear", [name, "step", "zero"], [f"{name}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", "step", "zero"], [f"{name}_d"]))
        return f"{name}_d"

    last = between("x")
    for number in range(PRODUCTS):
        codes = rng.integers(-127, 128, (side, side), dtype=np.int8)
        weight = f"w{number}"
        if int8:
            constants[f"{weight}_q"] = codes
            nodes.append(helper.make_node("DequantizeLinear", [f"{weight}_q", "weight_step"], [weight]))
        else:
            constants[weight] = codes.astype(np.float32) * constants["weight_step"]
        nodes.append(helper.make_node("MatMul", [last, weight], [f"y{number}"]))
        last = between(f"y{number}")
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes, "products",
        [helper.make_tensor_value_info("x", kind, [side, side])],
        [helper.make_tensor_value_info(last, kind, [side, side])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items() if name in used],
    )  # fmt: skip
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString())


def _openvino(precision: str, threads: int, device: str) -> Callable[[], object] | None:
    openvino = import_runtime("openvino", "export")
    hint = "bf16" if precision == "bf16" else "f32"
    options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint, "NUM_STREAMS": 1}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(product_chain(precision == "int8", SIDE)), "CPU", options)
    if hint == "bf16" and compiled.get_property("INFERENCE_PRECISION_HINT") != openvino.Type.bf16:
        return None
    request, pixels = compiled.create_infer_request(), _input()
    return lambda: request.infer([pixels])


def _onnxruntime(precision: str, threads: int, device: str) -> Callable[[], object] | None:
    if precision == "bf16":
        return None
    onnxruntime = import_runtime("onnxruntime", "export")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(product_chain(precision == "int8", SIDE), options, providers=["CPUExecutionProvider"])
    feed = {"x": _input()}
    return lambda: session.run(None, feed)


def _torch(precision: str, threads: int, device: str) -> Callable[[], object] | None:
    on_gpu = device.startswith("cuda")
    if precision == "int8" or (precision == "bf16" and not on_gpu):
        return None
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.from_numpy(_input()).to(device, kind) for _ in range(2))

    def run() -> None:
        with torch_threads(threads):
            for _ in range(PRODUCTS):
                torch.mm(left, right)
        if on_gpu:
            torch.cuda.synchronize(device)

    return run


def _native(precision: str, threads: int, device: str) -> Callable[[], object] | None:
    if precision != "int8":
        return None
    engine = import_runtime("vitfrost_native")
    # Smaller ones, and more, since the operands are packed once for all. A product runs on one thread, so each thread has a share.
    products = PRODUCTS * 4**3
    shares = [products // threads + (number < products % threads) for number in range(threads)]
    if threads == 1:
        return lambda: engine.multiply(SIDE // 4, products)
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(lambda share: engine.multiply(SIDE // 4, share), shares))


_OPEN = {"openvino": _openvino, "onnxruntime": _onnxruntime, "torch": _torch, "native": _native}
