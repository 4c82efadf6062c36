"""An open model: normalized pixels in, logits out; what it is, and where its time goes."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType

import numpy as np

from .errors import VitfrostError
from .library import CInfo, call, isas, library

ISA = "VITFROST_ISA"  # an environment variable: which instructions a model is opened for
_ENVIRONMENT = threading.RLock()
_MOST_INT32 = 2**31 - 1


@dataclass(frozen=True)
class Info:
    """What a model reads and gives, with how many threads, in how many bytes of memory, and on which instructions it runs."""

    channels: int
    height: int
    width: int
    classes: int
    tokens: int
    layers: int
    threads: int
    memory_bytes: int
    isa: str


@dataclass(frozen=True)
class ProfileRow:
    """A step of the model: its time and its multiply-accumulates, added up over all runs since the profile was switched on."""

    name: str
    seconds: float
    macs: float


class Model:
    """A model file that is open. May be used from several threads at once; logits are the same bits for any number of threads.

    `source`: the path of a file, or its bytes. `threads`: of a forward pass. It runs on the best of `isas()`, or as VITFROST_ISA says
    (see `instructions`). Raises VitfrostError in one line for a file that is damaged, and where the library is not built.
    """

    def __init__(self, source: str | Path | bytes, threads: int = 1):
        self._handle: ctypes.c_void_p | None = None
        handle = ctypes.c_void_p()
        threads = max(-1, min(threads, _MOST_INT32))  # the library refuses these and says how many it takes; larger ones would wrap round
        with _ENVIRONMENT:
            if isinstance(source, bytes):
                call("vf_open_memory", source, len(source), threads, ctypes.byref(handle))
            else:
                call("vf_open", os.fsencode(source), threads, ctypes.byref(handle))
        self._handle = handle
        self._uses = threading.Condition()
        self._running = 0
        described = CInfo()
        library().vf_describe(handle, ctypes.byref(described))
        numbers = {name: int(getattr(described, name)) for name in Info.__annotations__ if name != "isa"}
        self.info = Info(**numbers, isa=described.isa.decode("ascii"))

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """Logits float32 [B, classes] of normalized pixels float32 [B, channels, height, width]. Raises VitfrostError for others."""
        info = self.info
        shape = (info.channels, info.height, info.width)
        if pixels.dtype != np.float32 or pixels.ndim != 4 or pixels.shape[1:] != shape:
            wanted = f"float32 [B, {', '.join(map(str, shape))}]"
            raise VitfrostError(f"the pixels are {pixels.dtype} {list(pixels.shape)}; this model reads normalized pixels, {wanted}")
        pixels = np.ascontiguousarray(pixels)
        logits = np.empty((len(pixels), info.classes), np.float32)
        with self._open() as handle:
            call("vf_run", handle, pixels.ctypes.data, len(pixels), logits.ctypes.data)
        return logits

    def profile(self, on: bool = True) -> None:
        """Switch the profile on, from zero, or off."""
        with self._open() as handle:
            library().vf_profile(handle, int(on))

    def profile_rows(self) -> list[ProfileRow]:
        """The steps of the model in their order, as far as the profile knows them."""
        found = []
        with self._open() as handle:
            for row in range(library().vf_profile_rows(handle)):
                name, seconds, macs = ctypes.create_string_buffer(128), ctypes.c_double(), ctypes.c_double()
                if library().vf_profile_row(handle, row, name, len(name), ctypes.byref(seconds), ctypes.byref(macs)):
                    raise VitfrostError(f"the profile has no row {row}")
                found.append(ProfileRow(name.value.decode("utf-8", "replace"), seconds.value, macs.value))
        return found

    def close(self) -> None:
        """Give the memory back, once every run has ended; closing twice is the same."""
        if self._handle is None:
            return
        with self._uses:
            handle, self._handle = self._handle, None
            self._uses.wait_for(lambda: not self._running)
        if handle is not None:
            library().vf_close(handle)

    @contextmanager
    def _open(self) -> Iterator[ctypes.c_void_p]:
        with self._uses:
            if self._handle is None:
                raise VitfrostError("this model is closed; open it again")
            handle = self._handle
            self._running += 1
        try:
            yield handle
        finally:
            with self._uses:
                self._running -= 1
                self._uses.notify_all()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()


@contextmanager
def instructions(isa: str | None) -> Iterator[None]:
    """Let models that this thread opens run on these instructions, one of `isas()`; on the best of them if None."""
    with _ENVIRONMENT:
        before = os.environ.get(ISA)
        try:
            if isa is not None:
                os.environ[ISA] = isa
            yield
        finally:
            if isa is not None and before is None:
                del os.environ[ISA]
            elif isa is not None and before is not None:
                os.environ[ISA] = before


def multiply(side: int, repeat: int, bits: int = 8) -> None:
    """Compute `repeat` products of codes [side, side], 8 bits times weights of so many bits, on one thread: the rate of this machine.

    On the best instructions, or those of VITFROST_ISA. Raises VitfrostError where the processor does not have them.
    """
    x, weights, zeros, sums = _operands(side, bits)
    byte, number, integer = (ctypes.POINTER(kind) for kind in (ctypes.c_uint8, ctypes.c_float, ctypes.c_int32))
    call(
        "vf_check_product", (os.environ.get(ISA) or isas()[0]).encode("ascii"), side, side, side, x.ctypes.data_as(byte), 8,
        weights.ctypes.data_as(byte), zeros.ctypes.data_as(number), 128, repeat, sums.ctypes.data_as(integer),
    )  # fmt: skip


@cache
def _operands(side: int, bits: int) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(0)
    x, weights = (generator.integers(0, 2**each, (side, side), dtype=np.uint8) for each in (8, bits))
    return x, weights, np.full(side, 2 ** (bits - 1), np.float32), np.empty((side, side), np.int32)
