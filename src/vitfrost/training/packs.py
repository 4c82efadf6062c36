"""Packs: many small WebP images and their labels in one .npz file.

Arrays: `buf` (uint8, all files after each other), `off` (int64, n + 1 offsets into it), `y` (int16, class within the pack),
`in1k` (int16, class of the pack -> index in ImageNet-1k), `train` (bool, the source's own split).
"""

from __future__ import annotations

import io
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int16, Int64, UInt8

from ..errors import VitfrostError
from ..images.decode import Decoded, _reason, open_picture, to_rgb
from ..images.geometry import Geometry
from ..images.source import ImageSet
from ..regular import is_file

Split = Literal["train", "test", "all"]
IMAGENET_CLASSES = 1000
LARGEST_RATIO, SMALL = 20, 64 << 20  # of a compressed array; bytes of one that needs no bound
_TYPES = {"buf": np.uint8, "off": np.int64, "y": np.int16, "in1k": np.int16, "train": np.bool_}


@dataclass(frozen=True, eq=False)
class Pack:
    """An opened pack. Where the archive stores `buf` uncompressed it is mapped from the file: only what is decoded is read."""

    path: Path
    buf: UInt8[np.ndarray, " bytes"]
    off: Int64[np.ndarray, " edges"]
    y: Int16[np.ndarray, " images"]
    in1k: Int16[np.ndarray, " classes"]
    train: Bool[np.ndarray, " flags"]

    @classmethod
    def open(cls, path: str | Path) -> Pack:
        """Open and check a pack; nothing in it is unpickled.

        Raises VitfrostError for a file that is missing or no .npz, arrays that are missing or of another type, counts that
        disagree, offsets that fall or lie beyond `buf`, and labels out of range.
        """
        path = Path(path)
        if not is_file(path):
            raise VitfrostError(f"no pack {path}; name an existing .npz file")
        try:
            if not zipfile.is_zipfile(path):
                raise ValueError("no zip archive")
            _refuse_other_sizes(path)
            with np.load(path, allow_pickle=False) as archive:
                missing = [name for name in _TYPES if name not in archive.files]
                if missing:
                    raise VitfrostError(f"the pack {path} misses {', '.join(missing)}; it needs the arrays {', '.join(_TYPES)}")
                arrays = {name: np.asarray(archive[name]) for name in _TYPES if name != "buf"}
                mapped = _mapped(path, "buf.npy")
                arrays["buf"] = np.asarray(archive["buf"]) if mapped is None else mapped
        except VitfrostError:
            raise
        except Exception as error:  # what reads headers evaluates them as Python's literals, and raises what that raises
            raise VitfrostError(f"the pack {path} is not a readable .npz file: {error}; write it with numpy.savez") from error
        for name, kind in _TYPES.items():
            if arrays[name].dtype != kind or arrays[name].ndim != 1:
                found = f"{arrays[name].dtype} with {arrays[name].ndim} axes"
                raise VitfrostError(f"the pack {path} has {name} as {found}; it must be {np.dtype(kind)} with 1 axis")
        pack = cls(path, **arrays)
        pack._check()
        return pack

    def _check(self) -> None:
        images = len(self.y)
        if not images:
            raise VitfrostError(f"the pack {self.path} holds no images")
        for name, found, wanted in (("off", len(self.off), images + 1), ("train", len(self.train), images)):
            if found != wanted:
                raise VitfrostError(f"the pack {self.path} has {found} entries in {name} for {images} images; it must have {wanted}")
        falling = np.flatnonzero(np.diff(self.off) <= 0)
        if self.off[0] < 0 or len(falling):
            image = int(falling[0]) if len(falling) else 0
            raise VitfrostError(f"the pack {self.path} has offsets that do not increase from 0 on (image {image}); write it again")
        if self.off[-1] > len(self.buf):
            raise VitfrostError(f"the pack {self.path} has offsets up to {self.off[-1]}, beyond its {len(self.buf)} bytes; write it again")
        for name, values, classes in (("y", self.y, self.classes), ("in1k", self.in1k, IMAGENET_CLASSES)):
            wrong = np.flatnonzero((values < 0) | (values >= classes))
            if len(wrong):
                where = f"{values[wrong[0]]} at {wrong[0]}"
                raise VitfrostError(f"the pack {self.path} has a label in {name} out of range: {where}; it must be 0 to {classes - 1}")

    def __len__(self) -> int:
        return len(self.y)

    @property
    def classes(self) -> int:
        """Number of the pack's own classes."""
        return len(self.in1k)

    def positions(self, split: Split) -> Int64[np.ndarray, " images"]:
        """The images of a split, in the pack's order. Raises VitfrostError for a split without images."""
        found = np.flatnonzero({"train": self.train, "test": ~self.train, "all": np.ones_like(self.train)}[split])
        if not len(found):
            raise VitfrostError(f"the pack {self.path} has no images in its split {split}; choose another one")
        return found.astype(np.int64)

    def images(self, split: Split, imagenet: bool) -> PackImages:
        """The images of a split with the pack's own labels, or ImageNet-1k's."""
        positions = self.positions(split)
        local = self.y[positions]
        labels = self.in1k[local] if imagenet else local
        return PackImages(self.path, tuple(map(str, positions.tolist())), tuple(labels.tolist()), self)

    def data(self, position: int) -> bytes:
        """The bytes of one image file."""
        return self.buf[self.off[position] : self.off[position + 1]].tobytes()

    def decode(self, position: int, preprocess: Geometry) -> Decoded:
        """Decode, resize and crop one image as `images.decode.decode_file` does; never raises for bad bytes. No digest is taken."""
        try:
            with open_picture(io.BytesIO(self.data(position)), preprocess) as image:
                return Decoded(preprocess.pixels(to_rgb(image)), "", "")
        except Exception as error:  # Pillow's decoders raise many types; a bad image must not end the run
            return Decoded(None, "", _reason(error))


