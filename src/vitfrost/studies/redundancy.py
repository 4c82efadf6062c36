"""How many attention weights a map quantizer makes constant by itself. Formulas only; its levels are integer codes."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray


def count_levels(counts: Int[ndarray, "levels entries"], codes: Int[ndarray, "images entries"]) -> None:
    """Add to `counts`, in place, how many images put each entry on each level."""
    for level in range(len(counts)):
        counts[level] += (codes == level).sum(axis=0, dtype=counts.dtype)


def constant_entries(counts: Int[ndarray, "levels entries"], share: float = 0.99) -> Bool[ndarray, " entries"]:
    """Entries that stand on one level in more than `share` of the images."""
    return np.asarray(counts.max(axis=0) > share * counts.sum(axis=0))


def zero_entries(counts: Int[ndarray, "levels entries"], zero: int, share: float = 0.99) -> Bool[ndarray, " entries"]:
    """Entries that stand on the level `zero` in more than `share` of the images."""
    return np.asarray(counts[zero] > share * counts.sum(axis=0))
