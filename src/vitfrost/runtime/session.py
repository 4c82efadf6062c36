"""An exported model, ready to run: pictures or normalized pixels in, logits or classes with probabilities out."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import VitfrostError
from ..images.decode import decode_file, to_rgb
from ..images.geometry import Geometry
from ..outputs import OutputKind
from .folder import model_bytes, read_export
from .runtimes import FORMATS, INPUT, OUTPUT, RUNTIMES, Port, Runtime, default_threads, first_line, installed_version, start

log = logging.getLogger("vitfrost")
BATCH_SIZE = 16
TOP = 5


@dataclass(frozen=True)
class Prediction:
    """What the model says of one file: class indices, most probable first, with probabilities, and names where the export has them.

    Of a file that cannot be read it says nothing, and `problem` is the reason. The probability of a model with one output is its sigmoid.
    A model that gives an embedding has that, and no classes.
    """

    file: str
    classes: tuple[int, ...]
    probabilities: tuple[float, ...]
    names: tuple[str, ...] | None = None
    problem: str | None = None
    embedding: tuple[float, ...] | None = None


class Session:
    """An exported model that is loaded. `about` is what `export.json` says, `size_bytes` the size of the graph's files."""

    def __init__(self, folder: Path, about: dict[str, Any], opened: Runtime):
        self.folder = folder
        self.about = about
        self.size_bytes = model_bytes(folder, about)
        self.geometry = Geometry(about["preprocessing"])
        self._opened = opened
        self._check_graph()

    def _check_graph(self) -> None:
        """Raise VitfrostError for a graph that reads or gives anything else than export.json says."""
        wanted_in = Port(INPUT, "float32", (None, 3, *self.geometry.input_size))
        sides = (math.prod(self.about["tokens"]["shape"]),) if self._flattened else self._sides
        wanted_out = Port(OUTPUT, "float32", (None, *sides))
        for found, wanted in ((self._opened.inputs, wanted_in), (self._opened.outputs, wanted_out)):
            if found is not None and not (len(found) == 1 and _fits(found[0], wanted)):
                shown = ", ".join(f"{port.name} {port.type} {_sides(port.shape)}" for port in found) or "nothing"
                raise VitfrostError(
                    f"the graph in {self.folder} is not the one that export.json tells of: it has {shown} for {wanted.name} {wanted.type} "
                    f"{_sides(wanted.shape)}; export again"
                )

    @property
    def outputs(self) -> OutputKind:
        """What the model gives: "classes", an "embedding" or "tokens"."""
        found: OutputKind = self.about.get("outputs") or ("classes" if self.about["classes"] else "embedding")
        return found

    @property
    def _sides(self) -> tuple[int | None, ...]:
        """The shape of an image's outputs; None for a number of channels that export.json does not tell."""
        return tuple(self.about["tokens"]["shape"]) if self.outputs == "tokens" else (self.about["classes"] or None,)

    @property
    def _flattened(self) -> bool:
        """Whether the runtime gives tokens as one row of numbers."""
        return self._opened.flat and self.outputs == "tokens"

    @property
    def threads(self) -> int:
        """How many threads a forward pass uses."""
        return self._opened.threads

    @property
    def runtime(self) -> str:
        """What runs it, such as "openvino 2026.4.1 cpu"."""
        return self._opened.label

    @property
    def precision(self) -> str:
        """What is computed with: "fp32" or "bf16"; "int8", or "int8+bf16", where weights and their inputs are quantized; "W4/A4" where they
        keep the artifact's bits."""
        if self.about.get("bits") is not None:
            return str(self.about["bits"])
        if self.about["precision"] != "int8":
            return self._opened.precision
        return "int8" if self._opened.precision == "fp32" else f"int8+{self._opened.precision}"

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """Logits [B, classes] float32 of normalized pixels [B, 3, H, W] float32; or an embedding [B, C], or tokens [B, N, C].

        Raises VitfrostError for another shape or type, and where the runtime fails.
        """
        expected = (3, *self.geometry.input_size)
        if pixels.dtype != np.float32 or pixels.ndim != 4 or pixels.shape[1:] != expected or not len(pixels):
            wanted = f"float32 [B, {', '.join(map(str, expected))}]"
            raise VitfrostError(f"the pixels are {pixels.dtype} {list(pixels.shape)}; this model reads normalized pixels, {wanted}")
        try:
            logits = self._opened.run(pixels)
        except Exception as error:  # the runtimes raise types of their own
            raise VitfrostError(f"{self.folder} cannot be run: {first_line(error)}") from error
        if self._flattened:
            logits = logits.reshape(len(pixels), *self.about["tokens"]["shape"])
        wanted_sides = (len(pixels), *(side or found for side, found in zip(self._sides, logits.shape[1:], strict=False)))
        if logits.shape != wanted_sides or logits.ndim != 1 + len(self._sides):
            raise VitfrostError(
                f"{self.folder} gave {list(logits.shape)} for {len(pixels)} pictures and {self.about['classes']} classes; export again"
            )
        return logits

    def profile(self, pixels: np.ndarray, runs: int) -> list[tuple[str, float, float]]:
        """Of every step its name, seconds and multiply-accumulates, means of so many runs; empty where the runtime does not tell."""
        return self._opened.profile(pixels, runs)

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """Normalized pixels [3, H, W] of a picture in any of Pillow's modes; EXIF rotation is ignored, as in timm."""
        return self.geometry.normalized(self.geometry.pixels(to_rgb(image)))

    def predict(self, paths: Sequence[str | Path] | str | Path, top: int | None = None) -> list[Prediction]:
        """The `top` classes of every file, in the order given: five, or all where there are fewer, if not given.

        A file that is no readable picture has a `problem` and no classes. A model that gives an embedding says that instead, without a
        `top`. Raises VitfrostError where none can be read, for a model that gives tokens, and for outputs that are not finite.
        """
        files = [paths] if isinstance(paths, str | Path) else list(paths)
        if not files:
            raise VitfrostError("no picture to predict; name at least one")
        top = self._top(top)
        found = [found for start in range(0, len(files), BATCH_SIZE) for found in self._predict(files[start : start + BATCH_SIZE], top)]
        if all(each.problem is not None for each in found):
            more = f"; and {len(found) - 1} more" if len(found) > 1 else ""
            raise VitfrostError(f"cannot read {found[0].file}: {found[0].problem}{more}")
        return found

    def _top(self, top: int | None) -> int:
        """How many classes to name; 0 of an embedding."""
        classes = self.about["classes"]
        if self.outputs == "tokens":
            raise VitfrostError(
                f"{self.folder} gives tokens, which are too many to print; run it on normalized pixels in Python (Session.run)"
            )
        if self.outputs == "embedding":
            if top is not None:
                raise VitfrostError(f"{self.folder} gives an embedding, no classes; leave top out")
            return 0
        top = min(TOP, classes) if top is None else top
        if not 1 <= top <= classes:
            raise VitfrostError(f"top is {top}; the model has {classes} classes, give 1 to {classes}")
        return top

    def _predict(self, files: list[str | Path], top: int) -> Iterator[Prediction]:
        decoded = [decode_file(Path(file), self.geometry) for file in files]
        readable = [each.pixels for each in decoded if each.pixels is not None]
        logits = iter(self.run(self.geometry.normalized(np.stack(readable))) if readable else ())
        known = self.about.get("class_names")
        for file, each in zip(files, decoded, strict=True):
            if each.pixels is None:
                yield Prediction(str(file), (), (), problem=each.reason)
                continue
            row = next(logits)
            if not np.isfinite(row).all():
                raise VitfrostError(f"the outputs of {self.folder} are not finite for {file}; export again")
            if self.outputs == "embedding":
                yield Prediction(str(file), (), (), embedding=tuple(map(float, row)))
                continue
            if len(row) == 1:
                yield Prediction(
                    str(file), (0,), (1 / (1 + math.exp(-max(float(row[0]), -700.0))),), None if known is None else tuple(known)
                )
                continue
            chosen = np.argsort(-row, kind="stable")[:top]
            shares = np.exp(row.astype(np.float64) - row.max())
            shares /= shares.sum()
            names = None if known is None else tuple(known[index] for index in chosen)
            yield Prediction(str(file), tuple(chosen.tolist()), tuple(shares[chosen].tolist()), names)


