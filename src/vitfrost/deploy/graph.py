"""A model traced once by torch.export with a free batch size, and written as an ONNX or an OpenVINO graph."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import VitfrostError
from ..methods.constant_heads.module import ConstantHeads
from ..methods.quantize.modules import QuantizedLayer
from ..model import Model
from ..passes.structure import merge_structure
from ..runtime.runtimes import INPUT, OUTPUT, cause_of, import_runtime, reason_of
from .tools import quiet_tools

# The first opset with a whole Attention operator: maps stay inside one fused operator, as in torch.
OPSET = 23
MOST_BYTES_IN_ONE_FILE = 1_900_000_000  # protobuf ends at 2^31


def inference_form(loaded: Model) -> nn.Module:
    """A copy of the model on the CPU in float32 and in evaluation mode, its training forms merged and its constant maps folded."""
    model = merge_structure(copy.deepcopy(loaded.module).cpu().float().eval())
    for module in model.modules():
        if isinstance(module, ConstantHeads):
            module.folded()
    return model


def with_float_weights(model: nn.Module) -> nn.Module:
    """The model with ordinary layers, in place, where only weights were quantized: the values are the same."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, QuantizedLayer) and layer.input_quantizer is None:
            model.set_submodule(name, layer.float_layer())
    return model


def trace(model: nn.Module, image_size: tuple[int, int], name: str) -> torch.export.ExportedProgram:
    """The model as a graph over pixels [batch, 3, height, width]. Raises VitfrostError where it cannot be traced for any batch."""
    pixels = torch.zeros(2, 3, *image_size)
    try:
        with quiet_tools(), torch.no_grad():
            return torch.export.export(model, (pixels,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # the tracer raises many types; each means that this model has no such graph
        raise VitfrostError(f"{name} cannot be traced for batches of any size: {reason_of(error)}") from error


def to_onnx(program: torch.export.ExportedProgram, path: Path, name: str) -> None:
    """Write `path`, one file with the weights in it; beside it `path`.data where protobuf allows no file as large.

    Raises VitfrostError for an operator that ONNX does not have, and where the files cannot be written.
    """
    import_runtime("onnx", "export")
    import_runtime("onnxscript", "export")
    try:
        with quiet_tools():
            made = torch.onnx.export(program, dynamo=True, opset_version=OPSET, input_names=[INPUT], output_names=[OUTPUT], verbose=False)
            assert made is not None
            weights = sum(tensor.nbytes for tensor in program.state_dict.values())
            made.save(str(path), external_data=weights > MOST_BYTES_IN_ONE_FILE)
    except OSError as error:
        raise VitfrostError(f"{name} cannot be written as ONNX: {error.strerror or error}") from error
    except Exception as error:  # as above
        raise VitfrostError(f'{name} cannot be written as ONNX: {cause_of(error)}; try Export(format="openvino")') from error


def to_openvino(program: torch.export.ExportedProgram, image_size: tuple[int, int], name: str) -> Any:
    """An OpenVINO model with a free batch size. Raises VitfrostError for an operator that OpenVINO does not have."""
    ov = import_runtime("openvino", "export")
    try:
        with quiet_tools():
            made = ov.convert_model(program)
            made.reshape([-1, 3, *image_size])
    except Exception as error:  # as above
        raise VitfrostError(f"{name} cannot be written for OpenVINO: {reason_of(error)}") from error
    made.inputs[0].get_tensor().set_names({INPUT})
    made.outputs[0].get_tensor().set_names({OUTPUT})
    return made


def save_openvino(model: Any, folder: Path) -> None:
    """Write model.xml and model.bin, weights as they are."""
    import_runtime("openvino", "export").save_model(model, folder / "model.xml", compress_to_fp16=False)
