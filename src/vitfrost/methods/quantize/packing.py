"""Exact packing of small integers: b bits take b bits. Pure numpy, so that artifacts can be read without torch."""

from __future__ import annotations

import numpy as np
from jaxtyping import Integer, UInt8

from ...errors import VitfrostError


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take."""
    return (count * bits + 7) // 8


def pack(codes: Integer[np.ndarray, count], bits: int) -> UInt8[np.ndarray, size]:
    """Pack codes 0 .. 2^bits - 1, bits 1 to 8, lowest bit first.

    Raises ValueError for a code that does not fit: a packed file must never lose anything silently.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be 1 to 8, got {bits}")
    if codes.size and (int(codes.min()) < 0 or int(codes.max()) >= 2**bits):
        raise ValueError(f"codes {int(codes.min())}..{int(codes.max())} do not fit {bits} bits")
    codes = codes.astype(np.uint8)
    if bits == 8:
        return codes
    if bits == 4:
        even = codes[0::2].copy()
        odd = codes[1::2]
        even[: odd.size] |= odd << 4
        return even
    planes = (codes[:, None] >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(planes.reshape(-1), bitorder="little")


def unpack(packed: UInt8[np.ndarray, size], bits: int, count: int) -> UInt8[np.ndarray, count]:
    """The inverse of `pack`; raises VitfrostError when the packed bytes are not as many as `count` codes take."""
    if packed.size != packed_size(count, bits):
        raise VitfrostError(f"damaged packed data: {packed.size} bytes where {count} codes of {bits} bits take {packed_size(count, bits)}")
    if bits == 8:
        return packed.copy()
    if bits == 4:
        codes = np.empty(2 * packed.size, dtype=np.uint8)
        codes[0::2] = packed & 15
        codes[1::2] = packed >> 4
        return codes[:count]
    planes = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    return (planes << np.arange(bits, dtype=np.uint8)).sum(axis=1, dtype=np.uint8)
