"""Models timed beside the original on one runtime: exported as `vitfrost export` does, batch 1, interleaved in random order."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from ..configs import Export
from ..configs.verbs import SearchRuntime
from ..deploy.export import export_graph
from ..errors import VitfrostError
from ..evaluation.results import processor_name
from ..files import scratch_folder
from ..images.given import ImagesLike
from ..model import Model
from ..progress import say
from ..runtime.runtimes import RUNTIMES, cores
from ..threads import torch_threads
from ..timing.rounds import interleaved, tried_slot
from ..timing.sessions import EAGER, Opened, Opening, runtime_version
from .latency_record import LatencySetup

NAMES = get_args(SearchRuntime)


@dataclass(frozen=True)
class Target:
    """A runtime ("onnxruntime", "openvino", "torch") at a precision, with so many threads."""

    runtime: str
    precision: str
    threads: int

    @property
    def name(self) -> str:
        """ "openvino-int8"."""
        return f"{self.runtime}-{self.precision}"

    @property
    def packages(self) -> tuple[str, ...]:
        """What exporting to it and running there needs beside torch."""
        return RUNTIMES[self.runtime].needs(self.precision) if self.runtime in RUNTIMES else ()

    def setup(self) -> LatencySetup:
        """What its times depend on beside the model."""
        versions = [runtime_version(self.runtime), *(f"{name} {version(name)}" for name in self.packages if name == "nncf")]
        return LatencySetup(runtime=self.name, threads=self.threads, versions=", ".join(versions), cpu=processor_name())


def find_target(name: str, threads: int) -> Target:
    """The runtime of that name. Raises VitfrostError for another name, one that is not installed, and more threads than cores."""
    if name not in NAMES:
        raise VitfrostError(f"there is no runtime '{name}' to search for; give one of {', '.join(NAMES)}")
    runtime, _, precision = name.partition("-")
    found = Target(runtime, precision, threads)
    absent = [package for package in found.packages if find_spec(package) is None]
    if absent:
        raise VitfrostError(f"{name} needs {absent[0]}, which is not installed; pip install 'vitfrost[export]'")
    if not 1 <= threads <= cores():
        raise VitfrostError(f"threads is {threads}; give 1 to {cores()}, the cores of this machine")
    return found


# int8 ranges for measurements of time come from so few of the search's images.
CALIBRATION_IMAGES = 8
FEWEST_ROUNDS, MOST_ROUNDS = 12, 60
ORIGINAL = "original"


@dataclass(frozen=True)
class Timed:
    """Milliseconds of one image, the median of every round: of the original and of the models beside it in the same rounds."""

    original: list[float]
    models: dict[str, list[float]]
    other_load: float | None


class RuntimeTimer:
    """Times models beside `original`, which is exported once, as long as the context is open.

    `images`, `seed`: the draw whose first images int8 is calibrated on. Raises VitfrostError as `export` does, and where the CPU computes
    in another precision than was asked for. `scratch`: where exported models lie meanwhile, the same place in a search that goes on, which
    so removes what a killed one left (None: a new temporary folder). `clock`: seconds.
    """

    def __init__(
        self,
        original: Model,
        target: Target,
        images: ImagesLike,
        seed: int,
        progress: bool,
        scratch: Path | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.original, self.target, self.images, self.seed, self.progress = original, target, images, seed, progress
        self.scratch, self.clock = scratch, clock
        self._stack = ExitStack()
        self._kept: Path | None = None

    def __enter__(self) -> RuntimeTimer:
        if self.scratch is None:
            self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="vitfrost-latency-")))
        else:
            self._folder = self._stack.enter_context(scratch_folder(self.scratch))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def time(self, models: Mapping[str, Callable[[], Model]], text: str, seconds: float) -> Timed:
        """Time models, each made when its turn to be exported comes, beside the original, in rounds that take about `seconds` in all."""
        made: dict[str, Callable[[], Model]] = {ORIGINAL: lambda: self.original, **models}
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            sessions = {}
            try:
                for number, (name, make) in enumerate(made.items()):
                    if self.progress:
                        say(f"{text}: [{number + 1}/{len(made)}] {name}")
                    sessions[name] = self._open(name, make(), Path(folder) / str(number))
                with torch_threads(self.target.threads):
                    return self._timed(sessions, text, seconds)
            finally:
                sessions.clear()
                gc.collect()

    def _open(self, name: str, loaded: Model, folder: Path) -> Opened:
        target = self.target
        path = None if target.runtime in EAGER else str(self._export(name, loaded, folder))
        session = Opening(target.runtime, loaded.image_size, target.threads, path, precision=target.precision).open(loaded)
        if session.precision != target.precision:
            raise VitfrostError(f"this CPU computes {target.name} in {session.precision}; give another Search.runtime")
        return session

    def _export(self, name: str, loaded: Model, folder: Path) -> Path:
        if name == ORIGINAL and self._kept is not None:
            return self._kept
        target = self.target
        config, images = Export(RUNTIMES[target.runtime].format, target.precision, seed=self.seed), None  # type: ignore[arg-type]
        if target.precision == "int8":
            config, images = replace(config, calibration_images=CALIBRATION_IMAGES), self.images
        place = self._folder / ORIGINAL if name == ORIGINAL else folder
        path = export_graph(loaded, config, place, images, time_only=True)
        self._kept = path if name == ORIGINAL else self._kept
        return path

    def _timed(self, sessions: Mapping[str, Opened], text: str, seconds: float) -> Timed:
        pixels = Opening(self.target.runtime, self.original.image_size).pixels(1, self.seed)
        slots = {name: tried_slot(partial(session.run, pixels), self.clock) for name, session in sessions.items()}

        def rounds(taken: float) -> int:
            return min(max(round(seconds / taken), FEWEST_ROUNDS), MOST_ROUNDS)

        timed = interleaved(slots, rounds, self.seed, f"{text}: rounds", self.progress, self.clock)
        found = {name: [1e3 * statistics.median(taken) for taken in each] for name, each in timed.seconds.items()}
        return Timed(found.pop(ORIGINAL), found, timed.other_load)
