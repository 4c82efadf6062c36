"""The command `predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def predict(
    export: Annotated[Positional[Path], arg(metavar="EXPORT")],
    images: Annotated[Positional[tuple[Path, ...]], arg(metavar="IMAGE...")],
    /,
    *,
    top: int = 5,
    threads: int | None = None,
    json: bool = False,
) -> None:
    """Say which classes an exported model sees in pictures, with their probabilities. Needs no torch.

    Args:
        export: folder made by `vitfrost export`.
        images: picture files.
        top: how many classes.
        threads: of a forward pass; OMP_NUM_THREADS or all cores if not given.
        json: print JSON.
    """
    from .. import predict as verb
    from ..runtime.predict import text_of

    print(text_of(verb(export, images, top=top, threads=threads), json))
