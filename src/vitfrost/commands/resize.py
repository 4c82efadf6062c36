"""The command `resize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def resize(
    artifact: Annotated[Positional[Path], arg(metavar="ARTIFACT")], /, *, image_size: int, out: Path, overwrite: bool = False
) -> None:
    """Carry an artifact over to another image size: positions are interpolated, constant maps stretched as the patch grid is.

    Args:
        image_size: input size in pixels.
        out: folder for the new artifact.
        overwrite: replace an existing folder.
    """
    from .. import resize as verb

    made = verb(artifact, image_size, out=out, overwrite=overwrite)
    print(f"{out}: {made.size_bytes / 1e6:.3f} MB")
