"""Scikit-learn's handwritten digits (1,797 gray images of 8x8), split once and for all and written as picture files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64, UInt8

from ..files import atomic_folder, write_text

Split = Literal["training", "calibration", "test"]
_FOLD = 5  # of every five images of a digit the last one is held out; the first two also serve for calibration


def load_split(name: Split) -> tuple[UInt8[np.ndarray, "images 8 8"], Int64[np.ndarray, " images"]]:
    """Images (8-bit gray) and labels (0-9) of one split; nothing is downloaded and nothing is random.

    Of the images of each digit, in the order of the data set, every fifth one is the test split (355 in all) and the
    others the training split; calibration images are the first two of every five, hence training images.
    """
    from sklearn.datasets import load_digits

    pictures, labels = load_digits(return_X_y=True)
    gray = np.rint(pictures.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    position = np.empty(len(labels), dtype=np.int64)
    for digit in range(10):
        chosen = labels == digit
        position[chosen] = np.arange(chosen.sum()) % _FOLD
    keep = {"training": position < _FOLD - 1, "calibration": position < 2, "test": position == _FOLD - 1}[name]
    return gray[keep], labels[keep].astype(np.int64)


def _write_split(folder: Path, name: Split) -> Path:
    from PIL import Image

    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("file", "label"))
    with atomic_folder(folder / name, overwrite=True) as temporary:
        for index, (image, label) in enumerate(zip(*load_split(name), strict=True)):
            Image.fromarray(image).save(temporary / f"{index:04d}.png")
            rows.writerow((f"{index:04d}.png", label))
        write_text(temporary / "labels.csv", table.getvalue())
    return folder / name


def write_digit_images(folder: str | Path, splits: Sequence[Split] = ("calibration", "test")) -> tuple[Path, ...]:
    """Write each split to a folder of its name: 8x8 gray PNG files and labels.csv (`file,label`); return their paths.

    The same bytes every time; each of the folders appears whole or not at all and replaces an earlier one.
    Raises VitfrostError when the folder cannot be written.
    """
    return tuple(_write_split(Path(folder), name) for name in splits)
