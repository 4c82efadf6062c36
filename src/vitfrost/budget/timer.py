"""Models timed beside the original on one runtime: exported as `vitfrost export` does, batch 1, interleaved in random order."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..deploy.export import export
from ..errors import VitfrostError
from ..files import scratch_folder
from ..images.given import ImagesLike
from ..model import Model
from ..progress import say, track
from ..threads import torch_threads
from ..timing.eager import TorchSession
from ..timing.load import OtherLoad
from ..timing.rounds import Slot, slot_for, timed_rounds
from ..timing.sessions import Opening, Session
from .runtimes import Runtime

# int8 ranges for measurements of time come from so few of the search's images.
CALIBRATION_IMAGES = 8
WARM_UP = 2
FEWEST_ROUNDS, MOST_ROUNDS = 12, 60
FORMATS = {"onnxruntime": "onnx", "openvino": "openvino"}
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
        runtime: Runtime,
        images: ImagesLike,
        seed: int,
        progress: bool,
        scratch: Path | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.original, self.runtime, self.images, self.seed, self.progress = original, runtime, images, seed, progress
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
                with torch_threads(self.runtime.threads):
                    return self._timed(sessions, text, seconds)
            finally:
                sessions.clear()
                gc.collect()

    def _open(self, name: str, loaded: Model, folder: Path) -> Session:
        runtime = self.runtime
        if runtime.runtime == "torch":
            return TorchSession(loaded, runtime.threads, runtime.precision, False, "cpu")
        path = self._kept if name == ORIGINAL else None
        if path is None:
            int8: dict[str, Any] = {"images": self.images, "calibration_images": CALIBRATION_IMAGES} if runtime.precision == "int8" else {}
            place = self._folder / ORIGINAL if name == ORIGINAL else folder
            path = export(
                loaded, format=FORMATS[runtime.runtime], precision=runtime.precision, out=place, seed=self.seed, time_only=True,  # type: ignore[arg-type]
                **int8,
            )  # fmt: skip
            self._kept = path if name == ORIGINAL else self._kept
        hint = "bf16" if runtime.precision == "bf16" else None
        session = Opening(runtime.runtime, loaded.image_size, runtime.threads, export=str(path), hint=hint).open()
        if session.precision != runtime.precision:
            raise VitfrostError(f"this CPU computes {runtime.name} in {session.precision}; give another --runtime")
        return session

    def _timed(self, sessions: Mapping[str, Session], text: str, seconds: float) -> Timed:
        pixels = Opening(self.runtime.runtime, self.original.image_size).pixels(1, self.seed)
        runs: dict[str, Callable[[], object]] = {name: partial(session.run, pixels) for name, session in sessions.items()}
        slots: dict[str, Slot] = {}
        for name, run in runs.items():
            run()  # compiles, allocates
            start = self.clock()
            run()
            slots[name] = slot_for(run, self.clock() - start)
        start = self.clock()
        for _ in timed_rounds(slots, WARM_UP, self.seed, self.clock):
            pass
        rounds = round(seconds * WARM_UP / (self.clock() - start))
        rounds = min(max(rounds, FEWEST_ROUNDS), MOST_ROUNDS)
        found: dict[str, list[float]] = {name: [] for name in slots}
        others = OtherLoad()
        for one in track(timed_rounds(slots, rounds, self.seed + 1, self.clock), rounds, f"{text}: rounds", self.progress):
            for name, taken in one.items():
                found[name].append(1e3 * statistics.median(taken))
        return Timed(found.pop(ORIGINAL), found, others.cores())
