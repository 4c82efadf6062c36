from __future__ import annotations

import hashlib
import os
import socket
import struct
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitfrost.errors import VitfrostError
from vitfrost.images.batches import BatchLoader, images_hash, take_usable
from vitfrost.images.decode import decode_file, to_rgb
from vitfrost.images.preprocess import Preprocess
from vitfrost.images.source import ImageSet, open_images

PREPROCESS = Preprocess(
    {
        "input_size": (3, 16, 16),
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.2, 0.3),
        "crop_pct": 1.0,
        "crop_mode": "center",
        "interpolation": "bicubic",
    }
)


def noise(seed: int, size: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def huge_png(path: Path, width: int, height: int) -> None:
    """A PNG that only claims its size: the header and an empty end."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


@pytest.fixture
def good(tmp_path: Path) -> ImageSet:
    for index in range(23):
        noise(index).save(tmp_path / f"{index}.png")
    files = open_images(tmp_path).files
    return ImageSet(tmp_path, files, tuple(range(23)))


@pytest.fixture
def mixed(tmp_path: Path) -> ImageSet:
    """Good images at even positions, each kind of unusable file at an odd one."""
    for index in range(0, 16, 2):
        noise(index).save(tmp_path / f"{index}.png")
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "3.jpg").write_text("not an image at all")
    (tmp_path / "5.jpg").write_bytes(b"")
    huge_png(tmp_path / "7.png", 30_000, 30_000)
    os.mkfifo(tmp_path / "9.png")
    (tmp_path / "11.png").write_bytes(whole[:60] + b"\xff" * 40 + whole[100:])
    huge_png(tmp_path / "13.png", 1, 80_000_000)
    return ImageSet(tmp_path, open_images(tmp_path).files, None)


def test_batches_come_in_order_with_timms_pixels_and_labels(good: ImageSet) -> None:
    loader = BatchLoader(good, PREPROCESS, 5)
    batches = list(loader)
    assert [len(batch.positions) for batch in batches] == [5, 5, 5, 5, 3]
    assert [position for batch in batches for position in batch.positions] == list(range(23))
    assert [label for batch in batches for label in batch.labels or []] == list(range(23))
    pixels = torch.cat([batch.pixels for batch in batches])
    assert torch.equal(pixels, torch.stack([PREPROCESS(noise(index)) for index in range(23)]))
    assert loader.digests == {index: hashlib.sha256((good.root / f"{index}.png").read_bytes()).hexdigest() for index in range(23)}
    assert loader.skipped == {}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vitfrost-decode")]


def test_unusable_files_are_skipped_with_a_reason(mixed: ImageSet) -> None:
    loader = BatchLoader(mixed, PREPROCESS, 4)
    batches = list(loader)
    assert [position for batch in batches for position in batch.positions] == [0, 2, 4, 6, 8, 10, 12, 14]
    assert sorted(loader.digests) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert batches[1].skipped.keys() == {5, 7}
    assert loader.skipped.keys() == {1, 3, 5, 7, 9, 11, 13}
    assert all(reason and "\n" not in reason for reason in loader.skipped.values())
    assert "truncated" in loader.skipped[1]
    assert loader.skipped[3] == loader.skipped[5] == "not an image"
    assert "pixels" in loader.skipped[7]
    assert "thin" in loader.skipped[13]


def test_pillows_limit_against_bombs_holds_where_it_was_changed(good: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(0, 40).save(good.root / "0.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "limit of 1000; set VITFROST_MAX_PIXELS" in decode_file(good.root / "0.png", PREPROCESS).reason
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode_file(good.root / "0.png", PREPROCESS).reason == ""


def test_every_mode_is_converted_and_used(tmp_path: Path) -> None:
    color = noise(1)
    gray = np.asarray(color.convert("L"))
    transparent = color.quantize(16)
    transparent.info["transparency"] = bytes(range(16))
    pictures = {
        "cmyk.jpg": color.convert("CMYK"),
        "gray.png": color.convert("L"),
        "grey16.png": Image.fromarray(gray.astype(np.uint16) * 256 + 7),
        "grey16.tif": Image.fromarray(gray.astype(np.uint16) * 256 + 200),
        "greyalpha.png": color.convert("LA"),
        "palette.png": color.quantize(16),
        "palettealpha.png": transparent,
        "pixel.png": Image.new("RGB", (1, 1), (10, 20, 30)),
        "rgba.png": color.convert("RGBA"),
        "bits.png": color.convert("1"),
    }
    for name, image in pictures.items():
        image.save(tmp_path / name)
    images = open_images(tmp_path)
    loader = BatchLoader(images, PREPROCESS, 100)
    (batch,) = loader
    assert loader.skipped == {}
    pixels = dict(zip(images.files, batch.pixels, strict=True))
    assert pixels.keys() == pictures.keys()
    assert torch.equal(pixels["rgba.png"], PREPROCESS(color))
    for name in ("grey16.png", "grey16.tif", "greyalpha.png"):
        assert torch.equal(pixels[name], pixels["gray.png"])
    assert torch.equal(pixels["palette.png"], pixels["palettealpha.png"])
    assert torch.equal(pixels["pixel.png"], PREPROCESS(Image.new("RGB", (16, 16), (10, 20, 30))))


def test_the_exif_rotation_is_ignored_as_in_timm(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(3).save(tmp_path / "turned.png", exif=exif)
    (batch,) = BatchLoader(open_images(tmp_path), PREPROCESS, 1)
    assert torch.equal(batch.pixels[0], PREPROCESS(noise(3)))


@pytest.mark.parametrize("world", [2, 3, 7])
def test_batches_do_not_depend_on_the_number_of_processes(mixed: ImageSet, world: int) -> None:
    whole = BatchLoader(mixed, PREPROCESS, 3)
    alone = {batch.positions[0] // 3: batch for batch in whole}
    digests: dict[int, str] = {}
    skipped: dict[int, str] = {}
    seen = []
    for rank in range(world):
        part = BatchLoader(mixed, PREPROCESS, 3, rank=rank, world=world, threads=1)
        for batch in part:
            index = batch.positions[0] // 3
            assert index % world == rank
            assert batch.positions == alone[index].positions
            assert torch.equal(batch.pixels, alone[index].pixels)
            seen.append(index)
        digests |= part.digests
        skipped |= part.skipped
    assert sorted(seen) == sorted(alone)
    assert skipped == whole.skipped
    assert images_hash(mixed, digests) == images_hash(mixed, whole.digests)


def test_the_hash_sees_names_content_and_order_but_no_batch_size(good: ImageSet) -> None:
    def hashed(image_set: ImageSet, size: int) -> str:
        loader = BatchLoader(image_set, PREPROCESS, size)
        for _ in loader:
            pass
        return images_hash(image_set, loader.digests)

    first = hashed(good, 1)
    assert hashed(good, 4) == hashed(good, 100) == first
    assert hashed(good.subset(23, 1), 4) != first
    (good.root / "3.png").rename(good.root / "03.png")
    assert hashed(open_images(good.root), 4) != first
    (good.root / "03.png").rename(good.root / "3.png")
    assert hashed(open_images(good.root), 4) == first
    noise(99).save(good.root / "3.png")
    assert hashed(good, 4) != first


def test_kept_pixels_serve_a_second_iteration_without_the_files(mixed: ImageSet) -> None:
    loader = BatchLoader(mixed, PREPROCESS, 4, kept={})
    first, digests, skipped = list(loader), loader.digests, loader.skipped
    for file in mixed.files:
        (mixed.root / file).unlink()
    second = list(loader)
    assert [batch.positions for batch in first] == [batch.positions for batch in second]
    assert all(torch.equal(one.pixels, two.pixels) for one, two in zip(first, second, strict=True))
    assert (loader.digests, loader.skipped) == (digests, skipped)


def test_few_images_are_decoded_ahead_and_an_early_end_stops_the_threads(good: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    pixels = PREPROCESS.pixels

    def counted(image: Image.Image) -> np.ndarray:
        decoded.append(image)
        return pixels(image)

    monkeypatch.setattr(PREPROCESS, "pixels", counted)
    for batch in BatchLoader(good, PREPROCESS, 2):
        assert batch.positions == [0, 1]
        time.sleep(0.2)  # long enough to decode every image, were there no bound
        break
    assert 2 <= len(decoded) <= 2 + 1 + 2 + 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vitfrost-decode")]


def test_the_first_usable_images_are_taken(mixed: ImageSet) -> None:
    batch = take_usable(mixed, PREPROCESS, 3)
    assert batch.positions == [0, 2, 4]
    assert batch.skipped.keys() == {1, 3}
    assert torch.equal(batch.pixels, torch.stack([PREPROCESS(noise(index)) for index in (0, 2, 4)]))
    assert batch.digests == take_usable(mixed, PREPROCESS, 3, threads=1).digests
    assert take_usable(mixed, PREPROCESS, 100).positions == [0, 2, 4, 6, 8, 10, 12, 14]
    with pytest.raises(VitfrostError, match="at least 1"):
        take_usable(mixed, PREPROCESS, 0)


def test_nothing_usable_is_an_error_only_for_the_whole(tmp_path: Path) -> None:
    for index in range(3):
        (tmp_path / f"{index}.png").write_text("no")
    images = open_images(tmp_path)
    with pytest.raises(VitfrostError, match=r"none of the 3 images of .* is usable; the first, 0\.png: not an image"):
        list(BatchLoader(images, PREPROCESS, 2))
    with pytest.raises(VitfrostError, match="none of the 3 images"):
        take_usable(images, PREPROCESS, 2)
    part = BatchLoader(images, PREPROCESS, 2, rank=1, world=2)
    assert list(part) == []
    assert part.skipped == {2: "not an image"}


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"threads": 0}, {"world": 0}, {"rank": 2, "world": 2}, {"rank": -1}])
def test_sizes_out_of_range_are_refused(good: ImageSet, options: dict[str, Any]) -> None:
    with pytest.raises(VitfrostError):
        BatchLoader(good, PREPROCESS, **{"batch_size": 1, **options})


def test_sixteen_bit_grey_keeps_its_high_byte() -> None:
    values = np.array([[0, 255, 256, 65535]], dtype=np.uint16)
    assert np.asarray(to_rgb(Image.fromarray(values)))[0, :, 0].tolist() == [0, 0, 1, 255]
    assert np.asarray(to_rgb(Image.fromarray(values.astype(np.int32))))[0, :, 0].tolist() == [0, 0, 1, 255]
    for beyond in (values.astype(np.int32) * 2, values.astype(np.int32) - 5):
        with pytest.raises(VitfrostError, match="outside of 0 to 65535"):
            to_rgb(Image.fromarray(beyond))


def test_floating_point_gray_is_not_read_as_black(tmp_path: Path) -> None:
    values = np.array([[0, 0.25, 0.5, 1]], dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "gray.tiff")
    assert np.asarray(to_rgb(Image.open(tmp_path / "gray.tiff")))[0, :, 0].tolist() == [0, 64, 128, 255]
    assert np.asarray(to_rgb(Image.fromarray(values * 200)))[0, :, 0].tolist() == [0, 50, 100, 200]
    for beyond in (values * 300, values - 1, values * np.float32("nan")):
        with pytest.raises(VitfrostError, match="outside of 0 to 255"):
            to_rgb(Image.fromarray(beyond))


def _png_of_16_bits(path: Path, values: np.ndarray) -> None:
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    height, width, _ = values.shape
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    parts = (struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_16_bits_that_hold_8_or_12_are_not_read_as_black(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 400).reshape(20, 20)
    for largest in (255, 4095, 65535):
        values = (ramp * largest).round()
        Image.fromarray(values.astype(np.uint16)).save(tmp_path / f"gray {largest}.png")
        Image.fromarray(values.astype(np.int32)).save(tmp_path / f"gray {largest}.tiff")
        _png_of_16_bits(tmp_path / f"color {largest}.png", np.repeat(values[..., None], 3, axis=2))
    for path in tmp_path.iterdir():
        reason = decode_file(path, PREPROCESS).reason
        assert reason == "" if "65535" in path.stem else "it would be black; convert it to 8 bits" in reason, path
    Image.fromarray(np.zeros((20, 20), np.uint16)).save(tmp_path / "night.png")
    assert decode_file(tmp_path / "night.png", PREPROCESS).reason == ""


def test_pictures_of_phones_are_read_without_pillows_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (13_000, 14_000), 200).save(tmp_path / "large.jpg")
    assert decode_file(tmp_path / "large.jpg", PREPROCESS).reason == ""
    monkeypatch.setenv("VITFROST_MAX_PIXELS", "1000000")
    assert "13000 x 14000 pixels are more than the limit of 1000000" in decode_file(tmp_path / "large.jpg", PREPROCESS).reason


def _socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(folder / "socket"))
    return folder / "socket"


def test_nothing_but_regular_files_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for name, target in (("null", "/dev/null"), ("zero", "/dev/zero"), ("log", "/proc/kmsg"), ("memory", "/proc/self/mem")):
        (tmp_path / f"{name}.png").symlink_to(target)
    (tmp_path / "gone.png").symlink_to("nowhere")
    noise(0, 40).save(tmp_path / "real.bmp")
    (tmp_path / "link.png").symlink_to("real.bmp")
    for name, target in (("pipe", tmp_path / "pipe.png"), ("socket", _socket(tmp_path))):
        (tmp_path / f"linked {name}.png").symlink_to(target)
    reasons = {path.stem: decode_file(path, PREPROCESS).reason for path in tmp_path.glob("*.png")}
    assert reasons.pop("pipe") == "no regular file"
    assert set(reasons.values()) == {"a symbolic link; set VITFROST_FOLLOW_LINKS=1 to follow links"}
    monkeypatch.setenv("VITFROST_FOLLOW_LINKS", "1")
    reasons = {path.stem: decode_file(path, PREPROCESS).reason for path in tmp_path.glob("*.png")}
    assert reasons.pop("link") == ""
    assert reasons.pop("gone") == "No such file or directory"
    assert set(reasons.values()) == {"no regular file"}


@pytest.mark.shared_data
def test_the_real_images_are_read_as_timm_reads_them(shared_data: Path) -> None:
    images = open_images(shared_data / "imagenet-val", need_labels=True, classes=1000)
    assert len(images) == 650
    drawn = images.subset(8, 0)
    preprocess = Preprocess(PREPROCESS.config.plain() | {"input_size": (3, 224, 224), "crop_mode": "squash"})
    (batch,) = BatchLoader(drawn, preprocess, 8)
    for pixels, file in zip(batch.pixels, drawn.files, strict=True):
        assert torch.equal(pixels, preprocess(Image.open(drawn.root / file).convert("RGB")))
