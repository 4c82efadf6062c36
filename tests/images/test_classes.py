"""Class folders that are fewer than the model's classes, and labels in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from vitfrost.class_names import class_space, imagenet_names
from vitfrost.errors import VitfrostError
from vitfrost.images.classes import ClassSpace
from vitfrost.images.source import open_images

IMAGENET = class_space(1000, imagenet_names())
ANIMALS = ClassSpace.of(4, [["cat"], ["dog"], ["polar bear"], ["cow"]])


def labels_of(root: Path, space: ClassSpace, *names: str) -> list[int]:
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(root / name / "1.png")
    images = open_images(root, need_labels=True, classes=space)
    by_folder = {file.split("/")[0]: label for file, label in zip(images.files, images.labels or (), strict=True)}
    return [by_folder[name] for name in names]


@pytest.mark.parametrize(
    ("space", "names", "expected"),
    [
        (IMAGENET, ("n01440764", "n02102040", "n03888257"), [0, 217, 701]),
        (class_space(1000, None), ("n03888257", "n01440764"), [701, 0]),
        (IMAGENET, ("n01440764_tench", "n02102040-English_springer"), [0, 217]),
        (IMAGENET, ("0", "217", "482"), [0, 217, 482]),
        (IMAGENET, ("0007", "12"), [7, 12]),
        (IMAGENET, ("Tench", "english_springer", "Carassius auratus"), [0, 217, 1]),
        (ANIMALS, ("Polar_Bear", "dog"), [2, 1]),
        (ANIMALS, ("dog", "cow", "cat", "polar-bear"), [1, 3, 0, 2]),
        (ANIMALS, ("a", "b", "c", "d"), [0, 1, 2, 3]),
        (ClassSpace.of(3), ("n10", "n2", "B"), [2, 1, 0]),
        (ClassSpace.of(4), ("3", "1", "4", "2"), [2, 0, 3, 1]),
        (ClassSpace.of(3), ("0", "01", "002"), [0, 1, 2]),
        (ClassSpace.of(4, [["1"], ["2"], ["3"], ["4"]]), ("2", "4"), [1, 3]),  # the names of classes
    ],
)
def test_every_folder_gets_the_class_that_its_name_says(tmp_path: Path, space: ClassSpace, names: tuple[str, ...], expected) -> None:
    assert labels_of(tmp_path / "images", space, *names) == expected


@pytest.mark.parametrize(
    ("space", "names", "message"),
    [
        (IMAGENET, ("tench", "thing"), "'thing' is no class"),
        (IMAGENET, ("crane", "tench"), "'crane' is no class"),  # two classes of that name
        (IMAGENET, ("n01440764", "n99999999"), "'n99999999' is no class"),
        (IMAGENET, ("0", "1000"), "'1000' is above the last class, 999"),
        (ANIMALS, ("1", "dog"), "'1' and 'dog' of .* are both class 1"),
        (ClassSpace.of(4), ("cat", "dog"), "--class-names FILE"),
        (ANIMALS, ("ant", "cat", "cow", "dog"), "'cat' is its class 0.* 'ant' is not one of them"),
        (ANIMALS, ("cat", "dog", "polar bear", "zebra"), "'cat' is its class 0.* 'zebra' is not one of them"),
        (ClassSpace.of(4), ("0", "1", "2", "4"), "numbers from 0 to 4 with gaps"),
        (ClassSpace.of(2), ("train", "Val"), "called like the parts of a data set"),
        (ANIMALS, ("1", "2", "3", "4", "5"), "5 class folders but the model has 4 classes"),
    ],
)
def test_folders_that_cannot_be_matched_are_refused(tmp_path: Path, space: ClassSpace, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(VitfrostError, match=message):
        labels_of(tmp_path / "images", space, *names)


def test_fewer_folders_than_classes_are_said(tmp_path: Path, messages) -> None:
    labels_of(tmp_path / "images", IMAGENET, "0", "5")
    assert "2 of the model's 1000 classes have a folder" in messages()


@pytest.mark.parametrize(
    "content",
    [
        b"file,label\r\na/1.png,1\r\nb/2.png,0\r\n",
        b"\xef\xbb\xbfFile;Label\r\na/1.png;1\r\n\r\nb/2.png;0\r\n",
        "FILE\tLABEL\na\\1.png\t1\nb\\2.png\t0\n".encode("utf-16"),
        b"file,label\na/1.png,1.0\nb/2.png,0.0\n",
        b'"file" , "label"\n"a/1.png","dog"\n./b/2.png,Cat\n',
    ],
)
def test_tables_as_spreadsheets_write_them(tmp_path: Path, content: bytes) -> None:
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "labels.csv").write_bytes(content)
    assert open_images(tmp_path, need_labels=True, classes=ANIMALS).labels == (1, 0)


def test_labels_that_count_from_one_are_named(tmp_path: Path) -> None:
    rows = ["file,label"]
    for index in range(4):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{index}.png")
        rows.append(f"{index}.png,{index + 1}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    with pytest.raises(VitfrostError, match="these count from 1"):
        open_images(tmp_path, need_labels=True, classes=ANIMALS)


def test_pictures_of_other_kinds_are_counted(tmp_path: Path, messages) -> None:
    for name in ("1.jfif", "2.gif", "3.JPG"):
        Image.new("RGB", (4, 4)).save(tmp_path / name, "GIF" if name.endswith("gif") else "JPEG")
    for name in ("a.heic", "b.HEIC", "c.jxl", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert open_images(tmp_path).files == ("1.jfif", "2.gif", "3.JPG")
    assert "not read were left out (2 .heic, 1 .jxl)" in messages()
