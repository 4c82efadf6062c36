"""Which images and labels there are: class folders, a folder with a labels CSV, or any folder of pictures."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import VitfrostError
from .decode import Decoded, decode_file
from .geometry import Geometry

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
LABELS_FILE = "labels.csv"


@dataclass(frozen=True)
class ImageSet:
    """Images under one folder, in a fixed order; a position is an index into `files`.

    `files` are posix paths relative to `root`; `labels` are 0-based class indices, one per file, or None.
    """

    root: Path
    files: tuple[str, ...]
    labels: tuple[int, ...] | None

    def __len__(self) -> int:
        return len(self.files)

    @property
    def size(self) -> int:
        """How many images there are."""
        return len(self.files)

    @property
    def expected(self) -> int:
        """The same, as of images that are given."""
        return len(self.files)

    def shuffled(self, seed: int) -> ImageSet:
        """All images in a drawn order."""
        return self.subset(len(self), seed)

    def name_of(self, position: int) -> str:
        """What messages and hashes call an image."""
        return self.files[position]

    def subset(self, limit: int | None, seed: int) -> ImageSet:
        """Draw `limit` images by a seeded permutation that does not depend on `limit`, so that draws nest.

        None keeps everything in its order; a limit beyond the size gives the whole permutation.
        Raises VitfrostError for a limit below 1 or a negative seed.
        """
        drawn = draw(len(self.files), limit, seed)
        if drawn is None:
            return self
        labels = None if self.labels is None else tuple(self.labels[index] for index in drawn)
        return replace(self, files=tuple(self.files[index] for index in drawn), labels=labels)

    def decode(self, position: int, preprocess: Geometry) -> Decoded:
        """One image as the model reads it; never raises for a bad file."""
        return decode_file(self.root / self.files[position], preprocess)


def draw(size: int | None, limit: int | None, seed: int) -> list[int] | None:
    """`limit` of `size` numbers by a seeded permutation; None for all of them, or where their number is not known.

    Raises VitfrostError for a limit below 1 or a negative seed.
    """
    if seed < 0:
        raise VitfrostError(f"the seed {seed} is negative; give 0 or more")
    if limit is not None and limit < 1:
        raise VitfrostError(f"cannot draw {limit} images; the limit must be at least 1")
    if limit is None or size is None:
        return None
    drawn: list[int] = np.random.default_rng(seed).permutation(size)[:limit].tolist()
    return drawn


def open_images(folder: str | Path, labels: str | Path | None = None, *, need_labels: bool = False, classes: int | None = None) -> ImageSet:
    """Find the images of a folder (recursively, in natural order) and, where asked for, their labels.

    Labels are read when `labels` names a CSV or `need_labels` is set: from that CSV, else from `labels.csv` in the folder,
    else from class folders, whose names in timm's natural order are the classes 0, 1, ... Otherwise `labels` is None.
    CSV paths are relative to `folder`. `classes`: number of classes of the model; a label must be below it.

    Raises VitfrostError for a folder that is missing or holds no image, for labels that are needed and absent, and for a CSV
    that disagrees with the folder (see `read_labels`).
    """
    root = Path(folder)
    if not root.is_dir():
        raise VitfrostError(f"no image folder {root}; name an existing folder")
    found = sorted(_find(root), key=natural_key)
    if not found:
        raise VitfrostError(f"the folder {root} holds no images; files ending in {', '.join(sorted(EXTENSIONS))} are taken as images")
    if labels is None and not need_labels:
        return ImageSet(root, tuple(found), None)
    table = Path(labels) if labels is not None else root / LABELS_FILE
    if labels is not None or table.is_file():
        label_of = read_labels(table, root, found, classes)
        files = sorted(label_of, key=natural_key)
    else:
        label_of = _class_folder_labels(root, found, classes)
        files = found
    return ImageSet(root, tuple(files), tuple(label_of[file] for file in files))


def natural_key(text: str) -> tuple[list[str | int], str]:
    """timm's natural order (digits compare as numbers, letters without case); the text itself breaks ties."""
    parts = re.split(r"(\d+)", text.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], text


