"""Variants of one quantized model, measured in passes over the images and saved one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..artifact import Artifact, frozen_bytes
from ..distributed import rank
from ..evaluation.evaluate import result_row
from ..evaluation.outcomes import Measured, Outcomes, measure_outcomes
from ..images.decode import Decoded
from ..images.source import ImageSet
from ..methods.frozen_entries import FrozenMaps
from ..model import Model
from ..passes.freeze_entries import frozen_modules
from ..plans.choose import plan, summary
from ..plans.schema import Plan
from ..runs.recipe import PlanPart
from ..statistics.record import Statistics
from .outcome_files import Outcome
from .shared import Remembered, SharedModel, VariantModel
from .variants import ORIGINAL, Variant

KEPT_BYTES = 4e9


@dataclass
class Evaluation:
    """The images on which all variants are measured, and the original that they are compared with.

    Decoded images are kept from pass to pass as long as they take less than 4 GB; the original runs once per batch.
    `folder` is where outcomes are saved.
    """

    original: Model
    image_set: ImageSet
    batch_size: int
    folder: Path
    progress: bool = True
    kept: dict[int, Decoded] | None = None
    reference: Model = field(init=False)

    def __post_init__(self) -> None:
        self.reference = replace(self.original, module=Remembered(self.original.module))
        height, width = self.original.image_size
        if self.kept is None and len(self.image_set) * 3 * height * width < KEPT_BYTES:
            self.kept = {}

    def run(self, models: list[Model], text: str) -> Measured:
        """One pass over the images with some models, beside the original."""
        return measure_outcomes(models, self.reference, self.image_set, self.batch_size, self.progress, text=text, kept=self.kept)

    def save(
        self, variant: Variant | None, context: str, loaded: Model, outcomes: Outcomes, measured: Measured, made: Plan | None
    ) -> Outcome:
        """Write one outcome (by the first process only); `context` is what it depends on beside its variant."""
        row = result_row(ORIGINAL if variant is None else variant.title, loaded, outcomes, measured, ORIGINAL)
        row = row.model_copy(update={"variant": None if variant is None else variant.as_dict()})
        correct = outcomes.correct1.astype(bool) if row.labeled else None
        counts = {"frozen_entries": 0, "entries": 0} if made is None else summary(made)
        outcome = Outcome(variant, context, row, correct, counts["frozen_entries"], counts["entries"])
        if rank() == 0:
            outcome.save(self.folder)
        return outcome

    def measure_original(self, context: str, text: str) -> Outcome:
        """The original alone."""
        measured = self.run([self.reference], text)
        return self.save(None, context, self.original, measured.models[0], measured, None)


def measure_variants(
    evaluation: Evaluation,
    base: Model,
    members: Sequence[tuple[Variant, Statistics | None]],
    contexts: Mapping[str, str],
    text: str,
) -> None:
    """Measure variants of `base`, an unfrozen artifact or the original, in one pass, and save their outcomes.

    Every variant comes with the statistics that it is planned from (None where it freezes nothing). Variants with equal frozen
    maps in their first layers share the work of these layers. `contexts` are those of the variants, by key.
    """
    with SharedModel(base.module) as shared:
        taking_part = [_artifact(base, shared, variant, statistics) for variant, statistics in members]
        measured = evaluation.run(list(taking_part), text)
        for (variant, _), artifact, outcomes in zip(members, taking_part, measured.models, strict=True):
            model = artifact.module
            assert isinstance(model, VariantModel)
            model.select()
            evaluation.save(variant, contexts[variant.key], artifact, outcomes, measured, artifact.plan)


def _artifact(base: Model, shared: SharedModel, variant: Variant, statistics: Statistics | None) -> Artifact:
    """The variant as an artifact that is not saved; its size is the base's and that of its packed frozen maps."""
    frozen: dict[str, FrozenMaps] = {}
    if variant.freeze == 0 and isinstance(base, Artifact):
        made = base.plan
    else:
        assert statistics is not None
        made = plan(statistics, *PlanPart.model_validate(variant.plan).methods())
        frozen = frozen_modules(base.module, made, statistics)
    size = base.size_bytes if isinstance(base, Artifact) else sum(p.numel() * p.element_size() for p in base.module.parameters())
    seeds = dict(base.seeds) if isinstance(base, Artifact) else {}
    if statistics is not None and statistics.header.seed is not None:
        seeds["statistics"] = statistics.header.seed
    if made.freeze is not None:
        seeds["plan"] = made.freeze.seed
    return Artifact.made_from(
        base, shared.add(frozen), plan=made, seeds=seeds, size_bytes=size + sum(frozen_bytes(maps) for maps in frozen.values()),
        quantization=base.quantization if isinstance(base, Artifact) else None,
    )  # fmt: skip
