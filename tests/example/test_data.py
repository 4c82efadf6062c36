"""The digits: three splits that are disjoint where they must be, balanced, and the same picture files every time."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from vitfrost.errors import VitfrostError
from vitfrost.example.data import Split, load_split, write_digit_images
from vitfrost.files import sha256_of_file
from vitfrost.images.source import open_images


def _as_set(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in images}


def test_the_test_split_is_disjoint_from_training_and_together_they_are_everything() -> None:
    training, test = load_split("training")[0], load_split("test")[0]
    assert len(training) + len(test) == 1797
    assert len(test) == 355
    assert not _as_set(training) & _as_set(test)
    gray = np.rint(load_digits().data.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    assert sorted(image.tobytes() for image in gray) == sorted(image.tobytes() for image in np.concatenate([training, test]))


def test_calibration_images_are_training_images_with_their_labels() -> None:
    training = {image.tobytes(): label for image, label in zip(*load_split("training"), strict=True)}
    images, labels = load_split("calibration")
    assert len(images) >= 512
    assert all(training[image.tobytes()] == label for image, label in zip(images, labels, strict=True))


@pytest.mark.parametrize("name", ["training", "calibration", "test"])
def test_each_split_holds_every_digit_in_its_share(name: Split) -> None:
    share = np.bincount(load_split(name)[1]) / np.bincount(load_digits().target)
    assert len(share) == 10
    assert np.ptp(share) < 0.02


def test_written_pictures_are_the_split_and_the_same_bytes_every_time(tmp_path: Path) -> None:
    calibration, test = write_digit_images(tmp_path / "one")
    other = write_digit_images(tmp_path / "two")
    expected = (load_split("calibration"), load_split("test"))
    for (images, labels), folder, again in zip(expected, (calibration, test), other, strict=True):
        with open(folder / "labels.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [int(row["label"]) for row in rows] == labels.tolist()
        pictures = [Image.open(folder / row["file"]) for row in rows]
        assert {picture.mode for picture in pictures} == {"L"}
        assert np.array_equal(np.stack([np.asarray(picture) for picture in pictures]), images)
        names = sorted(path.name for path in folder.iterdir())
        assert names == sorted(path.name for path in again.iterdir())
        assert [sha256_of_file(folder / name) for name in names] == [sha256_of_file(again / name) for name in names]


def test_written_folders_are_read_as_labeled_images_and_written_over(tmp_path: Path) -> None:
    write_digit_images(tmp_path)
    (tmp_path / "test" / "stray.png").write_bytes(b"left over")
    _, test = write_digit_images(tmp_path)
    found = open_images(test, need_labels=True, classes=10)
    assert list(found.labels or ()) == load_split("test")[1].tolist()


def test_a_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(VitfrostError, match="taken"):
        write_digit_images(tmp_path / "taken")


def test_any_split_can_be_written(tmp_path: Path) -> None:
    (training,) = write_digit_images(tmp_path, ("training",))
    assert training == tmp_path / "training"
    assert list(open_images(training, need_labels=True).labels or ()) == load_split("training")[1].tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["training"]
