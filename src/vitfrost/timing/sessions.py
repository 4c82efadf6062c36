"""How a model is opened on a runtime: plain data that another process can be given.

Every open model takes a float32 array [B, 3, height, width] in memory and gives the logits [B, classes] in memory; what a runtime has to
copy or convert for that is part of its time.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from ..errors import VitfrostError
from ..runtime import Runtime, Session, open_export
from ..runtime.runtimes import RUNTIMES, how_to_install, import_runtime

EAGER = ("torch", "compiled")
NAMES = (*RUNTIMES, *EAGER)
Opened = Runtime | Session


@dataclass(frozen=True)
class ModelSource:
    """A model that PyTorch runs: an artifact's folder, or a timm name with weights (a file, "random", None for timm's own)."""

    model: str
    artifact: bool
    weights: str | None = None
    image_size: tuple[int, int] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def load(self) -> Any:
        """The Model. Raises VitfrostError as `Model.open` does."""
        from ..model import Model

        if self.artifact:
            return Model.open(Path(self.model))
        return Model.open(self.model, weights=self.weights, image_size=self.image_size, options=self.options)


@dataclass(frozen=True)
class Opening:
    """A model, a runtime and its settings. `export`: an exported folder; `source`: a model (torch, compiled). `isa`:
    the instructions of our own engine, the best if not given."""

    runtime: str
    image_size: tuple[int, int]
    threads: int = 1
    export: str | None = None
    hint: str | None = None
    source: ModelSource | None = None
    precision: str = "fp32"
    device: str = "cpu"
    isa: str | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Opening:
        """The inverse of `plain`, also after JSON."""
        source = plain["source"]
        if source is not None:
            size = source["image_size"]
            source = ModelSource(**source | {"image_size": None if size is None else tuple(size)})
        return cls(**plain | {"image_size": tuple(plain["image_size"]), "source": source})

    def pixels(self, batch: int, seed: int) -> Float32[ndarray, "batch 3 height width"]:
        """Seeded noise of the model's size: time does not depend on what is in a picture."""
        return np.random.default_rng(seed).standard_normal((batch, 3, *self.image_size), dtype=np.float32)

    def import_runtime(self) -> None:
        """Import what opening needs."""
        names = ["torch", "vitfrost.artifact", "vitfrost.vit.load"] if self.runtime in EAGER else [RUNTIMES[self.runtime].package]
        for name in names:
            import_module(name)

    def open(self, loaded: Any = None) -> Opened:
        """The open model; `loaded`: what `source` has loaded already. Raises VitfrostError where it cannot be opened."""
        if self.isa is not None:
            with import_runtime("vitfrost_native").instructions(self.isa):
                return open_export(Path(str(self.export)), self.threads, self.hint, self.runtime)
        if self.runtime not in EAGER:
            return open_export(Path(str(self.export)), self.threads, self.hint, self.runtime)
        from .eager import Torch

        assert loaded is not None or self.source is not None
        return Torch(loaded or self.source.load(), self.threads, self.precision, self.runtime == "compiled", self.device)  # type: ignore[union-attr]


def runtime_version(runtime: str) -> str:
    """Name and version of what runs the model, such as "openvino 2026.1.0" or "torch 2.13.0 compiled"."""
    from importlib.metadata import version

    package = "torch" if runtime in EAGER else RUNTIMES[runtime].package
    return f"{package} {version(package).partition('+')[0]}{' compiled' if runtime == 'compiled' else ''}"


def find_isas() -> tuple[str, ...]:
    """The instruction sets of this processor that our own engine runs on, best first. Raises VitfrostError where it is not built."""
    found: tuple[str, ...] = import_runtime("vitfrost_native").isas()
    return found


def find_runtimes(asked: tuple[str, ...] | None, device: str) -> tuple[tuple[str, ...], list[str]]:
    """The runtimes to measure on, and the names of those that are not installed where none were asked for.

    Raises VitfrostError for an unknown one, for one that is asked for and not installed, and for one that `device` does not have.
    """
    from importlib.util import find_spec

    on_gpu = device != "cpu"
    for runtime in asked or ():
        if runtime not in NAMES:
            raise VitfrostError(f"there is no runtime '{runtime}'; give some of {', '.join(NAMES)}")
        if on_gpu and runtime not in EAGER:
            raise VitfrostError(f"{runtime} is measured on the CPU only; with --device {device} give Bench.runtime {','.join(EAGER)}")
    chosen = tuple(dict.fromkeys(asked)) if asked else EAGER if on_gpu else NAMES
    absent = [runtime for runtime in chosen if runtime not in EAGER and find_spec(RUNTIMES[runtime].package) is None]
    if absent and asked:
        command = how_to_install(RUNTIMES[absent[0]].package) or "pip install 'vitfrost[export]'"
        raise VitfrostError(f"{absent[0]} is not installed; {command}, or leave it out of Bench.runtime")
    return tuple(runtime for runtime in chosen if runtime not in absent), absent
