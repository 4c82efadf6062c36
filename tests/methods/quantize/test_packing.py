"""Packing loses nothing and takes exactly the bits it should."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vitfrost.errors import VitfrostError
from vitfrost.methods.quantize.packing import pack, packed_size, unpack


@given(st.data(), st.integers(1, 8), st.integers(0, 300))
def test_round_trip_and_size(data: st.DataObject, bits: int, count: int) -> None:
    codes = data.draw(arrays(np.uint8, count, elements=st.integers(0, 2**bits - 1)))
    packed = pack(codes, bits)
    assert packed.nbytes == packed_size(count, bits) == -(-count * bits // 8)
    assert np.array_equal(unpack(packed, bits, count), codes)


def test_two_codes_of_four_bits_share_a_byte() -> None:
    assert pack(np.array([3, 10, 15]), 4).tolist() == [3 + 10 * 16, 15]


@pytest.mark.parametrize(("codes", "bits"), [([16], 4), ([-1], 4), ([256], 8)])
def test_codes_that_do_not_fit_are_refused(codes: list[int], bits: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        pack(np.array(codes), bits)


def test_wrong_length_is_named() -> None:
    with pytest.raises(VitfrostError, match="damaged packed data: 3 bytes where 8 codes of 4 bits take 4"):
        unpack(np.zeros(3, np.uint8), 4, 8)
