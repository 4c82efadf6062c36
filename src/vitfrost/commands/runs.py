"""The commands that do whole runs: `run`, `train`, `report` and `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..configs import Run, Train
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


@takes(Group.of(Train))
def train(
    recipe: Annotated[Positional[Path], arg(metavar="RECIPE")], /, *, given: Given, out: Path, resume: bool = False, device: Device = "cpu"
) -> None:
    """Train a model from a recipe, from scratch or from trained weights, plain or with a plan's structure, with a teacher or without.

    Args:
        recipe: YAML file (kind: vitfrost training).
        out: folder for the run: metrics, checkpoint, artifact and result.
        resume: go on with a run that was stopped.
    """
    config = given.config(Train)
    from .. import train as verb
    from ..distributed import rank
    from ..evaluation.results import format_rows
    from ..training.train import result_of

    folder = verb(recipe, out, config, resume=resume, device=device)
    if rank() != 0:
        return
    if (row := result_of(folder)) is not None:
        show(format_rows([row]))
    print(folder / "artifact")


def report(run: Annotated[Positional[Path], arg(metavar="RUN")], /, out: Path | None = None) -> None:
    """Make one HTML page of a run's folder that needs no network.

    Args:
        run: folder made by `vitfrost run`.
        out: HTML file; report.html in the folder if not given.
    """
    from .. import report as verb

    print(verb(run, out))


def demo(out: Path = Path("vitfrost-demo")) -> None:
    """Run the whole path on a bundled digits model: no network, no data of yours, less than a minute.

    Args:
        out: folder for the run.
    """
    from .. import demo as verb

    verb(out)
