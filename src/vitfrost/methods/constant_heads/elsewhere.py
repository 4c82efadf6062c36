"""What was carried over to other patch grids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

GRIDS = 4
T = TypeVar("T")


class Elsewhere(Generic[T]):
    """What was made for the last few patch grids, for as long as what it was made of stays the same. Copies and files begin without it."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, int], tuple[object, T]] = {}

    def get(self, grid: tuple[int, int], made_of: object, make: Callable[[], T]) -> T:
        """What is there for a grid, made now if need be; `made_of` is compared with that of before."""
        before, made = self._made.pop(grid, (None, None))
        if made is None or before != made_of:
            made = make()
        self._made[grid] = made_of, made
        for old in list(self._made)[:-GRIDS]:
            self._made.pop(old, None)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Elsewhere, ()