@dataclass(frozen=True)
class PackImages(ImageSet):
    """Images of a pack, which are called after their positions there."""

    pack: Pack

    def decode(self, position: int, preprocess: Geometry) -> Decoded:
        return self.pack.decode(int(self.files[position]), preprocess)


def _refuse_other_sizes(path: Path) -> None:
    """Raise ValueError where an array's header tells of another size than its file has: memory is taken by the header."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.filename.removesuffix(".npy") not in _TYPES:
                continue
            if entry.compress_type != zipfile.ZIP_STORED and entry.file_size > max(LARGEST_RATIO * entry.compress_size, SMALL):
                raise ValueError(f"{entry.filename} is compressed more than pictures can be")
            with archive.open(entry) as file:
                shape, kind = _read_header(file)
                if kind.hasobject:
                    raise ValueError("Object arrays cannot be loaded")
                told = math.prod(shape) * kind.itemsize
                if min(shape, default=0) < 0 or told != entry.file_size - file.tell():
                    raise ValueError(f"{entry.filename} should have {told} bytes")


def _read_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read_header(file)
    return shape, kind


def _mapped(path: Path, member: str) -> np.ndarray | None:
    """Map one array of an archive that stores it uncompressed; None where it does not, or where the array is empty."""
    with zipfile.ZipFile(path) as archive:
        if member not in archive.namelist():
            return None
        entry = archive.getinfo(member)
        if entry.compress_type != zipfile.ZIP_STORED:
            return None
        with archive.open(entry) as file:
            shape, kind = _read_header(file)
            before = file.tell()
    if kind.hasobject or not np.prod(shape):
        return None
    with open(path, "rb") as raw:
        raw.seek(entry.header_offset + 26)  # the lengths of the name and of the extra field in the local header
        lengths = raw.read(4)
    start = entry.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
    return np.memmap(path, kind, "r", start + before, shape)
