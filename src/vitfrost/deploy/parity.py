"""Does the exported model say what the original says? Compared on the same pixels, in batches of one, of three, and the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from ..errors import VitfrostError

BATCHES = (1, 3)
LATER_BATCHES = 16
# Largest difference of a logit relative to the largest logit: rounding of fp32 adds up to 1e-6; bf16 keeps 8 bits.
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
# What a model that is quantized soundly passes with ease, and one that is broken does not. On random pixels no class stands out, and 4-bit
# codes decide which is best: there the correlation alone counts.
SMALLEST_CORRELATION, SMALLEST_AGREEMENT = 0.8, 0.5


@dataclass(frozen=True)
class Parity:
    """How far logits differ. `tolerance` bounds the difference, unless the model is int8 (None): then the correlation of the
    logits (each picture's mean taken off) and, on pictures, the agreement of the best classes are bounded from below. Features have a
    `cosine`, the mean over the pictures, in the place of agreement."""

    images: int
    pixels: str
    max_abs_difference: float
    tolerance: float | None
    agreement: float | None
    correlation: float
    cosine: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for export.json."""
        bounds = {} if self.tolerance is not None else {"smallest_correlation": SMALLEST_CORRELATION}
        if bounds and self.pixels == "images" and self.agreement is not None:
            bounds["smallest_agreement"] = SMALLEST_AGREEMENT
        known = {name: value for name, value in asdict(self).items() if value is not None or name == "tolerance"}
        return {**known, "batches": list(BATCHES), **bounds}


def in_batches(run: Callable[[ndarray], ndarray], pixels: Float[ndarray, "images 3 height width"]) -> Float[ndarray, images * outputs]:
    """Outputs of batches of one, of three, and of what is left."""
    cuts = [0, *np.cumsum(BATCHES).tolist()]
    cuts += [*range(cuts[-1] + LATER_BATCHES, len(pixels), LATER_BATCHES), len(pixels)]
    return np.concatenate([run(pixels[start:end]) for start, end in pairwise(cuts) if start < min(end, len(pixels))])


def compare(
    expected: Float[ndarray, images * outputs],
    found: Float[ndarray, images * outputs],
    precision: str,
    pixels: str,
    features: bool = False,
) -> Parity:
    """The difference of two models' logits, or features, on the same pixels. `precision`: what is bounded, see Parity."""
    expected, found = expected.reshape(len(expected), -1), found.reshape(len(found), -1)
    scale = max(1.0, float(np.abs(expected).max()))
    one, two = (logits - logits.mean(axis=1, keepdims=True) for logits in (expected.astype(np.float64), found.astype(np.float64)))
    norm = float(np.sqrt((one**2).sum() * (two**2).sum()))
    return Parity(
        images=len(expected),
        pixels=pixels,
        max_abs_difference=float(np.abs(expected - found).max()),
        tolerance=TOLERANCE[precision] * scale if precision in TOLERANCE else None,
        agreement=None if features else float((expected.argmax(axis=1) == found.argmax(axis=1)).mean()),
        correlation=float((one * two).sum()) / norm if norm > 0 else 1.0,
        cosine=_mean_cosine(expected.astype(np.float64), found.astype(np.float64)) if features else None,
    )


def _mean_cosine(one: ndarray, two: ndarray) -> float:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    return float(((one * two).sum(axis=1) / np.maximum(lengths, 1e-30)).mean())


def refuse_difference(parity: Parity, name: str, form: str) -> None:
    """Raise VitfrostError for logits that differ by more than rounding, or quantization, explains."""
    where = f"nothing was written: the {form} export of {name} does not compute what the model does"
    if not np.isfinite(parity.max_abs_difference):
        raise VitfrostError(f"{where}; its logits are not finite")
    if parity.tolerance is not None and parity.max_abs_difference > parity.tolerance:
        raise VitfrostError(f"{where}; logits differ by {parity.max_abs_difference:.2e}, the tolerance is {parity.tolerance:.2e}")
    if parity.tolerance is not None:
        return
    mend = (
        "give more and other calibration images, or export fp32"
        if parity.pixels == "images"
        else "give images to compare on (--images DIR)"
    )
    agreement = 1.0 if parity.agreement is None else parity.agreement
    if parity.correlation < SMALLEST_CORRELATION or (parity.pixels == "images" and agreement < SMALLEST_AGREEMENT):
        what = (
            f"the best class agrees on {100 * agreement:.0f} % of {parity.images} images "
            f"(at least {100 * SMALLEST_AGREEMENT:.0f} %), logits"
            if parity.cosine is None
            else f"features have a cosine of {parity.cosine:.3f}, they"
        )
        raise VitfrostError(f"{where}; in int8 {what} correlate by {parity.correlation:.3f} (at least {SMALLEST_CORRELATION}); {mend}")