def _fits(found: Port, wanted: Port) -> bool:
    sides = zip(found.shape, wanted.shape, strict=False)
    fit = all(wanted_side is None or side in (None, wanted_side) for side, wanted_side in sides)
    return found[:2] == wanted[:2] and len(found.shape) == len(wanted.shape) and found.shape[0] is None and fit


def _sides(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("any" if side is None else str(side) for side in shape) + "]"


def open_export(folder: str | Path, threads: int | None = None, precision_hint: str | None = None, runtime: str | None = None) -> Session:
    """Load a folder made by `vitfrost export`.

    `threads`: of a forward pass; OMP_NUM_THREADS, else all cores, if not given. `precision_hint`: "fp32" or "bf16" for what is not
    int8, on OpenVINO only; the export's own if not given. A CPU without bf16 computes in fp32: `Session.precision` tells.
    `runtime`: one of `RUNTIMES` that reads the folder's format; the first of them if not given.
    Raises VitfrostError for a folder that is no export, is damaged or from a newer version, and where the runtime is not installed.
    """
    path = Path(folder)
    about = read_export(path)
    if threads is not None and threads < 1:
        raise VitfrostError(f"the number of threads must be at least 1, not {threads}")
    hint = precision_hint or ("bf16" if about["precision"] == "bf16" else "fp32")
    kind = FORMATS[about["format"]] if runtime is None else RUNTIMES[runtime]
    if kind.format != about["format"]:
        raise VitfrostError(f"{path} is exported as {about['format']}, which {kind.name} does not read")
    older = _older_than_needed(path, about, kind)
    try:
        session = Session(path, about, start(kind, path, threads or default_threads(), hint))
    except VitfrostError as error:
        if older is not None:
            raise VitfrostError(older) from error
        raise
    if older is not None:
        log.warning("%s; it could be loaded all the same", older)
    return session


def _older_than_needed(path: Path, about: dict[str, Any], kind: type[Runtime]) -> str | None:
    """What to say where a runtime is older than the graph asks for."""
    needed, found = (about.get("needs") or {}).get(kind.package), installed_version(kind.package)
    if needed is None or found is None or _numbers(found) >= _numbers(needed):
        return None
    return f"{path} needs {kind.package} {needed} or newer, and here is {found}; pip install -U {kind.package}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
