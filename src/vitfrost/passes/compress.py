"""The verb `compress`: a plan applied to a model, pass by pass."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

from ..artifact import Artifact, settings_of
from ..configs import Compress, Repair, expect, refuse_idle
from ..configs.methods import REPQ
from ..errors import VitfrostError
from ..files import refuse_existing
from ..images.given import ImagesLike, find_given
from ..model import Model, ModelLike, as_model
from ..plans.fits import check_bits, check_fits
from ..plans.schema import Plan, structure_of
from ..statistics.record import Statistics
from ..torch_state import usual_torch
from ..vit.families import find_sites, install_map_attention
from .freeze_entries import FreezeMapEntries
from .give_structure import GiveStructure
from .quantizers import find_quantizer, quantizing_pass
from .repair_layers import RepairLayers
from .structure import changed_sites, has_structure
from .use_relu import UseReLU
from .work import Draws, Pass, Work, apply_passes

DEFAULTS = Compress()
DRAWS = ("calibration", "structure", "repair")  # in which order an artifact lists their seeds


def passes_of(plan: Plan, repair: Repair | None = None, config: Compress = DEFAULTS, *, structured: bool = False) -> list[Pass]:
    """The passes that apply a plan, in order. `structured`: the model has the plan's structure already.

    Frozen entries come before the repair and the quantizer, which then make up for them too; but with RepQ-ViT they lie on the grids of
    the map quantizers, so there they come last where maps are quantized.
    """
    settings = settings_of(plan)
    passes: list[Pass] = []
    if has_structure(plan) and not structured:
        passes.append(GiveStructure(config.compact_images))
    if plan.quantize.relu:
        passes.append(UseReLU())
    frozen_last = settings.parts.any_maps and not find_quantizer(plan.quantize.method).freezes_first
    if plan.freeze is not None and not frozen_last:
        passes.append(FreezeMapEntries())
    if repair is not None:
        passes.append(RepairLayers(repair))
    if settings.any:
        passes.append(quantizing_pass(plan.quantize, config))
    if plan.freeze is not None and frozen_last:
        passes.append(FreezeMapEntries())
    return passes


def start_work(loaded: Model, plan: Plan, statistics: Statistics | None = None, draws: Draws | None = None, progress: bool = False) -> Work:
    """A copy of the model, ready for the plan's passes. An artifact keeps its structure, and the records of what was done to it.

    Raises VitfrostError where the plan is not for this model.
    """
    given = loaded if isinstance(loaded, Artifact) else None
    sites = find_sites(loaded.module if given is None else loaded.blank())
    check_fits(plan, loaded.identity, sites.signature(), [site.signature() for site in sites.feed_forward])
    changed = changed_sites(sites, plan)
    check_bits(plan.quantize, loaded.name, sites, changed)
    records: dict[str, Any] = {}
    if given is not None:
        _check_structure(given.plan, plan)
        sites = changed
        records = {"structure": given.structure, "repair": given.repair, **given.passes}
    model = copy.deepcopy(loaded.module).cpu()  # once, and in seconds: the same bits wherever the model runs
    install_map_attention(model)
    kept = {name: record for name, record in records.items() if record is not None}
    return Work(model, sites, loaded, plan, statistics, draws or Draws(loaded, None, 0), progress, kept)


def idle_draws(plan: Plan) -> dict[str, str]:
    """Fields of `Compress` that a plan leaves without effect, and why."""
    found = {}
    if not plan.quantize.parts.any_activations and plan.quantize.method == REPQ:
        found["calibration_images"] = "the plan leaves activations in floating point"
    if plan.hallucinate is None and plan.compact is None:
        found["compact_images"] = "the plan neither hallucinates heads nor compacts blocks"
    return found


def _check_structure(made: Plan, plan: Plan) -> None:
    """Raise VitfrostError unless the plan goes on from what an artifact was made with."""
    if made.freeze is not None or settings_of(made).any:
        raise VitfrostError("the artifact is quantized or frozen already; compress the model that it was made from, or a trained artifact")
    if structure_of(made) != structure_of(plan):
        raise VitfrostError(
            "the plan has other hallucinated heads or compact blocks than the artifact; calibrate the artifact and plan again"
        )


def artifact_of(work: Work, recipe: dict[str, Any] | None = None) -> Artifact:
    """The model with its plan and its history, once all passes have been applied."""
    loaded, records = work.original, dict(work.records)
    structure, repair, quantization = (records.pop(name, None) for name in ("structure", "repair", "quantization"))
    return Artifact.made_from(
        loaded, work.model, plan=work.plan.with_origin(None), statistics=_source(work.statistics), structure=structure, repair=repair,
        quantization=quantization, passes=records,
        training=loaded.training if isinstance(loaded, Artifact) else None, seeds=_seeds(work), recipe=recipe,
    )  # fmt: skip


def _source(statistics: Statistics | None) -> dict[str, Any] | None:
    """For the record: which statistics these are."""
    if statistics is None:
        return None
    header = statistics.header
    counted = {"images": header.images, "images_hash": header.images_hash, "precision": header.precision, "seed": header.seed}
    return {"hash": statistics.content_hash, **counted}


def _seeds(work: Work) -> dict[str, int]:
    """Every seed behind the model, by use: of its history, of the draws, of the statistics and of the plan."""
    seeds = dict(work.original.seeds) if isinstance(work.original, Artifact) else {}
    drawn = work.draws.seeds
    seeds |= {use: drawn[use] for use in (*DRAWS, *drawn) if use in drawn}
    if work.statistics is not None and work.statistics.header.seed is not None:
        seeds["statistics"] = work.statistics.header.seed
    if work.plan.freeze is not None:
        seeds["plan"] = work.plan.freeze.seed
    return seeds


@usual_torch()
def compress(
    model: ModelLike,
    plan: Plan | str | Path,
    *,
    statistics: Statistics | str | Path | None = None,
    images: ImagesLike | None = None,
    repair: Repair | None = None,
    config: Compress = DEFAULTS,
    progress: bool = False,
    recipe: dict[str, Any] | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Artifact:
    """Apply a plan to a model: hallucinate and compact in closed form, freeze, repair, quantize; save the artifact to `out`.

    Args:
        statistics: those that the plan was made from; needed where it freezes or hallucinates. A plan made from statistics in memory
            brings them.
        images: a folder or an iterable (see images.given) that images are drawn from where activations are quantized, compact blocks
            fitted, or the model repaired.
        repair: re-fit output projections and second feed-forward projections (see methods.repair.refit): to the structure alone where
            activations are quantized, else to frozen maps too.
        config: how many images are drawn, and by which seed. One may serve several plans: numbers that this plan has no use for are left
            aside.

    The model itself is not changed. It may be an artifact (or its folder), such as a trained one, that is neither quantized nor frozen:
    its structure stays, the plan has to be made from statistics of it, and a repair aims at it. `passes_of` gives the order of the passes.
    Raises VitfrostError when plan, statistics and model do not belong together.
    """
    if out is not None:
        refuse_existing(Path(out), overwrite)
    expect(Compress, config, "config")
    if repair is not None:
        expect(Repair, repair, "repair")
        refuse_idle(repair)
    if not isinstance(plan, Plan | str | Path):
        raise VitfrostError(f"plan is a {type(plan).__name__}; give a vitfrost.Plan, or the file of one")
    plan = plan if isinstance(plan, Plan) else Plan.load(plan)
    known: Statistics | None = plan.origin if statistics is None else None
    if statistics is not None:
        known = statistics if isinstance(statistics, Statistics) else Statistics.load(statistics)
    loaded = as_model(model)
    images = None if images is None else find_given(images, several=True)
    work = start_work(loaded, plan, known, Draws(loaded, images, config.seed), progress)
    work.scratch = None if out is None else Path(f"{Path(out)}.unfinished")
    apply_passes(passes_of(plan, repair, config, structured=isinstance(loaded, Artifact)), work)
    artifact = artifact_of(work, recipe)
    if out is not None:
        artifact.save(out, overwrite)
        if work.scratch is not None:
            shutil.rmtree(work.scratch, ignore_errors=True)
    return artifact
