"""The engine's integer sums are exact on every instruction set: all shapes of tiles, all numbers of bits, the largest codes there are."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

BYTES, FLOATS, INTS = (ctypes.POINTER(kind) for kind in (ctypes.c_uint8, ctypes.c_float, ctypes.c_int32))


def sums_of(engine: Any, isa: str, x: np.ndarray, x_zero: int, x_bits: int, weights: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    """What the engine makes of codes x [rows, depth] and weights [columns, depth]."""
    sums = np.full((len(x), len(weights)), -1, np.int32)
    engine.library.call(
        "vf_check_product", isa.encode(), len(x), len(weights), x.shape[1], np.ascontiguousarray(x).ctypes.data_as(BYTES), x_bits,
        np.ascontiguousarray(weights).ctypes.data_as(BYTES), zeros.astype(np.float32).ctypes.data_as(FLOATS), x_zero, 1,
        sums.ctypes.data_as(INTS),
    )  # fmt: skip
    return sums


def exact(x: np.ndarray, x_zero: int, weights: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    return (x.astype(np.int64) - x_zero) @ (weights.astype(np.int64) - zeros[:, None]).T


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_sums_of_any_shape_are_exact(engine: Any, data: st.DataObject) -> None:
    rows, columns, depth = (data.draw(st.integers(1, most)) for most in (14, 150, 90))
    x_bits, weight_bits = data.draw(st.integers(2, 8)), data.draw(st.integers(1, 8))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    x = generator.integers(0, 2**x_bits, (rows, depth), dtype=np.uint8)
    weights = generator.integers(0, 2**weight_bits, (columns, depth), dtype=np.uint8)
    zeros = generator.integers(*sorted(data.draw(st.tuples(st.integers(-300, 300), st.integers(301, 600)))), columns)
    x_zero = data.draw(st.integers(-300, 300))
    for isa in engine.isas():
        found = sums_of(engine, isa, x, x_zero, x_bits, weights, zeros)
        np.testing.assert_array_equal(found, exact(x, x_zero, weights, zeros), err_msg=isa)


@pytest.mark.parametrize("x_bits", range(2, 9))
@pytest.mark.parametrize("weight_bits", range(1, 9))
def test_the_largest_codes_neither_saturate_nor_overflow(engine: Any, x_bits: int, weight_bits: int) -> None:
    depth, highest = 3072, 2**weight_bits - 1
    x = np.full((7, depth), 2**x_bits - 1, np.uint8)
    weights = np.stack([np.full(depth, value, np.uint8) for value in (0, highest)] * 9)
    zeros = np.array([(0, highest, 2 ** (weight_bits - 1))[index // 6] for index in range(18)])
    for isa in engine.isas():
        np.testing.assert_array_equal(sums_of(engine, isa, x, 0, x_bits, weights, zeros), exact(x, 0, weights, zeros), err_msg=isa)


@pytest.mark.parametrize("shape", [(33, 1400, 768), (3, 16100, 65)], ids=str)
def test_large_matrices_of_four_bits_are_exact(engine: Any, shape: tuple[int, int, int]) -> None:
    rows, columns, depth = shape
    generator = np.random.default_rng(0)
    x, weights = (generator.integers(0, 2**bits, (count, depth), dtype=np.uint8) for bits, count in ((8, rows), (4, columns)))
    zeros = generator.integers(0, 16, columns)
    for isa in engine.isas():
        np.testing.assert_array_equal(sums_of(engine, isa, x, 100, 8, weights, zeros), exact(x, 100, weights, zeros), err_msg=isa)


def test_sums_that_do_not_fit_are_refused(engine: Any) -> None:
    x, weights = np.zeros((1, 16384), np.uint8), np.full((1, 16384), 255, np.uint8)
    with pytest.raises(Exception, match="do not fit 32 bits"):
        sums_of(engine, engine.isas()[0], x, 30000, 8, weights, np.zeros(1))
