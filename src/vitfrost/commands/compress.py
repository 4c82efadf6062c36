"""The command `compress`."""

from __future__ import annotations

from pathlib import Path

from ..configs import Compress, Repair
from .arguments import ArtifactOrNone, Flags, ModelFlags, announce_simulation, one_of
from .flags import Given, Group, takes


@takes(Group.of(Compress), Group.of(Repair))
def compress(
    artifact: ArtifactOrNone = None,
    /,
    *,
    given: Given,
    plan: Path,
    out: Path,
    model: Flags = ModelFlags(),
    statistics: Path | None = None,
    images: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Apply a plan: hallucinate and compact in closed form, repair, quantize with RepQ-ViT, freeze; save an artifact (safetensors, JSON).

    Give the timm model that the plan was made for, or a trained artifact that the plan goes on from.

    Args:
        plan: file from `vitfrost plan`.
        out: artifact folder.
        statistics: the file that the plan was made from, where it freezes anything.
        images: folder from which images are drawn, where activations are quantized, blocks compacted, or the model repaired.
        overwrite: replace an existing folder.
    """
    config, repair = given.config(Compress), given.optional(Repair)
    one_of(artifact, model.model)
    from .. import compress as verb
    from ..passes.compress import idle_draws
    from ..plans.schema import Plan

    loaded, chosen = model.open(artifact), Plan.load(plan)
    for field, why in idle_draws(chosen).items():
        given.refuse([field.replace("_", "-")], f"has no effect: {why}; leave it out")
    made = verb(
        loaded, chosen, statistics=statistics, images=images, repair=repair, config=config, progress=True, out=out, overwrite=overwrite
    )
    if made.repair is not None and made.repair["layers"]:
        name, left = list(made.repair["layers"].items())[-1]
        print(
            f"{len(made.repair['layers'])} layers repaired on {made.repair['images']} images; share of the stream's variance that is "
            f"missed at {name}: {left['before']:.4f} -> {left['after']:.4f}"
        )
    print(f"{out}: {made.size_bytes / 1e6:.3f} MB")
    announce_simulation(made.plan)
