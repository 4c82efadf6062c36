from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitfrost.errors import VitfrostError
from vitfrost.images.preprocess import Preprocess
from vitfrost.training.packs import Pack


def webp(seed: int, size: int = 16) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def arrays(count: int = 12, size: int = 16) -> dict[str, np.ndarray]:
    files = [webp(index, size) for index in range(count)]
    return {
        "buf": np.frombuffer(b"".join(files), np.uint8),
        "off": np.cumsum([0, *map(len, files)]),
        "y": (np.arange(count) % 3).astype(np.int16),
        "in1k": np.array([7, 0, 999], np.int16),
        "train": np.arange(count) % 4 != 0,
    }


def preprocess(size: int) -> Preprocess:
    plain: dict[str, Any] = {
        "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "crop_pct": 1.0, "crop_mode": "center", "interpolation": "bicubic",
    }  # fmt: skip
    return Preprocess({"input_size": (3, size, size), **plain})


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_pack_gives_back_its_images(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "a.npz", **arrays())
    pack = Pack.open(tmp_path / "a.npz")
    assert (len(pack), pack.classes) == (12, 3)
    assert isinstance(pack.buf, np.memmap) == (save is np.savez)
    for position in range(12):
        assert pack.data(position) == webp(position)
    expected = np.random.default_rng(3).integers(0, 256, (16, 16, 3), dtype=np.uint8).transpose(2, 0, 1)
    np.testing.assert_array_equal(pack.decode(3, preprocess(16)).pixels, expected)
    assert pack.decode(3, preprocess(8)).pixels.shape == (3, 8, 8)


def test_splits_are_the_packs_own(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays())
    pack = Pack.open(tmp_path / "a.npz")
    assert pack.positions("test").tolist() == [0, 4, 8]
    assert pack.positions("train").tolist() == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    assert pack.positions("all").tolist() == list(range(12))
    np.savez(tmp_path / "b.npz", **arrays() | {"train": np.ones(12, bool)})
    with pytest.raises(VitfrostError, match="no images in its split test"):
        Pack.open(tmp_path / "b.npz").positions("test")


def test_bad_bytes_have_a_reason(tmp_path: Path) -> None:
    made = arrays()
    made["buf"] = made["buf"].copy()
    made["buf"][made["off"][2] : made["off"][3]] = 0
    np.savez(tmp_path / "a.npz", **made)
    decoded = Pack.open(tmp_path / "a.npz").decode(2, preprocess(16))
    assert decoded.pixels is None
    assert decoded.reason == "not an image"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": None, "off": None}, "misses off, y; it needs the arrays buf, off, y, in1k, train"),
        ({"y": np.arange(12)}, "has y as int64 with 1 axes; it must be int16 with 1 axis"),
        ({"train": np.ones((12, 1), bool)}, "has train as bool with 2 axes"),
        ({"off": np.arange(12)}, "12 entries in off for 12 images; it must have 13"),
        ({"train": np.ones(3, bool)}, "3 entries in train for 12 images; it must have 12"),
        ({"off": np.array([0, 5, 4, *range(6, 16)])}, r"do not increase from 0 on \(image 1\)"),
        ({"off": np.arange(-1, 12)}, "do not increase from 0 on"),
        ({"off": np.arange(13) * 10**6}, "offsets up to 12000000, beyond its"),
        ({"y": np.full(12, 3, np.int16)}, "label in y out of range: 3 at 0; it must be 0 to 2"),
        ({"in1k": np.array([0, 1, 1000], np.int16)}, "label in in1k out of range: 1000 at 2; it must be 0 to 999"),
        ({"y": np.zeros(0, np.int16)}, "holds no images"),
        ({"y": np.array([object()] * 12)}, "not a readable .npz file: Object arrays cannot be loaded"),
        ({"buf": np.array([object()] * 12)}, "not a readable .npz file"),
    ],
)
def test_a_damaged_pack_is_named_in_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    made = {name: value for name, value in (arrays() | change).items() if value is not None}
    np.savez(tmp_path / "a.npz", **made)
    with pytest.raises(VitfrostError, match=message) as raised:
        Pack.open(tmp_path / "a.npz")
    assert str(tmp_path / "a.npz") in str(raised.value)


def test_what_is_no_pack_at_all(tmp_path: Path) -> None:
    with pytest.raises(VitfrostError, match="no pack"):
        Pack.open(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    np.savez(tmp_path / "cut.npz", **arrays())
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:500])
    for name in ("text", "cut"):
        with pytest.raises(VitfrostError, match=r"not a readable \.npz file"):
            Pack.open(tmp_path / f"{name}.npz")


@pytest.mark.shared_data
@pytest.mark.parametrize(("name", "images", "classes", "size"), [("imagenette128", 12_894, 10, 128), ("miniimagenet64", 60_000, 100, 64)])
def test_real_packs(shared_data: Path, name: str, images: int, classes: int, size: int) -> None:
    pack = Pack.open(shared_data / "training" / f"{name}.npz")
    assert (len(pack), pack.classes) == (images, classes)
    assert len(pack.positions("train")) + len(pack.positions("test")) == images
    pixels = pack.decode(images - 1, preprocess(size)).pixels
    assert pixels is not None
    assert pixels.std() > 5
