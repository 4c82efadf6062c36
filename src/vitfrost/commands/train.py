"""The command `train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from .arguments import Device, show


def train(
    recipe: Annotated[Positional[Path], arg(metavar="RECIPE")],
    /,
    *,
    out: Path,
    resume: bool = False,
    variant: tuple[str, ...] = (),
    weights: Annotated[
        str | None, arg(metavar="FILE", help="weights to start from, instead of the recipe's; 'timm' for timm's own, 'random' for none")
    ] = None,
    data: Path | None = None,
    statistics: Path | None = None,
    artifact: Path | None = None,
    teacher_weights: str | None = None,
    seed: int | None = None,
    device: Device = "cpu",
) -> None:
    """Train a model from a recipe, from scratch or from trained weights, plain or with a plan's structure, with a teacher or without.

    Args:
        recipe: YAML file (kind: vitfrost training).
        out: folder for the run: metrics, checkpoint, artifact and result.
        resume: go on with a run that was stopped.
        variant: parts of the recipe's variants, laid over it in this order.
        data: folder that the recipe's pictures are in, or a pack (.npz) for all of them.
        statistics: statistics that a plan's start is fitted to, instead of the recipe's.
        artifact: artifact to go on from, with its plan, instead of the recipe's start.
        teacher_weights: weights of the teacher that the recipe names, instead of the recipe's.
        seed: instead of the recipe's.
    """
    from .. import train as verb
    from ..distributed import rank
    from ..evaluation.results import format_rows
    from ..training.train import result_of

    folder = verb(
        recipe,
        out,
        resume=resume,
        variants=variant,
        weights=weights,
        data=data,
        statistics=statistics,
        artifact=artifact,
        teacher_weights=teacher_weights,
        seed=seed,
        device=device,
    )
    if rank() != 0:
        return
    if (row := result_of(folder)) is not None:
        show(format_rows([row]))
    print(folder / "artifact")
