"""int8: post-training quantization by the tools of the two runtimes, with ranges from real pictures, or taken anew in every run.

Weights are int8 per output channel, their inputs uint8 per tensor; softmax, norms and activations stay floating point, and, as asked,
the products of attention (queries with keys, maps with values).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from numpy import ndarray

from ..configs.verbs import AttentionProducts, WeightRange
from ..runtime.runtimes import INPUT, import_runtime
from .tools import quiet_tools

BATCH_SIZE = 8
# ONNX operators with weights; outputs of products can stay in floating point at no cost.
PRODUCTS = ("MatMul", "Gemm")
LAYERS = (*PRODUCTS, "Conv")
LARGEST_SIGNS = 1024  # rows of a matrix of signs


def reduces_range(asked: WeightRange) -> bool:
    """Whether weights are to use 7 of their 8 bits.

    Instructions before VNNI add two products of 8 bits in 16 bits and saturate. "auto" reduces unless this CPU says that it has VNNI
    (or dot products of ARM, which add in 32 bits).
    """
    return not multiplies_bytes() if asked == "auto" else asked == "reduced"


def keeps_attention_float(asked: AttentionProducts) -> bool:
    """Whether NNCF is to leave the products of attention in floating point; "auto": where it was measured to be faster, without VNNI."""
    return not multiplies_bytes() if asked == "auto" else asked == "float"


def multiplies_bytes() -> bool:
    """Whether this CPU says that it has instructions that add products of 8 bits in 32: VNNI, AMX or ARM's."""
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError):
        return False
    return bool(words & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"})


def attention_products(model: Any) -> list[str]:
    """Names of an OpenVINO model's operators that multiply activations with activations: fused attention, and MatMuls where both factors
    depend on the pixels. A constant map times values is none of them, also where it takes its batch size from the pixels."""
    fed: set[str] = set()
    found = []
    for operator in model.get_ordered_ops():
        kind, name = operator.get_type_name(), operator.get_friendly_name()
        inputs = [value.get_source_output().get_node().get_friendly_name() in fed for value in operator.inputs()]
        if kind == "Parameter" or (kind != "ShapeOf" and any(inputs)):
            fed.add(name)
        if kind == "ScaledDotProductAttention" or (kind == "MatMul" and all(inputs)):
            found.append(name)
    return found


def sign_products(model: Any) -> list[str]:
    """Names of an OpenVINO model's MatMuls with a constant of nothing but 1 and -1: those of turns (methods.quantize.turn), which read the
    residual stream as it is, outliers and all."""
    found = []
    for operator in model.get_ordered_ops():
        sources = [value.get_source_output().get_node() for value in operator.inputs()]
        if operator.get_type_name() == "MatMul" and any(each.get_type_name() == "Constant" and _signs(each.data) for each in sources):
            found.append(operator.get_friendly_name())
    return found


def _signs(constant: ndarray) -> bool:
    return constant.ndim == 2 and bool((abs(constant) == 1).all())


def _sign_products_of_onnx(graph: Any) -> list[str]:
    """The same of an ONNX graph."""
    onnx = import_runtime("onnx", "export")
    products = [node for node in graph.node if node.op_type == "MatMul"]
    read = {name for node in products for name in node.input}
    small = {value.name for value in graph.initializer if value.name in read and len(value.dims) == 2 and max(value.dims) <= LARGEST_SIGNS}
    signs = {value.name for value in graph.initializer if value.name in small and _signs(onnx.numpy_helper.to_array(value))}
    return [node.name for node in products if signs & set(node.input)]


def quantize_openvino(
    model: Any, pixels: Float[ndarray, "images 3 height width"], reduced: bool, leave: Sequence[str] = (), **options: Any
) -> Any:
    """NNCF's post-training quantization of an OpenVINO model (SmoothQuant, fast bias correction), calibrated on `pixels`.

    `leave`: names of operators that stay as they are.
    """
    nncf = import_runtime("nncf", "export")
    if leave:
        options["ignored_scope"] = nncf.IgnoredScope(names=list(leave))
    fix = nncf.OverflowFix.ENABLE if reduced else nncf.OverflowFix.DISABLE
    advanced = nncf.AdvancedQuantizationParameters(overflow_fix=fix, **options.pop("advanced", {}))
    with quiet_tools(), contextlib.redirect_stdout(io.StringIO()):  # progress bars
        dataset = nncf.Dataset([pixels[index : index + 1] for index in range(len(pixels))])
        return nncf.quantize(
            model, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(pixels), advanced_parameters=advanced,
            **options,
        )  # fmt: skip


def quantize_onnx(source: Path, target: Path, pixels: Float[ndarray, "images 3 height width"], reduced: bool, **options: Any) -> None:
    """ONNX Runtime's static quantization (QDQ) of `source`'s layers with weights, calibrated on `pixels`, into `target`."""
    import_runtime("onnxruntime", "export")
    onnx = import_runtime("onnx", "export")
    tools = import_runtime("onnxruntime.quantization", "export")
    graph = onnx.load(source).graph
    constants = {value.name for value in graph.initializer}
    left = set(_sign_products_of_onnx(graph))
    layers = [node.name for node in graph.node if node.op_type in LAYERS and constants & set(node.input[1:2]) and node.name not in left]

    class Pictures(tools.CalibrationDataReader):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            self._batches: Iterator[ndarray] = (pixels[start : start + BATCH_SIZE] for start in range(0, len(pixels), BATCH_SIZE))

        def get_next(self) -> dict[str, ndarray] | None:
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: batch}

    with quiet_tools():
        tools.quantize_static(
            source, target, Pictures(), quant_format=tools.QuantFormat.QDQ, op_types_to_quantize=list(LAYERS),
            nodes_to_quantize=layers, per_channel=True, reduce_range=reduced, activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            calibrate_method=options.pop("method", tools.CalibrationMethod.MinMax), extra_options=options,
        )  # fmt: skip


def quantize_onnx_dynamic(source: Path, target: Path, reduced: bool) -> None:
    """ONNX Runtime's dynamic quantization of `source`'s products with weights into `target`: inputs get their ranges in every run, from the
    whole batch."""
    tools = import_runtime("onnxruntime.quantization", "export")
    left = _sign_products_of_onnx(import_runtime("onnx", "export").load(source).graph)
    _forget_shapes_of_weights(source)
    with quiet_tools():
        tools.quantize_dynamic(
            source, target, op_types_to_quantize=list(PRODUCTS), per_channel=True, reduce_range=reduced, weight_type=tools.QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True}, nodes_to_exclude=left,
        )  # fmt: skip


def _forget_shapes_of_weights(path: Path) -> None:
    """ONNX Runtime (1.24 and 1.25) turns weights around and leaves their old shapes beside them, which it then finds contradictory."""
    onnx = import_runtime("onnx", "export")
    model = onnx.load(path, load_external_data=False)
    weights = {each.name for each in model.graph.initializer}
    kept = [each for each in model.graph.value_info if each.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    onnx.save(model, path)