def _find(root: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise VitfrostError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    for place, folders, names in os.walk(root, followlinks=True, onerror=refuse):
        here = Path(place).resolve()
        folders[:] = [name for name in folders if not name.startswith(".") and not here.is_relative_to((here / name).resolve())]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS:
                yield Path(place, name).relative_to(root).as_posix()


def _class_folder_labels(root: Path, files: list[str], classes: int | None) -> dict[str, int]:
    mend = f"add {LABELS_FILE} with the header file,label, name a labels CSV, or use one sub-folder per class"
    outside = [file for file in files if "/" not in file]
    names = sorted({file.split("/", 1)[0] for file in files if "/" in file}, key=natural_key)
    if len(names) < 2:
        raise VitfrostError(f"the folder {root} has no labels: neither {LABELS_FILE} nor class folders (at least two); {mend}")
    if outside:
        raise VitfrostError(f"the folder {root} has images outside its class folders: {_listed(outside)}; {mend}")
    if classes is not None and len(names) > classes:
        raise VitfrostError(f"the folder {root} has {len(names)} class folders but the model has {classes} classes; {mend}")
    index = {name: number for number, name in enumerate(names)}
    return {file: index[file.split("/", 1)[0]] for file in files}


def read_labels(table: Path, root: Path, found: list[str], classes: int | None = None) -> dict[str, int]:
    """Read `file,label` rows (other columns are ignored) into {file: label} and check them against the folder.

    Raises VitfrostError naming the first offender and the number of others: no such header, a label that is no integer or
    out of range, a file named twice, a row whose file is not in `root`, an image of `found` without a row.
    """
    label_of: dict[str, int] = {}
    no_integer: list[str] = []
    out_of_range: list[str] = []
    twice: list[str] = []
    absent: list[str] = []
    known = set(found)
    for line, name, text in _rows(table):
        file = Path(os.path.normpath(name)).as_posix()
        where = f"'{name}' (line {line})"
        try:
            label = int(text)
        except ValueError:
            no_integer.append(f"'{text}' for {where}")
            continue
        if label < 0 or (classes is not None and label >= classes):
            out_of_range.append(f"{label} for {where}")
        if file in label_of:
            twice.append(where)
        elif file not in known and not _inside(root, file):
            absent.append(where)
        label_of[file] = label
    missed = [file for file in found if file not in label_of]
    bounds = "0 or more" if classes is None else f"0 to {classes - 1}"
    for offenders, what, mend in (
        (no_integer, "has a label that is not an integer", "give 0-based class indices"),
        (out_of_range, "has a label out of range", f"labels must be {bounds}"),
        (twice, "names a file twice", "keep one row per file"),
        (absent, f"names a file that is not in {root}", "paths are relative to that folder"),
        (missed, "misses an image of the folder", "add a row or remove the image"),
    ):
        if offenders:
            raise VitfrostError(f"the labels CSV {table} {what}: {_listed(offenders)}; {mend}")
    return label_of


def _rows(table: Path) -> Iterator[tuple[int, str, str]]:
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            if not {"file", "label"} <= set(reader.fieldnames or ()):
                raise VitfrostError(f"the labels CSV {table} has no header with the columns file,label; make it the first line")
            for row in reader:
                yield reader.line_num, (row["file"] or "").strip(), (row["label"] or "").strip()
    except FileNotFoundError as error:
        raise VitfrostError(f"no labels CSV {table}; name an existing file") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise VitfrostError(f"the labels CSV {table} is not readable: {error}") from error


def _inside(root: Path, file: str) -> bool:
    return not Path(file).is_absolute() and not file.startswith("../") and (root / file).is_file()


def _listed(offenders: list[str]) -> str:
    return offenders[0] + (f" and {len(offenders) - 1} more" if len(offenders) > 1 else "")
