"""What is written is read; what was not written by us is refused in one line."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vitfrost.deploy.native.format import (
    EMBED,
    LINEAR,
    Layer,
    ModelFile,
    StoredTensor,
    from_bytes,
    read_model,
    to_bytes,
    write_model,
)  # fmt: skip
from vitfrost.errors import VitfrostError

SHAPES = arrays.array_shapes(min_dims=1, max_dims=4, max_side=7)


@st.composite
def arrays_of_bits(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Floats of any value, or codes."""
    if draw(st.booleans()):
        return draw(arrays.arrays(np.float32, SHAPES)), 32
    bits = draw(st.integers(1, 8))
    return draw(arrays.arrays(np.uint8, SHAPES, elements=st.integers(0, 2**bits - 1))), bits


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[tuple[np.ndarray, int]], list[tuple[Any, ...]]]:
    """Tensors, and layers that mean nothing."""
    stored = draw(st.lists(arrays_of_bits(), max_size=4))
    layer = st.tuples(
        st.sampled_from((LINEAR, EMBED)),
        st.lists(st.integers(-(2**31), 2**31 - 1), max_size=30).map(tuple),
        st.lists(st.floats(width=32, allow_nan=False), max_size=32).map(tuple),
        st.lists(st.integers(-1, len(stored) - 1), max_size=32).map(tuple),
    )
    return stored, draw(st.lists(layer, max_size=3))


def built(drawn: tuple[list[tuple[np.ndarray, int]], list[tuple[Any, ...]]]) -> ModelFile:
    stored, layers = drawn
    return ModelFile([StoredTensor(*each) for each in stored], [Layer(*each) for each in layers])


def padded(values: tuple[float, ...], count: int, unused: float) -> tuple[float, ...]:
    return (*values, *[unused] * (count - len(values)))


@given(tables())
def test_a_file_is_read_as_it_was_written(drawn: Any) -> None:
    file = built(drawn)
    data = to_bytes(file)
    again = from_bytes(data)
    assert to_bytes(again) == data
    for one, other in zip(file.tensors, again.tensors, strict=True):
        assert (one.bits, one.values.dtype, one.values.shape) == (other.bits, other.values.dtype, other.values.shape)
        assert one.values.tobytes() == other.values.tobytes()
    for wanted, found in zip(file.layers, again.layers, strict=True):
        assert found.kind == wanted.kind
        assert found.ints == padded(wanted.ints, 30, 0)
        assert found.floats == padded(wanted.floats, 32, 0.0)
        assert found.tensors == padded(wanted.tensors, 32, -1)


@given(tables(), st.data())
def test_a_file_cut_anywhere_is_refused(drawn: Any, data: st.DataObject) -> None:
    whole = to_bytes(built(drawn))
    with pytest.raises(ValueError, match=r"shorter|fit its size"):
        from_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])


@given(tables(), st.data())
def test_a_byte_that_changes_raises_nothing_but_a_value_error(drawn: Any, data: st.DataObject) -> None:
    damaged = bytearray(to_bytes(built(drawn)))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(ValueError):
        from_bytes(bytes(damaged))


def test_every_tensor_lies_at_a_multiple_of_64(tmp_path: Path) -> None:
    file = ModelFile()
    for length in (1, 3, 17, 64, 100):
        file.add_tensor(np.arange(length) % 8, 3)
        file.add_tensor(np.arange(length))
    path = tmp_path / "model.vfn"
    write_model(file, path)
    data = path.read_bytes()
    for index in range(10):
        offset = int.from_bytes(data[64 + 64 * index + 48 : 64 + 64 * index + 56], "little")
        assert offset % 64 == 0
    assert [tensor.values.size for tensor in read_model(path).tensors] == [1, 1, 3, 3, 17, 17, 64, 64, 100, 100]


def test_other_files_are_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.vfn"
    with pytest.raises(VitfrostError, match=r"cannot read .*model\.vfn: No such file"):
        read_model(path)
    path.write_bytes(b"x" * 100)
    with pytest.raises(VitfrostError, match="is damaged: it does not begin as a native model file; export again"):
        read_model(path)
    data = bytearray(to_bytes(ModelFile()))
    data[8] = 9
    path.write_bytes(data)
    with pytest.raises(VitfrostError, match="it has version 9, and version 1 is known"):
        read_model(path)


@pytest.mark.parametrize(("values", "bits"), [(np.zeros(3, np.float64), 32), (np.zeros((0,), np.uint8), 4), (np.zeros(3, np.uint8), 9)])
def test_tensors_that_no_file_holds_are_refused(values: np.ndarray, bits: int) -> None:
    with pytest.raises(ValueError, match=r"cannot be|1 to 8 bits"):
        StoredTensor(values, bits)
