"""Equations 10, 13 and 14 of the EAM paper on sparse histograms, and the moments from fixed-point sums.

A sparse histogram of many entries is (widths, bins, counts): `widths[e]` non-zero bins of entry e, then all bins in
ascending order per entry, with their counts. An entry without any count (a masked pair) gets 0 everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, Shaped, UInt8, UInt16

from .histogram import BINS, SQUARE_SCALE, SUM_SCALE
from .jit import jit


@jit
def _entropy(widths: Any, counts: Any, terms: Any, entropy: Any) -> None:
    at = 0
    for entry in range(len(widths)):
        total = 0.0
        for _ in range(widths[entry]):
            total += terms[counts[at]]
            at += 1
        entropy[entry] = total


@jit
def _divergence(
    widths_p: Any, bins_p: Any, counts_p: Any, images_p: Any, widths_q: Any, bins_q: Any, counts_q: Any, images_q: Any, divergence: Any
) -> None:
    unit_p, unit_q = 1.0 / (images_p + BINS), 1.0 / (images_q + BINS)
    both_empty = unit_p * np.log2(unit_p / unit_q)
    at_p, at_q = 0, 0
    for entry in range(len(widths_p)):
        end_p, end_q = at_p + widths_p[entry], at_q + widths_q[entry]
        counted = at_p < end_p or at_q < end_q
        total = 0.0
        empty = BINS
        while at_p < end_p or at_q < end_q:
            from_p = at_q == end_q or (at_p < end_p and bins_p[at_p] <= bins_q[at_q])
            from_q = at_p == end_p or (at_q < end_q and bins_q[at_q] <= bins_p[at_p])
            mass_p, mass_q = unit_p, unit_q
            if from_p:
                mass_p = (counts_p[at_p] + 1.0) * unit_p
            if from_q:
                mass_q = (counts_q[at_q] + 1.0) * unit_q
            total += mass_p * np.log2(mass_p / mass_q)
            empty -= 1
            at_p += from_p
            at_q += from_q
        divergence[entry] = max(total + empty * both_empty, 0.0) if counted else 0.0


def entropy_bits(
    widths: UInt16[np.ndarray, " entries"], counts: Shaped[np.ndarray, " cells"], images: int
) -> Float32[np.ndarray, " entries"]:
    """H = -sum_k p(k) log2 p(k) with p(k) = count / images (equation 13); 0 log 0 is 0. In [0, 8] bits."""
    share = np.arange(1, images + 1) / max(images, 1)
    terms = np.concatenate([[0.0], -share * np.log2(share)]) + 0.0
    entropy = np.empty(len(widths), np.float32)
    _entropy(widths, counts, terms, entropy)
    return entropy


def kl_bits(
    widths_p: UInt16[np.ndarray, " entries"],
    bins_p: UInt8[np.ndarray, " cells_p"],
    counts_p: Shaped[np.ndarray, " cells_p"],
    images_p: int,
    widths_q: UInt16[np.ndarray, " entries"],
    bins_q: UInt8[np.ndarray, " cells_q"],
    counts_q: Shaped[np.ndarray, " cells_q"],
    images_q: int,
) -> Float32[np.ndarray, " entries"]:
    """D(p || q) = sum_k p(k) log2(p(k) / q(k)) (equation 14) with p(k) = (count + 1) / (images + 256), in bits."""
    divergence = np.empty(len(widths_p), np.float32)
    _divergence(widths_p, bins_p, counts_p, images_p, widths_q, bins_q, counts_q, images_q, divergence)
    return divergence


def mean_of(sums: Int64[np.ndarray, " entries"], images: int) -> Float32[np.ndarray, " entries"]:
    """A^mu of equation 15: the mean over the images."""
    return (sums / (SUM_SCALE * max(images, 1))).astype(np.float32)


def variance_of(
    sums: Int64[np.ndarray, " entries"], squares: Int64[np.ndarray, " entries"], images: int
) -> Float32[np.ndarray, " entries"]:
    """E[a^2] - E[a]^2 over the images (divided by their number, not by one less)."""
    mean = sums / (SUM_SCALE * max(images, 1))
    return np.maximum(squares / (SQUARE_SCALE * max(images, 1)) - mean**2, 0.0).astype(np.float32)
