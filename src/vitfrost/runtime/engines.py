"""The two runtimes behind one small interface: from normalized pixels to logits on the CPU."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..errors import VitfrostError
from .quiet import forbid_telemetry

INPUT, OUTPUT = "pixels", "logits"
# What OpenVINO calls the precision that it computes with.
HINTS = {"fp32": "f32", "bf16": "bf16"}


@runtime_checkable
class Engine(Protocol):
    """A loaded graph. `runtime` names library, version and device; `precision` is what floating-point layers are computed in."""

    runtime: str
    threads: int
    precision: str

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """float32 [B, 3, H, W] -> float32 [B, classes]."""


def import_runtime(name: str, extra: str = "") -> Any:
    """Import a runtime or one of its tools; raise VitfrostError that says what to install where it is missing."""
    forbid_telemetry()
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        missing = error.name is None or error.name.partition(".")[0] == package
        reason = "is not installed" if missing and isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        also = extra and f" (or the extra: pip install 'vitfrost[{extra}]')"
        raise VitfrostError(f"{package} {reason}; pip install {package}{also}") from error


class OnnxEngine:
    """ONNX Runtime on the CPU."""

    def __init__(self, folder: Path, threads: int):
        runtime = import_runtime("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that spin while they wait take the cores that decode pictures.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = runtime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        self.runtime = f"onnxruntime {runtime.__version__} cpu"
        self.threads = threads
        self.precision = "fp32"

    def run(self, pixels: np.ndarray) -> np.ndarray:
        return np.asarray(self._session.run([OUTPUT], {INPUT: pixels})[0], np.float32)


class OpenVinoEngine:
    """OpenVINO's CPU plugin. `precision` is read back: a CPU without bf16 computes in fp32 whatever it is asked for."""

    def __init__(self, folder: Path, threads: int, hint: str):
        ov = import_runtime("openvino")
        core = ov.Core()
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": HINTS[hint], "PERFORMANCE_HINT": "LATENCY"}
        self._compiled = core.compile_model(core.read_model(folder / "model.xml"), "CPU", settings)
        self._request = self._compiled.create_infer_request()
        self.runtime = f"openvino {ov.__version__.partition('-')[0]} cpu"
        self.threads = int(self._compiled.get_property("INFERENCE_NUM_THREADS"))
        effective = str(self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
        self.precision = next((name for name, known in HINTS.items() if known == effective), effective)

    def run(self, pixels: np.ndarray) -> np.ndarray:
        self._request.infer([np.ascontiguousarray(pixels)])
        return np.array(self._request.get_output_tensor(0).data, np.float32)


def start_engine(form: str, folder: Path, threads: int, hint: str) -> Engine:
    """Load the graph of a folder of format "onnx" or "openvino"; raises VitfrostError where the runtime refuses it."""
    if form == "onnx" and hint != "fp32":
        raise VitfrostError("ONNX Runtime's CPU kernels compute in fp32; a precision hint goes with OpenVINO exports")
    try:
        return OnnxEngine(folder, threads) if form == "onnx" else OpenVinoEngine(folder, threads, hint)
    except VitfrostError:
        raise
    except Exception as error:  # the runtimes raise types of their own; each means that this graph cannot be run here
        raise VitfrostError(f"{folder} cannot be loaded: {error}") from error
