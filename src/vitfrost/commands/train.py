"""The command `train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..configs import Train
from .arguments import Device, show
from .flags import Given, Group, takes


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
