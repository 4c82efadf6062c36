"""The command `calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from .arguments import ArtifactOrNone, Flags, ModelFlags


def calibrate(
    artifact: ArtifactOrNone = None,
    /,
    *,
    images: Path,
    out: Path,
    model: Flags = ModelFlags(),
    limit: int = 1000,
    seed: int = 0,
    batch_size: int = 16,
    maps: Literal["before", "after"] = "before",
    memory_limit: float = 4.0,
    sensitivity: bool = False,
    similarity: bool = False,
) -> None:
    """Measure the attention maps of a model or an artifact on images: entropy, mean, variance of every weight.

    Args:
        images: folder of pictures (class folders, a folder with labels.csv, or any folder).
        out: statistics file (.safetensors).
        limit: how many images, a seeded draw.
        seed: seed of the draw.
        batch_size: images per forward pass.
        maps: of a quantized artifact, the maps before or after its map quantizer.
        memory_limit: GB for counters; beyond it the images are passed several times.
        sensitivity: also measure how much the outputs depend on every weight (no labels needed; takes up to twice as long).
        similarity: also measure how alike the heads are, within layers and across them; a plan that hallucinates heads needs it.
    """
    from .. import calibrate as verb
    from ..configs import Calibrate
    from ..distributed import rank

    config = Calibrate(
        limit=limit, seed=seed, batch_size=batch_size, maps=maps, memory_limit=memory_limit, sensitivity=sensitivity,
        similarity=similarity,
    )  # fmt: skip
    found = verb(model.open(artifact), images, config, out=out)
    if rank() != 0:
        return
    header = found.header
    print(f"{out}: {len(found.sites)} sites, {header.images} images ({header.skipped} skipped), {header.precision}")
