"""Which images make a batch, and the random numbers of an image: functions of (seed, epoch, position) and of nothing else.

Everything comes from the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, figure 15) on 64-bit integers, so the bits
do not depend on the device, on the number of processes, or on a library's version.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from ..errors import VitfrostError

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio, odd: SplitMix64's increment
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_ORDER, _ITEMS = 0x6F72646572, 0x6974656D73  # keep the order of an epoch and the seeds of its items apart


def epoch_order(n: int, seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    """The positions 0 ... n - 1 in the order of this epoch: sorted by a hash without collisions.

    Raises VitfrostError for a negative number, seed or epoch.
    """
    if n < 0:
        raise VitfrostError(f"there is no order of {n} images; give 0 or more")
    keys = _hashes(_ORDER, seed, epoch, torch.arange(n)).numpy().view(np.uint64)
    return np.argsort(keys, kind="stable").astype(np.int64)


def batches_of_rank(
    n: int, batch_size_per_process: int, rank: int, world: int, seed: int, epoch: int, drop_last: bool = True
) -> Iterator[Int64[np.ndarray, " batch"]]:
    """The positions that process `rank` of `world` takes, batch by batch.

    With B images per process, global batch b is the part [b * B * world, (b + 1) * B * world) of `epoch_order`, and the process
    takes its rank-th part of B; so what a global batch holds does not depend on how B * world is split. `drop_last` leaves out a last
    batch that is not full; without it, that batch is handed out too, and a process whose part of it is empty gets one batch less.

    Raises VitfrostError for sizes out of range, and where `drop_last` would leave nothing.
    """
    for name, value in (("batch size", batch_size_per_process), ("number of processes", world)):
        if value < 1:
            raise VitfrostError(f"the {name} must be at least 1, not {value}")
    if not 0 <= rank < world:
        raise VitfrostError(f"the rank {rank} is not one of {world} processes; ranks are 0 to {world - 1}")
    whole = batch_size_per_process * world
    if drop_last and n < whole:
        raise VitfrostError(f"{n} images are fewer than one batch of {whole}; give more images or a smaller batch size")
    order = epoch_order(n, seed, epoch)
    starts = range(rank * batch_size_per_process, n - n % whole if drop_last else n, whole)
    return (order[start : start + batch_size_per_process] for start in starts)


def item_seeds(seed: int, epoch: int, indices: Int64[np.ndarray, " batch"] | Int64[Tensor, " batch"]) -> Int64[Tensor, " batch"]:
    """A well-mixed 64-bit number for each position in this epoch, on the device of `indices`; distinct within an epoch.

    Raises VitfrostError for a negative seed or epoch.
    """
    positions = torch.from_numpy(np.ascontiguousarray(indices)) if isinstance(indices, np.ndarray) else indices
    return _hashes(_ITEMS, seed, epoch, positions)


def uniforms(item_seeds: Int64[Tensor, " batch"], count: int, stream: int = 0) -> Float32[Tensor, "batch count"]:
    """`count` numbers in [0, 1) per item, multiples of 2^-24, the same bits on every device.

    Number j of a stream does not depend on `count`; different `stream`s (0 ... 2^24 - 1) are for different purposes, each of
    up to 2^40 numbers.
    """
    places = torch.arange(1, count + 1, device=item_seeds.device) + (stream << 40)
    hashes = _finalize(item_seeds[:, None] + places * _signed(_GOLDEN))
    return (_shifted(hashes, 40)).to(torch.float32) * 2.0**-24


def _hashes(purpose: int, seed: int, epoch: int, positions: Tensor) -> Tensor:
    for name, value in (("seed", seed), ("epoch", epoch)):
        if value < 0:
            raise VitfrostError(f"the {name} {value} is negative; give 0 or more")
    state = purpose
    for value in (seed, epoch):
        state = _finalize_number(state + (value + 1) * _GOLDEN)
    return _finalize(positions * _signed(_GOLDEN) + _signed(state))


def _finalize(state: Tensor) -> Tensor:
    """SplitMix64's finalizer, a bijection; int64 as two's complement, where products wrap around."""
    state = (state ^ _shifted(state, 30)) * _signed(_FIRST)
    state = (state ^ _shifted(state, 27)) * _signed(_SECOND)
    return state ^ _shifted(state, 31)


def _finalize_number(state: int) -> int:
    state &= _MASK
    state = ((state ^ (state >> 30)) * _FIRST) & _MASK
    state = ((state ^ (state >> 27)) * _SECOND) & _MASK
    return state ^ (state >> 31)


def _shifted(state: Tensor, places: int) -> Tensor:
    """Logical shift to the right: torch's own keeps the sign."""
    return (state >> places) & ((1 << (64 - places)) - 1)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
