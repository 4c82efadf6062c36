"""The verb `demo`: the whole path on the bundled model and digits, with nothing from outside."""

from __future__ import annotations

import sys
from pathlib import Path

from ..errors import VitfrostError
from ..files import write_text
from .data import write_digit_images

RECIPE = """\
# vitfrost demo: the bundled model on handwritten digits; run again with `vitfrost run recipe.yaml --out another-folder`
kind: vitfrost recipe
version: 1
model: {name: vitfrost_digits}
calibration: {images: data/calibration, limit: 512, seed: 0, precision: quantised}
plan: {freeze: 0.2, by: entropy, frozen_bits: 4, weight_bits: 4, activation_bits: 4}
compress: {seed: 0}
evaluation: {images: data/test}
"""


def demo(out: str | Path | None = None) -> Path:
    """Write the digit images and a recipe into `out` (default: vitfrost-demo here), run the recipe into `out`/run, print a table.

    A second call takes up an earlier demo in the same folder where it stopped. Returns the path of the HTML report.
    Raises VitfrostError when `out` is a file, holds anything but such a demo, or cannot be written.
    """
    folder = Path("vitfrost-demo" if out is None else out)
    recipe = folder / "recipe.yaml"
    _refuse_foreign(folder, recipe)
    from rich.console import Console

    from ..measure.results import format_rows, load_results
    from ..pipeline import run

    write_text(recipe, RECIPE)
    write_digit_images(folder / "data")
    made = run(recipe, out=folder / "run", resume=True)
    Console(width=None if sys.stdout.isatty() else 160).print(format_rows(load_results(made / "results.json").rows))
    print(f"report: {made / 'report.html'}")
    return made / "report.html"


def _refuse_foreign(folder: Path, recipe: Path) -> None:
    if folder.is_file():
        raise VitfrostError(f"{folder} is a file; name a folder with --out")
    if folder.is_dir() and any(folder.iterdir()) and not (recipe.is_file() and recipe.read_bytes() == RECIPE.encode()):
        raise VitfrostError(f"the folder {folder} exists and is no demo of this version; name another one with --out")
