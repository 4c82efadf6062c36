"""The commands `inspect` and `resize`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from .arguments import Flags, ModelFlags, one_of, show


def inspect(
    artifact: Annotated[Positional[Path | None], arg(metavar="MODEL", help="a timm model name or an artifact folder")] = None,
    /,
    *,
    model: Flags = ModelFlags(),
    plan: Path | None = None,
    json: Path | None = None,
) -> None:
    """Say whether a model is supported; list its attention sites, parameters and multiply-accumulates by part.

    Args:
        plan: also count what this plan leaves of them; without a model, the plan's own is taken.
        json: also write what was found to this file.
    """
    if plan is None:
        one_of(artifact, model.model)
    from .. import inspect as verb
    from ..evaluation.inspect import format_inspection
    from ..files import refuse_unwritable, write_json

    if json is not None:
        refuse_unwritable(json)
    if artifact is not None and model.model is None and not artifact.exists() and len(artifact.parts) == 1:
        artifact, model = None, replace(model, model=str(artifact))
    named = None if plan is not None and artifact is None and model.model is None else model.open(artifact, untrained=True)
    found = verb(named, plan=plan)
    show(format_inspection(found))
    if json is not None:
        write_json(json, found)


def resize(
    artifact: Annotated[Positional[Path], arg(metavar="ARTIFACT")],
    /,
    *,
    image_size: Annotated[str, arg(metavar="PX")],
    out: Path,
    overwrite: bool = False,
) -> None:
    """Carry an artifact over to another image size: positions are interpolated, constant maps stretched as the patch grid is.

    Args:
        image_size: input size in pixels, or height x width, such as 256x128.
        out: folder for the new artifact.
        overwrite: replace an existing folder.
    """
    from .. import resize as verb
    from ..configs.words import read_size

    made = verb(artifact, read_size(image_size), out=out, overwrite=overwrite)
    print(f"{out}: {made.size_bytes / 1e6:.3f} MB")
