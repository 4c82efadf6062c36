"""The command `resize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def resize(
    artefact: Annotated[Positional[Path], arg(metavar="ARTEFACT")], /, *, image_size: int, out: Path, overwrite: bool = False
) -> None:
    """Carry an artefact over to another image size: positions are interpolated, constant maps stretched as the patch grid is.

    Args:
        image_size: input size in pixels.
        out: folder for the new artefact.
        overwrite: replace an existing folder.
    """
    from .. import resize as verb

    made = verb(artefact, image_size, out=out, overwrite=overwrite)
    print(f"{out}: {made.size_bytes / 1e6:.3f} MB")
