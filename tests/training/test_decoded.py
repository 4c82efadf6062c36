from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitfrost.errors import VitfrostError
from vitfrost.training.decoded import DecodedImages, join, open_decoded


def picture(path: Path, seed: int, size: tuple[int, int] = (12, 12)) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "WEBP" if path.suffix == ".webp" else "PNG", lossless=True)
    return pixels.transpose(2, 0, 1)


def opened(source: Path, size: int = 12, **options: Any) -> DecodedImages:
    return open_decoded(source, size=size, **{"threads": 2, "progress": False} | options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of ten pictures."""
    for index in range(20):
        picture(tmp_path / "images" / "ab"[index % 2] / f"{index}.png", index)
    return tmp_path / "images"


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """Ten pictures of two classes; the first three are of the test split."""
    files = []
    for index in range(10):
        picture(tmp_path / "p.webp", 100 + index)
        files.append((tmp_path / "p.webp").read_bytes())
    np.savez(
        tmp_path / "pack.npz",
        buf=np.frombuffer(b"".join(files), np.uint8),
        off=np.cumsum([0, *map(len, files)]),
        y=(np.arange(10) % 2).astype(np.int16),
        in1k=np.array([30, 4], np.int16),
        train=np.arange(10) >= 3,
    )
    return tmp_path / "pack.npz"


def test_class_folders(folder: Path) -> None:
    images = opened(folder)
    assert (len(images), images.size, images.classes, images.skipped) == (20, 12, 2, {})
    assert images.labels.tolist() == [0] * 10 + [1] * 10
    expected = picture(folder.parent / "again.png", 2)
    np.testing.assert_array_equal(images.pixels[1], expected)  # a/0, a/2, ...
    assert torch.equal(opened(folder, threads=1).pixels, images.pixels)


def test_labels_csv_or_none(tmp_path: Path) -> None:
    for index in range(4):
        picture(tmp_path / f"{index}.png", index)
    assert opened(tmp_path).labels is None
    assert opened(tmp_path).classes is None
    (tmp_path / "labels.csv").write_text("file,label\n0.png,3\n1.png,0\n2.png,701\n3.png,3\n")
    assert opened(tmp_path).labels.tolist() == [3, 0, 701, 3]
    assert (opened(tmp_path).classes, opened(tmp_path, labels="imagenet").classes) == (702, 1000)
    assert opened(tmp_path, labels="imagenet").labels.tolist() == [3, 0, 701, 3]


def test_the_short_side_is_resized_and_the_centre_cut_out(tmp_path: Path) -> None:
    wide = picture(tmp_path / "0.png", 0, (20, 12))
    picture(tmp_path / "1.png", 1, (24, 36))
    images = opened(tmp_path)
    np.testing.assert_array_equal(images.pixels[0], wide[:, :, 4:16])
    with Image.open(tmp_path / "1.png") as image:
        small = np.asarray(image.resize((12, 18), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    np.testing.assert_array_equal(images.pixels[1], small[:, 3:15])


def test_packs_by_split_and_labels(pack: Path) -> None:
    train, test, everything = (opened(pack, split=split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(everything), train.classes) == (7, 3, 10, 2)
    assert torch.equal(torch.cat([test.pixels, train.pixels]), everything.pixels)
    np.testing.assert_array_equal(train.pixels[0], picture(pack.parent / "again.png", 103))
    assert train.labels.tolist() == [1, 0, 1, 0, 1, 0, 1]
    mapped = opened(pack, split="train", labels="imagenet")
    assert mapped.labels.tolist() == [4, 30, 4, 30, 4, 30, 4]
    assert mapped.classes == 1000
    assert len({images.digest for images in (train, test, everything, mapped)}) == 4


def test_draws_nest(pack: Path, folder: Path) -> None:
    for source in (pack, folder):
        few, more = (opened(source, limit=limit, seed=7) for limit in (3, 6))
        assert torch.equal(few.pixels, more.pixels[:3])
        assert torch.equal(few.labels, more.labels[:3])
        assert not torch.equal(few.pixels, opened(source, limit=3, seed=8).pixels)


def test_the_digest_follows_content_and_settings(folder: Path) -> None:
    before = opened(folder).digest
    assert opened(folder, seed=5).digest == before  # without a limit the seed has no meaning
    others = {opened(folder, size=8).digest, opened(folder, limit=20).digest}
    picture(folder / "a" / "0.png", 77)
    assert len({before, opened(folder).digest} | others) == 4


@pytest.mark.parametrize("cached", [False, True])
def test_unusable_files_are_skipped_with_their_labels(folder: Path, tmp_path: Path, cached: bool) -> None:
    whole = opened(folder)
    (folder / "a" / "2.png").write_bytes(b"nothing")
    for _ in range(2):
        images = opened(folder, cache=tmp_path / "cache" if cached else None)
        assert images.skipped == {str(folder / "a" / "2.png"): "not an image"}
        assert torch.equal(images.pixels, torch.cat([whole.pixels[:1], whole.pixels[2:]]))
        assert images.labels.tolist() == [0] * 9 + [1] * 10


def test_pixels_are_written_once_and_mapped_afterwards(pack: Path, tmp_path: Path) -> None:
    plain = opened(pack)
    cache = tmp_path / "deep" / "cache"
    first = opened(pack, cache=cache)
    file = cache / f"{first.digest}.npy"
    written = file.stat()
    second = opened(pack, cache=cache)
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == (written.st_mtime_ns, written.st_ino)
    for images in (first, second):
        assert torch.equal(images.pixels, plain.pixels)
        assert torch.equal(images.labels, plain.labels)
    second.pixels[0] = 0
    assert torch.equal(opened(pack, cache=cache).pixels, plain.pixels)
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".npy"]


def test_a_damaged_cache_is_written_again(pack: Path, tmp_path: Path) -> None:
    digest = opened(pack, cache=tmp_path / "cache").digest
    file, record = (tmp_path / "cache" / f"{digest}{suffix}" for suffix in (".npy", ".json"))
    damages = [
        lambda: file.write_bytes(file.read_bytes()[:300]),
        record.unlink,
        lambda: record.write_text("{}"),
        lambda: file.write_text(""),
    ]
    for damage in damages:
        damage()
        assert torch.equal(opened(pack, cache=tmp_path / "cache").pixels, opened(pack).pixels)


def test_joined_sources_keep_their_order(pack: Path, tmp_path: Path) -> None:
    for index in range(3):
        picture(tmp_path / "more" / f"{index}.png", index)
    (tmp_path / "more" / "labels.csv").write_text("file,label\n0.png,3\n1.png,999\n2.png,0\n")
    parts = [opened(pack, labels="imagenet"), opened(tmp_path / "more", labels="imagenet")]
    joined = join(parts)
    assert joined.labels.tolist() == [*parts[0].labels.tolist(), 3, 999, 0]
    assert torch.equal(joined.pixels[10:], parts[1].pixels)
    assert joined.classes == 1000
    assert joined.digest not in {parts[0].digest, parts[1].digest, join(parts[::-1]).digest}
    assert join(parts[:1]) is parts[0]
    with pytest.raises(VitfrostError, match="labels number different classes"):
        join([opened(pack), parts[1]])
    with pytest.raises(VitfrostError, match="12 and 8 pixels"):
        join([parts[0], opened(tmp_path / "more", size=8, labels="imagenet")])
    with pytest.raises(VitfrostError, match="no images to join"):
        join([])


@pytest.mark.parametrize("byte_limit", [None, 0])
def test_batches_on_the_device(folder: Path, byte_limit: int | None) -> None:
    images = opened(folder).to("cpu", byte_limit)
    chosen = np.array([3, 19, 3])
    pixels, labels = images.batch(chosen)
    assert torch.equal(pixels, images.pixels[torch.from_numpy(chosen)])
    assert labels.tolist() == [0, 1, 0]
    assert torch.equal(images.batch(torch.from_numpy(chosen))[0], pixels)


def test_images_beyond_the_limit_stay_on_the_host(folder: Path) -> None:
    images = opened(folder)
    kept, moved = images.to("meta", images.pixels.nbytes - 1), images.to("meta", images.pixels.nbytes)
    assert (kept.pixels.device.type, moved.pixels.device.type) == ("cpu", "meta")
    for there in (kept, moved):
        pixels, labels = there.batch(np.array([0, 1]))
        assert (pixels.device.type, pixels.shape, labels.device.type) == ("meta", (2, 3, 12, 12), "meta")


def test_errors_in_one_line(folder: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"size": 0}, "size of the images must be at least 1"),
        ({"threads": 0}, "number of threads must be at least 1"),
        ({"split": "train"}, "no split train of its own"),
        ({"labels": "imagenet"}, "is no class; call folders by"),
        ({"limit": 0}, "cannot draw 0 images"),
    ):
        with pytest.raises(VitfrostError, match=message):
            opened(folder, **options)
    with pytest.raises(VitfrostError, match="no image folder"):
        opened(tmp_path / "absent")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "0.png").write_text("no picture")
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(VitfrostError, match=r"none of the 1 images is usable; .*0\.png: not an image"):
            opened(tmp_path / "bad", cache=cache)
    assert not list((tmp_path / "cache").glob("*"))


@pytest.mark.shared_data
@pytest.mark.parametrize(("name", "size"), [("imagenette128", 128), ("miniimagenet64", 64)])
def test_real_packs_and_pictures(shared_data: Path, tmp_path: Path, name: str, size: int) -> None:
    images = opened(shared_data / "training" / f"{name}.npz", size, split="train", labels="imagenet", limit=24, cache=tmp_path)
    assert (images.pixels.shape, images.classes, images.skipped) == ((24, 3, size, size), 1000, {})
    pictures = opened(shared_data / "calibration", size, labels="imagenet", limit=4)
    joined = join([images, pictures])
    assert len(joined) == 28
    assert joined.pixels.float().std() > 30
