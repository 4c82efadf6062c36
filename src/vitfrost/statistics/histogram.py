"""Counters of equation 12 for every attention weight ("entry"), updated while the images stream by.

Memory per entry, whatever the number of images: 336 bytes.
    recent   uint8  [16, entries]   bins 0-15 of at most 255 images, then added to
    low      uint32 [16, entries]   bins 0-15; about 98 % of all attention weights fall here
    high     uint8  [entries, 240]  bins 16-255; a cell that wraps is noted as (cell, wraps)
    sums     int64  [entries]       sum of q = round(a * 2^30)
    squares  int64  [entries]       sum of round(q^2 / 2^16), that is of a^2 * 2^44
Everything is an integer, so the result depends neither on the order nor on the grouping of the images.
A weight a in [0, 1] falls into bin min(floor(256 a), 255).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8, UInt16

from .jit import jit

BINS = 256
LOW_BINS = 16
HIGH_BINS = BINS - LOW_BINS
SUM_SCALE = 2.0**30
SQUARE_SCALE = 2.0**44
BYTES_PER_ENTRY = LOW_BINS * (4 + 1) + HIGH_BINS + 8 + 8
MAX_IMAGES = 2**19 - 1  # beyond this, the sum of squares of a weight that is always 1 would not fit into int64

_TILE = 1024
_BLOCK = 16
_FLUSH = 255
_CARRY = 256  # counts that one wrap of a high cell stands for
_PENDING = 1 << 16


@jit
def _accumulate(maps: Any, first: Any, last: Any, recent: Any, high: Any, sums: Any, squares: Any, carried: Any, carries: Any) -> Any:
    """Count the entries [first, last) of maps [images, entries]; `first` is a multiple of the tile.

    The flat cells (entry * 240 + bin - 16) that wrapped go to `carried` from entry * images of the tile's first entry on,
    their number per tile to `carries`. Returns True when some weight is not in [0, 1] (rounding aside).
    """
    images = maps.shape[0]
    codes = np.zeros((_BLOCK, _TILE), np.uint8)
    words = codes.view(np.uint64)
    bad = False
    for base in range(first, last, _TILE):
        size = min(_TILE, last - base)
        tile_sums = sums[base : base + size]
        tile_squares = squares[base : base + size]
        used = base * images
        codes[:] = 0
        for block in range(0, images, _BLOCK):
            count = min(_BLOCK, images - block)
            present = np.int32(0)
            for image in range(count):
                row = maps[block + image, base : base + size]
                code = codes[image]
                for entry in range(size):
                    weight = row[entry]
                    bad |= not (weight >= np.float32(0.0) and weight <= np.float32(1.001))
                    weight = min(weight, np.float32(1.0))
                    bin_ = min(np.int32(weight * np.float32(256.0)), np.int32(255))
                    code[entry] = bin_
                    present |= bin_
                    fixed = np.int64(np.int32(np.rint(weight * np.float32(1073741824.0))))
                    tile_sums[entry] += fixed
                    tile_squares[entry] += (fixed * fixed + 32768) >> 16
            for k in range(min(int(present), LOW_BINS - 1) + 1):
                wanted = np.uint8(k)
                counter = recent[k, base : base + size]
                for image in range(count):
                    code = codes[image]
                    for entry in range(size):
                        counter[entry] += np.uint8(code[entry] == wanted)
            if present < LOW_BINS:
                continue
            for image in range(count):
                for word in range((size + 7) // 8):
                    if words[image, word] & np.uint64(0xF0F0F0F0F0F0F0F0):
                        for entry in range(8 * word, min(8 * word + 8, size)):
                            above = np.int64(codes[image, entry]) - LOW_BINS
                            if above >= 0:
                                value = np.uint8(high[base + entry, above] + np.uint8(1))
                                high[base + entry, above] = value
                                if value == 0:
                                    carried[used] = (base + entry) * HIGH_BINS + above
                                    used += 1
        carries[base // _TILE] = used - base * images
    return bad


@jit
def _count_bins(low: Any, high: Any, cells: Any, widths: Any) -> None:
    """Number of non-zero bins of every entry; `cells` are the sorted high cells that ever wrapped."""
    words = high.view(np.uint64)
    at = 0
    for entry in range(low.shape[1]):
        width = 0
        for k in range(LOW_BINS):
            width += low[k, entry] != 0
        for word in range(HIGH_BINS // 8):
            if words[entry, word] != 0:
                for k in range(8 * word, 8 * word + 8):
                    width += high[entry, k] != 0
        while at < len(cells) and cells[at] < (entry + 1) * HIGH_BINS:
            width += high[entry, cells[at] - entry * HIGH_BINS] == 0
            at += 1
        widths[entry] = width


@jit
def _fill_bins(low: Any, high: Any, cells: Any, wraps: Any, bins: Any, counts: Any) -> None:
    """Write the non-zero bins of every entry and their counts one after the other."""
    at, out = 0, 0
    for entry in range(low.shape[1]):
        for k in range(LOW_BINS):
            if low[k, entry] != 0:
                bins[out] = k
                counts[out] = low[k, entry]
                out += 1
        for k in range(HIGH_BINS):
            count = np.int64(high[entry, k])
            if at < len(cells) and cells[at] == entry * HIGH_BINS + k:
                count += _CARRY * wraps[at]
                at += 1
            if count != 0:
                bins[out] = k + LOW_BINS
                counts[out] = count
                out += 1


@cache
def _helpers(threads: int) -> ThreadPoolExecutor:
    """Threads that count beside the calling one; kept, since starting them would take longer than they count."""
    return ThreadPoolExecutor(max(threads, 1), thread_name_prefix="vitfrost-count")


class Counters:
    """Histogram counters and fixed-point sums of `entries` attention weights; see the module for layout and memory."""

    def __init__(self, entries: int):
        self.entries = entries
        self.images = 0
        self.sums: Int64[np.ndarray, " entries"] = np.zeros(entries, np.int64)
        self.squares: Int64[np.ndarray, " entries"] = np.zeros(entries, np.int64)
        self._low = np.zeros((LOW_BINS, entries), np.uint32)
        self._recent = np.zeros((LOW_BINS, entries), np.uint8)
        self._high = np.zeros((entries, HIGH_BINS), np.uint8)
        self._in_recent = 0
        self._cells = np.zeros(0, np.int64)
        self._wraps = np.zeros(0, np.int64)
        self._pending: list[np.ndarray] = []
        self._carried = np.empty(0, np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        noted = self._cells.nbytes + self._wraps.nbytes + sum(cells.nbytes for cells in self._pending)
        return BYTES_PER_ENTRY * self.entries + noted

    def accumulate(self, maps: Float32[np.ndarray, "images entries"], threads: int = 1) -> None:
        """Count C-contiguous maps. Raises ValueError for weights that are not in [0, 1] and for too many images."""
        if self.images + len(maps) > MAX_IMAGES:
            raise ValueError(f"more than {MAX_IMAGES} images do not fit into the counters")
        tiles = -(-self.entries // _TILE)
        bounds = [min(tiles * part // threads * _TILE, self.entries) for part in range(threads + 1)]
        for start in range(0, len(maps), _FLUSH):
            part = maps[start : start + _FLUSH]
            if self._in_recent + len(part) > _FLUSH:
                self._flush()
            carried = self._room_for_carries(part.size)
            carries = np.zeros(tiles, np.int64)

            def work(span: tuple[int, int], part=part, carried=carried, carries=carries) -> bool:
                return _accumulate(part, *span, self._recent, self._high, self.sums, self.squares, carried, carries)

            own, *others = [(first, last) for first, last in pairwise(bounds) if first < last]
            elsewhere = [_helpers(len(others)).submit(work, span) for span in others]
            if any([work(own), *(future.result() for future in elsewhere)]):
                raise ValueError("attention weights that are not numbers between 0 and 1")
            self._in_recent += len(part)
            self._note_carries(carried, carries, len(part))
        self.images += len(maps)

    def _room_for_carries(self, size: int) -> Int64[np.ndarray, " size"]:
        """Room for the worst case; untouched pages take no memory. Kept, since giving 8 bytes per weight back to the system
        after every batch makes it take pages from the model's own buffers too, which slows the next layers."""
        if len(self._carried) < size:
            self._carried = np.empty(size, np.int64)
        return self._carried[:size]

    def _flush(self) -> None:
        self._low += self._recent
        self._recent[:] = 0
        self._in_recent = 0

    def _note_carries(self, carried: np.ndarray, carries: np.ndarray, images: int) -> None:
        for tile in np.flatnonzero(carries):
            start = tile * _TILE * images
            self._pending.append(carried[start : start + carries[tile]].copy())
        if sum(map(len, self._pending)) > max(_PENDING, len(self._cells)):
            self._consolidate()

    def _consolidate(self) -> None:
        """Fold the pending carries into the sorted, unique cells."""
        if not self._pending:
            return
        fresh = np.concatenate(self._pending)
        self._pending = []
        self._cells, where = np.unique(np.concatenate([self._cells, fresh]), return_inverse=True)
        wraps = np.zeros(len(self._cells), np.int64)
        np.add.at(wraps, where[: len(self._wraps)], self._wraps)
        self._wraps = wraps + np.bincount(where[len(self._wraps) :], minlength=len(self._cells))

    def forget(self, entries: Bool[np.ndarray, " entries"]) -> None:
        """Set everything known about these entries to zero (masked pairs, which are no attention weights)."""
        self._flush()
        self._consolidate()
        self._low[:, entries] = 0
        self._high[entries] = 0
        self.sums[entries] = 0
        self.squares[entries] = 0
        keep = ~entries[self._cells // HIGH_BINS]
        self._cells, self._wraps = self._cells[keep], self._wraps[keep]

    def sparse(self) -> tuple[UInt16[np.ndarray, " entries"], UInt8[np.ndarray, " cells"], np.ndarray]:
        """Number of non-zero bins per entry, those bins, and their counts (unsigned, the smallest type that fits `images`)."""
        self._flush()
        self._consolidate()
        widths = np.zeros(self.entries, np.uint16)
        _count_bins(self._low, self._high, self._cells, widths)
        size = int(widths.sum(dtype=np.int64))
        bins = np.empty(size, np.uint8)
        counts = np.empty(size, count_type(self.images))
        _fill_bins(self._low, self._high, self._cells, self._wraps, bins, counts)
        return widths, bins, counts


def count_type(images: int) -> np.dtype:
    """Smallest unsigned integer type for counts of at most `images`."""
    return np.min_scalar_type(images)


@jit
def _merged_widths(widths_a: Any, bins_a: Any, widths_b: Any, bins_b: Any, widths: Any) -> None:
    at_a, at_b = 0, 0
    for entry in range(len(widths)):
        end_a, end_b = at_a + widths_a[entry], at_b + widths_b[entry]
        while at_a < end_a or at_b < end_b:
            from_a = at_b == end_b or (at_a < end_a and bins_a[at_a] <= bins_b[at_b])
            from_b = at_a == end_a or (at_b < end_b and bins_b[at_b] <= bins_a[at_a])
            at_a += from_a
            at_b += from_b
            widths[entry] += 1


@jit
def _merged_counts(widths_a: Any, bins_a: Any, counts_a: Any, widths_b: Any, bins_b: Any, counts_b: Any, bins: Any, counts: Any) -> None:
    at_a, at_b, out = 0, 0, 0
    for entry in range(len(widths_a)):
        end_a, end_b = at_a + widths_a[entry], at_b + widths_b[entry]
        while at_a < end_a or at_b < end_b:
            from_a = at_b == end_b or (at_a < end_a and bins_a[at_a] <= bins_b[at_b])
            from_b = at_a == end_a or (at_b < end_b and bins_b[at_b] <= bins_a[at_a])
            count = np.int64(0)
            if from_a:
                bins[out] = bins_a[at_a]
                count += counts_a[at_a]
            if from_b:
                bins[out] = bins_b[at_b]
                count += counts_b[at_b]
            counts[out] = count
            at_a += from_a
            at_b += from_b
            out += 1


Sparse = tuple[np.ndarray, np.ndarray, np.ndarray]


def merge_sparse(a: Sparse, b: Sparse, images: int) -> Sparse:
    """Add two sparse histograms (widths, bins, counts) of the same entries; `images` is the number in both together."""
    widths = np.zeros(len(a[0]), np.uint16)
    _merged_widths(*a[:2], *b[:2], widths)
    size = int(widths.sum(dtype=np.int64))
    bins, counts = np.empty(size, np.uint8), np.empty(size, count_type(images))
    _merged_counts(*a, *b, bins, counts)
    return widths, bins, counts
