"""Models timed beside the original on one runtime: exported as `vitfrost export` does, batch 1, interleaved in random order."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from ..configs import Export
from ..deploy.export import export_graph
from ..errors import VitfrostError
from ..files import scratch_folder
from ..images.given import ImagesLike
from ..model import Model
from ..progress import say
from ..runtime.runtimes import OWN_BITS, RUNTIMES, reason_of
from ..timing.rounds import Slot, interleaved, tried_slot
from ..timing.sessions import EAGER, Opened, Opening
from ..torch_state import torch_threads
from .runtimes import Target

# int8 ranges for measurements of time come from so few of the search's images.
CALIBRATION_IMAGES = 8
FEWEST_ROUNDS, MOST_ROUNDS = 12, 60
ORIGINAL = "original"


@dataclass(frozen=True)
class Timed:
    """Milliseconds of one image, the median of every round: of the original and of the models beside it in the same rounds.

    `failed`: of models that could not be made, exported or run, the reason; where no other is left, nothing was timed.
    """

    original: list[float]
    models: dict[str, list[float]]
    other_load: float | None
    failed: dict[str, str] = field(default_factory=dict)


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
        """Time models, each made when its turn to be exported comes, beside the original, in rounds that take about `seconds` in all.

        Models that fail are left out. Raises VitfrostError where the original fails, or the disk is full.
        """
        made: dict[str, Callable[[], Model]] = {ORIGINAL: lambda: self.original, **models}
        pixels = Opening(self.target.runtime, self.original.image_size).pixels(1, self.seed)
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            sessions, slots, failed = {}, {}, {}
            try:
                for number, (name, make) in enumerate(made.items()):
                    if self.progress:
                        say(f"{text}: [{number + 1}/{len(made)}] {name}")
                    try:
                        sessions[name] = self._open(name, make(), Path(folder) / str(number))
                        with torch_threads(self.target.threads):
                            slots[name] = tried_slot(partial(sessions[name].run, pixels), self.clock)
                    except Exception as error:  # compilers and runtimes raise types of their own
                        if name == ORIGINAL or isinstance(error.__cause__ or error, OSError):
                            raise
                        failed[name] = reason_of(error)
                if failed and len(slots) == 1:
                    return Timed([], {}, None, failed)
                with torch_threads(self.target.threads):
                    return self._timed(slots, text, seconds, failed)
            finally:
                sessions.clear()
                slots.clear()
                gc.collect()

    def _open(self, name: str, loaded: Model, folder: Path) -> Opened:
        target = self.target
        path = None if target.runtime in EAGER else str(self._export(name, loaded, folder))
        session = Opening(target.runtime, loaded.image_size, target.threads, path, precision=target.precision).open(loaded)
        if target.runtime not in OWN_BITS and session.precision != target.precision:
            raise VitfrostError(f"this CPU computes {target.name} in {session.precision}; give another Search.runtime")
        return session

    def _export(self, name: str, loaded: Model, folder: Path) -> Path:
        if name == ORIGINAL and self._kept is not None:
            return self._kept
        target = self.target
        asked = {} if target.runtime in OWN_BITS else {"precision": target.precision}
        config, images = Export(RUNTIMES[target.runtime].format, seed=self.seed, **asked), None  # type: ignore[arg-type]
        if target.precision == "int8":
            config, images = replace(config, calibration_images=CALIBRATION_IMAGES), self.images
        place = self._folder / ORIGINAL if name == ORIGINAL else folder
        path = export_graph(loaded, config, place, images, time_only=True)
        self._kept = path if name == ORIGINAL else self._kept
        return path

    def _timed(self, slots: Mapping[str, Slot], text: str, seconds: float, failed: dict[str, str]) -> Timed:
        def rounds(taken: float) -> int:
            return min(max(round(seconds / taken), FEWEST_ROUNDS), MOST_ROUNDS)

        timed = interleaved(slots, rounds, self.seed, f"{text}: rounds", self.progress, self.clock)
        found = {name: [1e3 * statistics.median(taken) for taken in each] for name, each in timed.seconds.items()}
        return Timed(found.pop(ORIGINAL), found, timed.other_load, failed)
