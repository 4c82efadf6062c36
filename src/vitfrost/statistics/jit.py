"""Loops that numba compiles, at their first call: importing it takes longer than many commands do."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import unwrap
from threading import Lock
from typing import Any


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call, without the interpreter lock; cached on disk where there is a writable place.

    numba raises RuntimeError at decoration when it finds no cache folder, and OSError during the first call when it
    cannot write there; the compiled code is already registered then, so the call is made once more.
    Wrappers that check annotations are taken off: numba compiles the plain function.
    """
    function, lock = unwrap(function), Lock()
    made: list[Callable[..., Any]] = []

    @wraps(function)
    def call(*arguments: Any) -> Any:
        with lock:
            if not made:
                made.append(_compiled(function))
        try:
            return made[0](*arguments)
        except OSError:
            return made[0](*arguments)

    return call


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    from numba import njit

    try:
        compiled: Callable[..., Any] = njit(nogil=True, cache=True)(function)
    except RuntimeError:
        compiled = njit(nogil=True)(function)
    return compiled
