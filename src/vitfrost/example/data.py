"""Scikit-learn's handwritten digits (1,797 grey images of 8x8), split once and for all and written as picture files."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64, UInt8

from ..files import atomic_folder, write_text

SPLITS = ("training", "calibration", "test")
_FOLD = 5  # of every five images of a digit the last one is held out; the first two also serve for calibration


def load_split(name: Literal["training", "calibration", "test"]) -> tuple[UInt8[np.ndarray, "images 8 8"], Int64[np.ndarray, " images"]]:
    """Images (8-bit grey) and labels (0-9) of one split; nothing is downloaded and nothing is random.

    Of the images of each digit, in the order of the data set, every fifth one is the test split (355 in all) and the
    others the training split; calibration images are the first two of every five, hence training images.
    """
    from sklearn.datasets import load_digits

    pictures, labels = load_digits(return_X_y=True)
    grey = np.rint(pictures.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    position = np.empty(len(labels), dtype=np.int64)
    for digit in range(10):
        chosen = labels == digit
        position[chosen] = np.arange(chosen.sum()) % _FOLD
    keep = {"training": position < _FOLD - 1, "calibration": position < 2, "test": position == _FOLD - 1}[name]
    return grey[keep], labels[keep].astype(np.int64)


def _write_pictures(folder: Path, images: UInt8[np.ndarray, "images 8 8"], labels: Int64[np.ndarray, " images"]) -> None:
    from PIL import Image

    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("file", "label"))
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        name = f"{index:04d}.png"
        Image.fromarray(image).save(folder / name)
        rows.writerow((name, label))
    write_text(folder / "labels.csv", table.getvalue())


def write_digit_images(folder: str | Path) -> tuple[Path, Path]:
    """Write `folder`/calibration and `folder`/test: 8x8 grey PNG files and labels.csv (`file,label`); return both paths.

    The same bytes every time; each of the two folders appears whole or not at all and replaces an earlier one.
    Raises VitfrostError when the folder cannot be written.
    """
    calibration, test = Path(folder) / "calibration", Path(folder) / "test"
    for name, place in (("calibration", calibration), ("test", test)):
        with atomic_folder(place, overwrite=True) as temporary:
            _write_pictures(temporary, *load_split(name))
    return calibration, test
