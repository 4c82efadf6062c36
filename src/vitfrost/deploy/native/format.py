"""The native model file, version 1, little endian: tensors (float32, or codes of 1 to 8 bits), and the layers that name them.

    0    "VFNATIVE"; u32 version, tensors, layers, 0; u64 bytes of the file; 32 zeros
    64   a record of 64 bytes per tensor: u32 kind, bits, rank, 0; u64 shape[4], offset, bytes
         a record of 384 bytes per layer: u32 kind, 0; i32 ints[30]; f32 floats[32]; i32 tensors[32]
         the tensors' data, each at a multiple of 64

docs/engine.md says what the numbers of every kind of layer mean. Pure NumPy: no torch.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np

from ...errors import VitfrostError
from ...files import atomic_file
from ...methods.quantize.packing import pack, packed_size, unpack

MAGIC, VERSION = b"VFNATIVE", 1
ALIGNMENT = 64
INTS, FLOATS, TENSORS = 30, 32, 32
LARGEST_RANK, LARGEST_COUNT = 4, 2**16
_HEADER, _TENSOR, _LAYER = struct.Struct("<8sIIIIQ32x"), struct.Struct("<IIII4QQQ"), struct.Struct(f"<II{INTS}i{FLOATS}f{TENSORS}i")
_FLOAT32, _CODES = 1, 2
NONE = -1

# Kinds of layers: objects that others name, then what is run in order.
LINEAR, NORM, EMBED, ATTENTION, FEED_FORWARD, HEAD, NORM_STEP = 1, 2, 10, 11, 12, 13, 14
DEPTHWISE, WINDOW_ATTENTION, DOWNSAMPLE, OVERLAPPING_EMBED, REDUCED_ATTENTION, CONVOLVED_FEED_FORWARD = 3, 15, 16, 17, 18, 19
TURN_STEP = 20
OBJECTS = (LINEAR, NORM, DEPTHWISE)
KINDS = (
    *OBJECTS, EMBED, ATTENTION, FEED_FORWARD, HEAD, NORM_STEP,
    WINDOW_ATTENTION, DOWNSAMPLE, OVERLAPPING_EMBED, REDUCED_ATTENTION, CONVOLVED_FEED_FORWARD, TURN_STEP,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """An array of the file: float32 where `bits` is 32, else uint8 codes below 2^bits."""

    values: np.ndarray
    bits: int = 32

    def __post_init__(self) -> None:
        kind = np.float32 if self.bits == 32 else np.uint8
        if self.values.dtype != kind or not 1 <= self.values.ndim <= LARGEST_RANK or not self.values.size:
            raise ValueError(f"a tensor of {self.bits} bits cannot be {self.values.dtype} {list(self.values.shape)}")
        if self.bits != 32 and not 1 <= self.bits <= 8:
            raise ValueError(f"codes have 1 to 8 bits, not {self.bits}")

    def data(self) -> bytes:
        """As it lies in the file."""
        flat = np.ascontiguousarray(self.values).reshape(-1)
        return flat.astype("<f4").tobytes() if self.bits == 32 else pack(flat, self.bits).tobytes()


@dataclass(frozen=True)
class Layer:
    """A record: `ints` (layers are named by their index), `floats`, and indices of `tensors` (-1: none); what is left out is unused."""

    kind: int
    ints: tuple[int, ...] = ()
    floats: tuple[float, ...] = ()
    tensors: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, count in (("ints", INTS), ("floats", FLOATS), ("tensors", TENSORS)):
            if len(getattr(self, name)) > count:
                raise ValueError(f"a layer has at most {count} {name}")

    def record(self) -> bytes:
        """The 384 bytes."""
        ints, floats, tensors = (
            [*getattr(self, name), *[unused] * (count - len(getattr(self, name)))]
            for name, count, unused in (("ints", INTS, 0), ("floats", FLOATS, 0.0), ("tensors", TENSORS, NONE))
        )
        return _LAYER.pack(self.kind, 0, *ints, *floats, *tensors)


@dataclass
class ModelFile:
    """The tables of a model file; `add_tensor` and `add_layer` give the index by which what they add is named."""

    tensors: list[StoredTensor] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)

    def add_tensor(self, values: np.ndarray | Sequence[float] | None, bits: int = 32) -> int:
        """Index of a float32 array or of codes; -1 for None."""
        if values is None:
            return NONE
        kind = np.float32 if bits == 32 else np.uint8
        self.tensors.append(StoredTensor(np.ascontiguousarray(np.asarray(values, kind)), bits))
        return len(self.tensors) - 1

    def add_layer(self, layer: Layer) -> int:
        """Index of a layer."""
        self.layers.append(layer)
        return len(self.layers) - 1

    def optional(self, index: int) -> np.ndarray | None:
        """The values of a tensor; None for index -1."""
        return None if index == NONE else self.tensors[index].values


def to_bytes(model: ModelFile) -> bytes:
    """The whole file."""
    data = [tensor.data() for tensor in model.tensors]
    offset = _HEADER.size + _TENSOR.size * len(data) + _LAYER.size * len(model.layers)
    records, padded = [], []
    for tensor, stored in zip(model.tensors, data, strict=True):
        gap = -offset % ALIGNMENT
        offset += gap
        shape = [*tensor.values.shape, *[1] * (LARGEST_RANK - tensor.values.ndim)]
        kind = _FLOAT32 if tensor.bits == 32 else _CODES
        records.append(_TENSOR.pack(kind, tensor.bits, tensor.values.ndim, 0, *shape, offset, len(stored)))
        padded.append(bytes(gap) + stored)
        offset += len(stored)
    header = _HEADER.pack(MAGIC, VERSION, len(model.tensors), len(model.layers), 0, offset)
    return b"".join([header, *records, *(layer.record() for layer in model.layers), *padded])


def write_model(model: ModelFile, path: Path) -> None:
    """Write the file atomically. Raises VitfrostError where it cannot be written."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(to_bytes(model))


