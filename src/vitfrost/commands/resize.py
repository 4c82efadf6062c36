"""The command `resize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


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
