"""numba compilation with a cache that may fail: nothing but time depends on whether it can be written."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import unwrap
from typing import Any

from numba import njit


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call, without the interpreter lock; cached on disk where there is a writable place.

    numba raises RuntimeError at decoration when it finds no cache folder, and OSError during the first call when it
    cannot write there; the compiled code is already registered then, so the call is made once more.
    Wrappers that check annotations are taken off: numba compiles the plain function.
    """
    function = unwrap(function)
    try:
        compiled = njit(nogil=True, cache=True)(function)
    except RuntimeError:
        return njit(nogil=True)(function)

    @wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            return compiled(*arguments)
        except OSError:
            return compiled(*arguments)

    return call
