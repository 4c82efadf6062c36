"""The command `calibrate`."""

from __future__ import annotations

from pathlib import Path

from ..configs import Calibrate
from .arguments import ArtifactOrNone, Flags, ModelFlags
from .flags import Given, Group, takes


@takes(Group.of(Calibrate))
def calibrate(
    artifact: ArtifactOrNone = None,
    /,
    *,
    given: Given,
    images: Path,
    out: Path,
    model: Flags = ModelFlags(),
) -> None:
    """Measure the attention maps of a model or an artifact on images: entropy, mean, variance of every weight.

    Args:
        images: folder of pictures (class folders, a folder with labels.csv, or any folder).
        out: statistics file (.safetensors).
    """
    config = given.config(Calibrate)
    from .. import calibrate as verb
    from ..distributed import rank

    found = verb(model.open(artifact), images, config, out=out)
    if rank() != 0:
        return
    header = found.header
    print(f"{out}: {len(found.sites)} sites, {header.images} images ({header.skipped} skipped), {header.precision}")
