"""What executes an exported folder: every runtime is one class here, with all that the rest of vitfrost needs to know of it.

PyTorch, which needs no export, is a runtime of the same kind in `vitfrost.timing.eager`.
"""

from __future__ import annotations

import os
import random
import re
from abc import ABC, abstractmethod
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..errors import VitfrostError
from .memory import bound_onnxruntime, refuse_large_tensors
from .quiet import forbid_telemetry

INPUT, OUTPUT = "pixels", "logits"
PRECISIONS = ("fp32", "bf16", "int8")


class Port(NamedTuple):
    """An input or an output of a graph; a side whose length is free is None."""

    name: str
    type: str
    shape: tuple[int | None, ...]


class Runtime(ABC):
    """A runtime; an object of it is a model that is open on it.

    `name`: what `bench` and searches call it. `package`: what is installed for it. `format`: of the exported folders that it reads, and
    `files`, those of the graph in them. `hints`: what it can be asked to compute floating-point layers in. `int8`: options of `export`,
    one set for each way in which its int8 can be had.
    `label`: library, version and device, such as "openvino 2026.4.1 cpu"; `threads`: of a forward pass; `precision`: what floating-point
    layers are truly computed in. `inputs` and `outputs`: what the graph says of itself, None where a runtime does not tell. `flat`: all
    numbers of a picture come in one row, whatever the shape of its features.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    format: ClassVar[str]
    files: ClassVar[tuple[str, ...]]
    hints: ClassVar[tuple[str, ...]] = ("fp32",)
    int8: ClassVar[tuple[dict[str, str], ...]] = ({},)
    flat: ClassVar[bool] = False

    label: str
    threads: int
    precision: str
    inputs: tuple[Port, ...] | None = None
    outputs: tuple[Port, ...] | None = None

    @abstractmethod
    def __init__(self, folder: Path, threads: int, hint: str):
        """Open the graph in a folder; any error means that it cannot be run here."""

    @abstractmethod
    def run(self, pixels: np.ndarray) -> np.ndarray:
        """float32 [B, 3, H, W] -> float32 [B, classes]."""

    def profile(self, pixels: np.ndarray, runs: int) -> list[tuple[str, float, float]]:
        """Of every step its name, its seconds and its multiply-accumulates in one run, means over `runs`; empty where it does not tell."""
        return []

    @classmethod
    def precisions(cls) -> tuple[str, ...]:
        """What its models can be exported for and computed in."""
        return tuple(name for name in PRECISIONS if name in ("fp32", "int8", *cls.hints))

    @classmethod
    def needs(cls, precision: str) -> tuple[str, ...]:
        """The packages that exporting for it takes beside torch."""
        return (cls.package,)


class OnnxRuntime(Runtime):
    """ONNX Runtime on the CPU."""

    name = package = "onnxruntime"
    format, files = "onnx", ("model.onnx",)
    int8 = ({"ranges": "static"}, {"ranges": "dynamic"})

    def __init__(self, folder: Path, threads: int, hint: str):
        runtime = import_runtime("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that spin while they wait take the cores that decode pictures.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # what it cannot do, it raises
        if bound_onnxruntime(runtime):
            options.add_session_config_entry("session.use_env_allocators", "1")
        self._session = runtime.InferenceSession(
            str(folder / "model.onnx"),
            options,
            providers=["CPUExecutionProvider"],
            enable_fallback=0,  # which only prints and tries again
        )
        self.inputs, self.outputs = (tuple(map(_onnx_port, ports)) for ports in (self._session.get_inputs(), self._session.get_outputs()))
        self.label = f"onnxruntime {runtime.__version__} cpu"
        self.threads = threads
        self.precision = "fp32"

    def run(self, pixels: np.ndarray) -> np.ndarray:
        return np.asarray(self._session.run([OUTPUT], {INPUT: pixels})[0], np.float32)

    @classmethod
    def needs(cls, precision: str) -> tuple[str, ...]:
        return ("onnx", "onnxscript", "onnxruntime")


class OpenVino(Runtime):
    """OpenVINO's CPU plugin. `precision` is read back: a CPU without bf16 computes in fp32 whatever it is asked for."""

    name = package = format = "openvino"
    files = ("model.xml", "model.bin")
    hints = ("fp32", "bf16")
    int8 = ({"attention": "int8"}, {"attention": "float"})
    _called: ClassVar[dict[str, str]] = {"fp32": "f32", "bf16": "bf16"}

    def __init__(self, folder: Path, threads: int, hint: str):
        ov = import_runtime("openvino")
        core = ov.Core()
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": self._called[hint], "PERFORMANCE_HINT": "LATENCY"}
        graph = core.read_model(folder / "model.xml")
        refuse_large_tensors(graph)
        self._compiled = core.compile_model(graph, "CPU", settings)
        self._request = self._compiled.create_infer_request()
        self.inputs, self.outputs = (tuple(map(_openvino_port, ports)) for ports in (self._compiled.inputs, self._compiled.outputs))
        self.label = f"openvino {ov.__version__.partition('-')[0]} cpu"
        self.threads = int(self._compiled.get_property("INFERENCE_NUM_THREADS"))
        effective = str(self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
        self.precision = next((name for name, called in self._called.items() if called == effective), effective)

    def run(self, pixels: np.ndarray) -> np.ndarray:
        self._request.infer([np.ascontiguousarray(pixels)])
        return np.array(self._request.get_output_tensor(0).data, np.float32)

    @classmethod
    def needs(cls, precision: str) -> tuple[str, ...]:
        return ("openvino", "nncf") if precision == "int8" else ("openvino",)


def _onnx_port(port: Any) -> Port:
    kind = {"tensor(float)": "float32"}.get(port.type, port.type)
    return Port(port.name, kind, tuple(side if isinstance(side, int) else None for side in port.shape))


def _openvino_port(port: Any) -> Port:
    kind = {"f32": "float32"}.get(port.element_type.get_type_name(), port.element_type.get_type_name())
    shape = port.partial_shape
    sides = () if shape.rank.is_dynamic else tuple(side.get_length() if side.is_static else None for side in shape)
    names = port.names
    return Port(next((name for name in (INPUT, OUTPUT) if name in names), min(names, default="")), kind, sides)


class Native(Runtime):
    """vitfrost's own engine (package vitfrost_native): an artifact's integer codes as they are. What is between them is fp32."""

    name = format = "native"
    package = "vitfrost_native"
    files = ("model.vfn",)
    flat = True

    def __init__(self, folder: Path, threads: int, hint: str):
        engine = import_runtime("vitfrost_native")
        self._model = engine.Model(folder / "model.vfn", threads)
        info = self._model.info
        self.label = f"native {engine.version()} {info.isa}"
        self.threads, self.precision = info.threads, "fp32"
        self.inputs = (Port(INPUT, "float32", (None, info.channels, info.height, info.width)),)
        self.outputs = (Port(OUTPUT, "float32", (None, info.classes)),)

    def run(self, pixels: np.ndarray) -> np.ndarray:
        try:
            return np.asarray(self._model.run(pixels), np.float32)
        except Exception as error:  # the engine's own error is no VitfrostError of this package
            raise VitfrostError(str(error)) from error

    def profile(self, pixels: np.ndarray, runs: int) -> list[tuple[str, float, float]]:
        self._model.profile(True)
        for _ in range(runs):
            self.run(pixels)
        rows = self._model.profile_rows()
        self._model.profile(False)
        return [(row.name, row.seconds / runs, row.macs / runs) for row in rows]

    @classmethod
    def precisions(cls) -> tuple[str, ...]:
        return ("int8",)


# Runtimes that execute integer codes at the bits of the artifact, whatever precision is asked for.
OWN_BITS = frozenset({Native.name})
# Whoever adds a runtime names its class here. A format is run by the first that reads it, unless another is asked for.
RUNTIMES: dict[str, type[Runtime]] = {each.name: each for each in (OpenVino, OnnxRuntime, Native)}
FORMATS: dict[str, type[Runtime]] = {each.format: each for each in reversed(RUNTIMES.values())}


def start(kind: type[Runtime], folder: Path, threads: int, hint: str) -> Runtime:
    """Open the graph of an exported folder; raises VitfrostError where the runtime refuses it."""
    if hint not in PRECISIONS[:2]:
        raise VitfrostError(f"the precision hint '{hint}' is unknown; choose one of {', '.join(PRECISIONS[:2])}")
    if hint not in kind.hints:
        able = " and ".join(f"{each.format} exports" for each in RUNTIMES.values() if hint in each.hints)
        raise VitfrostError(f"{kind.name} computes in {' or '.join(kind.hints)} on a CPU; the precision hint {hint} goes with {able}")
    try:
        return kind(folder, threads, hint)
    except VitfrostError:
        raise
    except Exception as error:  # the runtimes raise types of their own; each means that this graph cannot be run here
        raise VitfrostError(f"{folder} cannot be loaded: {first_line(error)}") from error


def import_runtime(name: str, extra: str = "") -> Any:
    """Import a runtime or one of its tools; raise VitfrostError that says what to install where it is missing."""
    forbid_telemetry()
    drawn = random.getstate()  # some of them draw from it when they are imported
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        missing = error.name is None or error.name.partition(".")[0] == package
        reason = "is not installed" if missing and isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        also = extra and f" (or the extra: pip install 'vitfrost[{extra}]')"
        raise VitfrostError(f"{package} {reason}; {how_to_install(package) or f'pip install {package}{also}'}") from error
    finally:
        random.setstate(drawn)


def how_to_install(package: str) -> str | None:
    """The command for a package that no registry has; None for others."""
    return "make install, or pip install ./native (it takes a C++ compiler)" if package == Native.package else None


def installed_version(package: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def first_line(error: Exception) -> str:
    """What a runtime complains of, without the places in its source and the rest of its log."""
    lines = [line.strip() for line in re.sub("\x1b\\[[0-9;]*m", "", str(error)).splitlines()]
    telling = [
        line for line in lines if line and not re.match(r"Exception from |Check '|FrontEnd API failed|Summary:|\[ ?(ERROR|GENERAL)", line)
    ]
    text = "; ".join(line.removeprefix("-- ").rstrip(".:") for line in telling)
    return text if len(text) <= 300 else f"{text[:297]}..."


def reason_of(error: Exception) -> str:
    """One line about what something failed with, whatever it raised."""
    return str(error) if isinstance(error, VitfrostError) else f"{type(error).__name__} {first_line(error)}".strip()


def cause_of(error: BaseException) -> str:
    """One line: what the innermost of the errors behind this one says first. Tools wrap it in what they say of every failure."""
    seen = {id(error)}
    while (inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None and id(inner) not in seen:
        seen.add(id(inner))
        error = inner
    said = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__} {said if len(said) <= 300 else f'{said[:297]}...'}".strip()


def cores() -> int:
    """The cores of this machine that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads() -> int:
    """OMP_NUM_THREADS, else all cores."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) > 0 else cores()