def read_model(path: Path) -> ModelFile:
    """Read a file. Raises VitfrostError in one line for one that is missing, damaged, or of another version."""
    try:
        return from_bytes(path.read_bytes())
    except OSError as error:
        raise VitfrostError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise VitfrostError(f"{path} is damaged: {error}; export again") from error


def from_bytes(data: bytes) -> ModelFile:
    """The inverse of `to_bytes`. Raises ValueError for anything that `to_bytes` does not write."""
    if len(data) < _HEADER.size:
        raise ValueError("it is shorter than a header")
    magic, version, tensors, layers, zero, size = _HEADER.unpack_from(data)
    if magic != MAGIC or zero:
        raise ValueError("it does not begin as a native model file")
    if version != VERSION:
        raise ValueError(f"it has version {version}, and version {VERSION} is known")
    first_layer = _HEADER.size + _TENSOR.size * tensors
    if size != len(data) or max(tensors, layers) > LARGEST_COUNT or first_layer + _LAYER.size * layers > size:
        raise ValueError("its tables do not fit its size")
    made = ModelFile()
    for index in range(tensors):
        made.tensors.append(_tensor(data, _TENSOR.unpack_from(data, _HEADER.size + _TENSOR.size * index), index))
    for index in range(layers):
        kind, zero, *numbers = _LAYER.unpack_from(data, first_layer + _LAYER.size * index)
        if kind not in KINDS or zero:
            raise ValueError(f"layer {index} is of an unknown kind")
        ints, floats, named = numbers[:INTS], numbers[INTS:-TENSORS], numbers[-TENSORS:]
        if any(not NONE <= one < tensors for one in named):
            raise ValueError(f"layer {index} names a tensor that is not there")
        made.layers.append(Layer(kind, tuple(ints), tuple(floats), tuple(named)))
    return made


def _tensor(data: bytes, record: tuple[int, ...], index: int) -> StoredTensor:
    kind, bits, rank, zero, *shape, offset, size = record
    count = prod(shape)
    sound = (
        (kind == _FLOAT32 and bits == 32) or (kind == _CODES and 1 <= bits <= 8),
        1 <= rank <= LARGEST_RANK and all(side == 1 for side in shape[rank:]) and not zero,
        0 < count <= 8 * len(data),
        size == (4 * count if bits == 32 else packed_size(count, bits)),
        offset % ALIGNMENT == 0 and offset + size <= len(data),
    )
    if not all(sound):
        raise ValueError(f"tensor {index} has a record without a meaning")
    if bits == 32:
        return StoredTensor(np.frombuffer(data, "<f4", count, offset).astype(np.float32).reshape(shape[:rank]))
    return StoredTensor(unpack(np.frombuffer(data, np.uint8, size, offset), bits, count).reshape(shape[:rank]), bits)


Activation = Literal["gelu", "gelu-tanh", "relu", "quick-gelu"]
ACTIVATIONS: tuple[Activation, ...] = ("gelu", "gelu-tanh", "relu", "quick-gelu")  # their place is their number in the file
