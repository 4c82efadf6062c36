"""An exported model, ready to run: pictures or normalized pixels in, logits or classes with probabilities out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import VitfrostError
from ..images.decode import decode_file, to_rgb
from ..images.geometry import Geometry
from .folder import model_bytes, read_export
from .runtimes import FORMATS, RUNTIMES, Runtime, default_threads, start

BATCH_SIZE = 16


@dataclass(frozen=True)
class Prediction:
    """What the model says of one file: class indices, most probable first, with probabilities, and names where the export has them."""

    file: str
    classes: tuple[int, ...]
    probabilities: tuple[float, ...]
    names: tuple[str, ...] | None = None


class Session:
    """An exported model that is loaded. `about` is what `export.json` says, `size_bytes` the size of the graph's files."""

    def __init__(self, folder: Path, about: dict[str, Any], opened: Runtime):
        self.folder = folder
        self.about = about
        self.size_bytes = model_bytes(folder, about)
        self.geometry = Geometry(about["preprocessing"])
        self._opened = opened

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
        """Logits [B, classes] float32 of normalized pixels [B, 3, H, W] float32. Raises VitfrostError for another shape or type."""
        expected = (3, *self.geometry.input_size)
        if pixels.dtype != np.float32 or pixels.ndim != 4 or pixels.shape[1:] != expected or not len(pixels):
            wanted = f"float32 [B, {', '.join(map(str, expected))}]"
            raise VitfrostError(f"the pixels are {pixels.dtype} {list(pixels.shape)}; this model reads normalized pixels, {wanted}")
        return self._opened.run(pixels)

    def profile(self, pixels: np.ndarray, runs: int) -> list[tuple[str, float, float]]:
        """Of every step its name, seconds and multiply-accumulates, means of so many runs; empty where the runtime does not tell."""
        return self._opened.profile(pixels, runs)

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """Normalized pixels [3, H, W] of a picture in any of Pillow's modes; EXIF rotation is ignored, as in timm."""
        return self.geometry.normalized(self.geometry.pixels(to_rgb(image)))

    def predict(self, paths: Sequence[str | Path] | str | Path, top: int = 5) -> list[Prediction]:
        """The `top` classes of every file, in the order given. Raises VitfrostError for a file that is no readable picture."""
        files = [paths] if isinstance(paths, str | Path) else list(paths)
        if not files:
            raise VitfrostError("no picture to predict; name at least one")
        if not 1 <= top <= self.about["classes"]:
            raise VitfrostError(f"top is {top}; the model has {self.about['classes']} classes, give 1 to {self.about['classes']}")
        return [found for start in range(0, len(files), BATCH_SIZE) for found in self._predict(files[start : start + BATCH_SIZE], top)]

    def _predict(self, files: list[str | Path], top: int) -> Iterator[Prediction]:
        logits = self.run(self.geometry.normalized(np.stack([self._read(file) for file in files])))
        known = self.about.get("class_names")
        for file, row in zip(files, logits, strict=True):
            chosen = np.argsort(-row, kind="stable")[:top]
            shares = np.exp(row.astype(np.float64) - row.max())
            shares /= shares.sum()
            names = None if known is None else tuple(known[index] for index in chosen)
            yield Prediction(str(file), tuple(chosen.tolist()), tuple(shares[chosen].tolist()), names)

    def _read(self, file: str | Path) -> np.ndarray:
        decoded = decode_file(Path(file), self.geometry)
        if decoded.pixels is None:
            raise VitfrostError(f"cannot read {file}: {decoded.reason}")
        return decoded.pixels


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
    return Session(path, about, start(kind, path, threads or default_threads(), hint))
