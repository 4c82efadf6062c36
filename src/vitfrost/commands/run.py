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
        recipe: YAML file: one run, a grid of variants, or a list of recipes.
        out: folder for the run.
        resume: go on with a run that was stopped.
        quick: the recipe's quick variant.
        calibration: calibration images, instead of the recipe's.
        images: evaluation images, instead of the recipe's.
    """
    from .. import run as verb
    from ..evaluation.results import format_rows, load_results

    folder = verb(recipe, out, resume=resume, quick=quick, weights=weights, calibration=calibration, images=images, device=device)
    if (folder / "outcomes").is_dir():
        from ..studies.outcome_files import grid_outcomes
        from ..studies.summary import points
        from ..studies.table import format_points

        show(format_points(points(grid_outcomes(folder))))
    elif (folder / "results.json").is_file():
        show(format_rows(load_results(folder / "results.json").rows))
    print(folder / "report.html")
