"""Files come from anybody: whatever is wrong with one, the engine says so in one line, and the process lives."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitfrost.methods.quantize.repq import QuantizationSettings

from .simulation import quantized, quantized_model, turned, write

HEADER = {"version": 8, "tensors": 12, "layers": 16, "size": 24}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file that is sound."""
    module = quantized(4, 4, size=32, depth=1, init_values=0.1)
    return write(module, tmp_path_factory.mktemp("file") / "model.vfn").read_bytes()


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Sound files of other families: windows that reach over the grid, keys of patches, heads of 3 bits among others; a turned stream."""
    folder, settings = tmp_path_factory.mktemp("families"), QuantizationSettings(4, 8, "strict", heads=("*:1=3",))
    swin: dict[str, Any] = {"embed_dim": 24, "depths": (2, 1), "num_heads": (2, 3), "window_size": 4, "num_classes": 3}
    pvt: dict[str, Any] = {"depths": (1, 1), "embed_dims": (16, 36), "num_heads": (2, 3), "sr_ratios": (2, 1), "mlp_ratios": (2, 2)}
    models = (("swin_tiny_patch4_window7_224", swin), ("pvt_v2_b0", pvt | {"num_classes": 3}))
    made = [write(quantized_model(name, 36, options, settings), folder / f"{name}.vfn") for name, options in models]
    plain = {"depth": 1, "embed_dim": 24, "num_heads": 2, "num_classes": 0, "pre_norm": True}
    made.append(write(turned("vit_tiny_patch16_224", 32, plain, settings), folder / "turned.vfn"))
    return [path.read_bytes() for path in made]


def refused(engine: Any, data: bytes) -> str:
    """The line with which a file is refused."""
    with pytest.raises(engine.VitfrostError) as caught:
        engine.Model(data)
    line = str(caught.value)
    assert line
    assert "\n" not in line
    return line


def opened(engine: Any, data: bytes) -> None:
    """Open, run, close: either all of it, or one line."""
    with suppress(engine.VitfrostError), engine.Model(data) as model:
        info = model.info
        if info.channels * info.height * info.width < 2**20:
            model.run(np.zeros((1, info.channels, info.height, info.width), np.float32))


def test_a_file_cut_anywhere_is_refused(engine: Any, whole: bytes) -> None:
    for length in {*range(0, 200, 7), *range(200, len(whole), len(whole) // 50), len(whole) - 1}:
        refused(engine, whole[:length])
    refused(engine, whole + b"\0")


@pytest.mark.parametrize("field", HEADER)
@pytest.mark.parametrize("value", [0xFFFFFFFF, 0x7FFFFFFF, 77])
def test_a_header_with_other_numbers_is_refused(engine: Any, whole: bytes, field: str, value: int) -> None:
    data = bytearray(whole)
    struct.pack_into("<I", data, HEADER[field], value)
    refused(engine, bytes(data))


@settings(max_examples=300)
@given(data=st.data())
def test_bytes_of_the_tables_that_change(engine: Any, whole: bytes, data: st.DataObject) -> None:
    tensors, layers = struct.unpack_from("<II", whole, 12)
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, 64 + 64 * tensors + 384 * layers - 4))
        value = data.draw(st.one_of(st.sampled_from((0, 1, -1, 2**31 - 1, -(2**31), 64, 255)), st.integers(-(2**31), 2**31 - 1)))
        struct.pack_into("<i", damaged, place, value)
    opened(engine, bytes(damaged))


@settings(max_examples=200)
@given(data=st.data())
def test_tables_of_other_families_that_change(engine: Any, families: list[bytes], data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from(families))
    tensors, layers = struct.unpack_from("<II", whole, 12)
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        field = data.draw(st.integers(0, 29))
        place = 64 + 64 * tensors + 384 * data.draw(st.integers(0, layers - 1)) + 8 + 4 * field
        value = data.draw(st.one_of(st.integers(-2, 70), st.sampled_from((255, 4096, 65535, 2**31 - 1, -(2**31)))))
        struct.pack_into("<i", damaged, place, value)
    opened(engine, bytes(damaged))


@settings(max_examples=60)
@given(data=st.data())
def test_values_of_the_data_that_change(engine: Any, whole: bytes, data: st.DataObject) -> None:
    tensors, layers = struct.unpack_from("<II", whole, 12)
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(64 + 64 * tensors + 384 * layers, len(whole) - 4))
        struct.pack_into("<f", damaged, place, data.draw(st.floats(width=32)))
    opened(engine, bytes(damaged))


def test_missing_files_and_folders(engine: Any, tmp_path: Path) -> None:
    for path in (tmp_path / "none.vfn", tmp_path):
        with pytest.raises(engine.VitfrostError, match=str(path)):
            engine.Model(path)
