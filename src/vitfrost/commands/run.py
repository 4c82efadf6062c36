"""The command `run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from .arguments import Device, Weights, show


def run(
    recipe: Annotated[Positional[Path], arg(metavar="RECIPE")],
    /,
    *,
    out: Path,
    resume: bool = False,
    quick: bool = False,
    weights: Weights = None,
    calibration: Path | None = None,
    images: Path | None = None,
    device: Device = "cpu",
) -> None:
    """Run a recipe from statistics to report; every stage can be resumed.

    Args:
        recipe: YAML file.
        out: folder for the run.
        resume: go on with a run that was stopped.
        quick: the recipe's quick variant.
        calibration: calibration images, instead of the recipe's.
        images: evaluation images, instead of the recipe's.
    """
    from .. import run as verb
    from ..evaluation.results import format_rows, load_results

    folder = verb(recipe, out, resume=resume, quick=quick, weights=weights, calibration=calibration, images=images, device=device)
    if (folder / "results.json").is_file():
        show(format_rows(load_results(folder / "results.json").rows))
    print(folder / "report.html")
