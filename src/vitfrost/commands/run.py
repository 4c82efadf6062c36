"""The command `run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..configs import Run
from .arguments import Device, show
from .flags import Given, Group, takes


@takes(Group.of(Run))
def run(
    recipe: Annotated[Positional[Path], arg(metavar="RECIPE")], /, *, given: Given, out: Path, resume: bool = False, device: Device = "cpu"
) -> None:
    """Run a recipe from statistics to report; every stage can be resumed.

    Args:
        recipe: YAML file.
        out: folder for the run.
        resume: go on with a run that was stopped.
    """
    config = given.config(Run)
    from .. import run as verb
    from ..evaluation.results import format_rows, load_results

    folder = verb(recipe, out, config, resume=resume, device=device)
    if (folder / "results.json").is_file():
        show(format_rows(load_results(folder / "results.json").rows))
    print(folder / "report.html")
