"""`python -m vitfrost.studies`: run studies and make their pages. The command line behaves like `vitfrost`'s."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from .. import cli
from ..commands.arguments import Device, show
from ..commands.flags import Given, Group, takes
from ..configs import Run


@takes(Group.of(Run))
def run(
    recipe: Annotated[Positional[Path], arg(metavar="RECIPE")], /, *, given: Given, out: Path, resume: bool = False, device: Device = "cpu"
) -> None:
    """Measure every plan of a grid, and make one page of them; every stage can be resumed.

    Args:
        recipe: YAML file: a recipe with a grid, or a list of such recipes.
        out: folder for the run.
        resume: go on with a run that was stopped.
    """
    config = given.config(Run)
    from ..reporting.build import REPORT
    from .outcome_files import OUTCOMES, grid_outcomes
    from .run import run_study
    from .summary import points
    from .table import format_points

    folder = run_study(recipe, out, config, resume=resume, device=device)
    if (folder / OUTCOMES).is_dir():
        show(format_points(points(grid_outcomes(folder))))
    print(folder / REPORT)


def report(run: Annotated[Positional[Path], arg(metavar="RUN")], /, out: Path | None = None) -> None:
    """Make one HTML page of a study's folder that needs no network.

    Args:
        run: folder made by `python -m vitfrost.studies run`.
        out: HTML file; report.html in the folder if not given.
    """
    from .grid_page import report_study

    print(report_study(run, out))


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and do what it says."""
    program, description = "python -m vitfrost.studies", "Many plans on one model, and the figures of papers from them."
    cli.main(arguments, verbs=(run, report), program=program, description=description)


if __name__ == "__main__":
    main()
