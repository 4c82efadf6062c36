"""The shared library behind its C interface (native/include/vitfrost.h), loaded once, when something first needs it."""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_int32, c_size_t, c_uint8, c_uint64, c_void_p
from functools import cache
from pathlib import Path

from .errors import VitfrostError

NAME = "libvitfrost.dylib" if sys.platform == "darwin" else "libvitfrost.so"
PLACE = "VITFROST_NATIVE_LIBRARY"  # an environment variable: the library of another place, such as a build folder
MESSAGE_BYTES = 1024


class CInfo(ctypes.Structure):
    """vf_info."""

    _fields_ = (
        *((name, c_int32) for name in ("channels", "height", "width", "classes", "tokens", "layers", "threads")),
        ("memory_bytes", c_uint64),
        ("isa", c_char_p),
    )


_FAILURE = (c_char_p, c_size_t)  # where the line goes that says what is wrong
_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "vf_open": (c_int, (c_char_p, c_int32, POINTER(c_void_p), *_FAILURE)),
    "vf_open_memory": (c_int, (c_char_p, c_size_t, c_int32, POINTER(c_void_p), *_FAILURE)),
    "vf_run": (c_int, (c_void_p, c_void_p, c_size_t, c_void_p, *_FAILURE)),
    "vf_describe": (None, (c_void_p, POINTER(CInfo))),
    "vf_close": (None, (c_void_p,)),
    "vf_isas": (c_char_p, ()),
    "vf_version": (c_char_p, ()),
    "vf_profile": (None, (c_void_p, c_int32)),
    "vf_profile_rows": (c_size_t, (c_void_p,)),
    "vf_profile_row": (c_int, (c_void_p, c_size_t, c_char_p, c_size_t, POINTER(c_double), POINTER(c_double))),
    "vf_check_product": (
        c_int,
        (
            c_char_p, c_int32, c_int32, c_int32, POINTER(c_uint8), c_int32, POINTER(c_uint8), POINTER(c_float), c_int32, c_int32,
            POINTER(c_int32), *_FAILURE,
        ),
    ),
}  # fmt: skip


@cache
def library() -> ctypes.CDLL:
    """The library with its signatures. Raises VitfrostError where it is not built, or is not this package's."""
    path = Path(os.environ.get(PLACE) or Path(__file__).parent / NAME)
    if not path.is_file():
        raise VitfrostError(f"the native engine is not built: there is no {path}; pip install ./native (it takes a C++ compiler)")
    try:
        loaded = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise VitfrostError(f"{path} cannot be used: {error}; build it again (pip install ./native)") from error
    return loaded


def call(name: str, *arguments: object) -> None:
    """Call a function that can fail; raises VitfrostError with its line. The interpreter's lock is free meanwhile."""
    message = ctypes.create_string_buffer(MESSAGE_BYTES)
    if getattr(library(), name)(*arguments, message, MESSAGE_BYTES):
        raise VitfrostError(message.value.decode("utf-8", "replace") or f"{name} failed without saying why")


def isas() -> tuple[str, ...]:
    """The instruction sets that this processor runs, best first. Raises VitfrostError where the library is not built."""
    return tuple(name for name in library().vf_isas().decode("ascii").split(",") if name)


def version() -> str:
    """The library's version."""
    text: str = library().vf_version().decode("ascii")
    return text
