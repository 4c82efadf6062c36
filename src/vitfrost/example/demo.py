"""The verb `demo`: the whole path on the bundled model and digits, with nothing from outside."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import VitfrostError
from ..files import write_text
from .data import write_digit_images

if TYPE_CHECKING:
    from ..evaluation.results import Row

RECIPE = """\
# vitfrost demo: the bundled model on handwritten digits; run again with `vitfrost run recipe.yaml --out another-folder`
kind: vitfrost recipe
version: 1
model: {name: vitfrost_digits}
calibration: {images: data/calibration, limit: 512, seed: 0, precision: quantized, similarity: true}
plan: {freeze: 0.2, by: entropy, frozen_bits: 4, weight_bits: 4, activation_bits: 4}
compress: {seed: 0}
evaluation: {images: data/test}
"""
TRAINING = """\
# The same model with half of its maps hallucinated and compact feed-forward blocks: started in closed form from its weights, then
# distilled from it for four epochs; run again with `vitfrost train training.yaml --out another-folder`
kind: vitfrost training
version: 1
model: {name: vitfrost_digits, weights: timm}
plan: {hallucinate: {share: 0.5}, compact: {ratio: 0.5}}
start: {statistics: run/statistics.safetensors, images: data/calibration, limit: 256}
teacher: {original: true, weight: 1.0, temperature: 2.0}
data: {train: [{source: data/calibration, labels: none}], evaluation: {source: data/test}}
augment: {rotate: 15, scale: [0.88, 1.12], shear: 8.5, translate: 0.15}
optimizer: {lr: 1.0e-3, weight_decay: 0.0, clip: 1.0}
schedule: {epochs: 4, warmup: 0.5}
batch_size: 48
"""


def demo(out: str | Path | None = None) -> Path:
    """Write the digit images and two recipes into `out` (default: vitfrost-demo here), run both, print a table.

    The first recipe runs into `out`/run, with the report; the second trains into `out`/trained.

    A second call takes up an earlier demo in the same folder where it stopped. Returns the path of the HTML report.
    Raises VitfrostError when `out` is a file, holds anything but such a demo, or cannot be written.
    """
    folder = Path("vitfrost-demo" if out is None else out)
    recipe = folder / "recipe.yaml"
    _refuse_foreign(folder, recipe)
    from rich.console import Console

    from ..evaluation.results import format_rows, load_results
    from ..runs.run import run

    write_text(recipe, RECIPE)
    write_text(folder / "training.yaml", TRAINING)
    write_digit_images(folder / "data")
    made = run(recipe, out=folder / "run", resume=True)
    rows = [*load_results(made / "results.json").rows, *_structured(folder)]
    Console(width=None if sys.stdout.isatty() else 160).print(format_rows(rows))
    print(f"report: {made / 'report.html'}")
    return made / "report.html"


def _structured(folder: Path) -> list[Row]:
    """Hallucinated maps and compact blocks, as the closed form leaves them and after a short distillation."""
    from ..artifact import Artifact
    from ..evaluation.evaluate import evaluate_many
    from ..model import Model
    from ..passes.compress import compress
    from ..progress import say
    from ..training.train import train

    say(f"train -> {folder / 'trained'}")
    distilled = Artifact.load(train(folder / "training.yaml", folder / "trained", resume=True) / "artifact")
    closed = compress(
        distilled.name, distilled.plan, statistics=folder / "run" / "statistics.safetensors", images=folder / "data" / "calibration",
        out=folder / "closed-form", overwrite=True,
    )  # fmt: skip
    original = Model.open(distilled.name)
    models = {"closed form": closed, "distilled": distilled}
    return evaluate_many(models, folder / "data" / "test", reference=original, progress=False)


def _refuse_foreign(folder: Path, recipe: Path) -> None:
    if folder.is_file():
        raise VitfrostError(f"{folder} is a file; name a folder with --out")
    if folder.is_dir() and any(folder.iterdir()) and not (recipe.is_file() and recipe.read_bytes() == RECIPE.encode()):
        raise VitfrostError(f"the folder {folder} exists and is no demo of this version; name another one with --out")
