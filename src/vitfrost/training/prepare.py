"""From a recipe to what a training run needs: the model in training form, its plan, its teacher, its pictures."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..artifact import Artifact
from ..class_names import class_space
from ..configs.flat import UNQUANTIZED
from ..distributed import rank
from ..errors import VitfrostError
from ..images.classes import ClassSpace
from ..images.source import class_folders
from ..model import Model, open_part
from ..passes.structure import fit_sources, has_structure, install_structure, start_from
from ..passes.work import draw_calibration
from ..plans.choose import plan, unfrozen_plan
from ..plans.fits import check_fits
from ..plans.schema import Plan
from ..statistics.record import Statistics
from ..vit.checkpoint import own_part, read_weights
from ..vit.draws import own_seed
from ..vit.families import find_sites
from ..vit.load import hash_state, load_state
from ..vit.resize import fit_state
from .decoded import DecodedImages, join, open_decoded
from .recipe import SourcePart, TrainingRecipe

DECODING_THREADS = 2


@dataclass
class Start:
    """What training starts from. `loaded` is the model before it was changed, `model` the one that is trained; None as `plan`: plain."""

    loaded: Model
    model: nn.Module
    plan: Plan
    seeds: dict[str, int]
    structure: dict[str, Any] | None = None


def load_start(recipe: TrainingRecipe, *, fill: bool = True) -> Start:
    """Load or create the model and give it the plan's structure in training form.

    Trained weights take it up in closed form (not with `fill=False`, where a checkpoint follows). Raises VitfrostError where plan, model
    and statistics do not belong together, and for a plan that quantizes or freezes.
    """
    if recipe.start.artifact is not None:
        return _of_artifact(recipe)
    loaded = _load_model(recipe)
    sites = find_sites(loaded.module)
    chosen = _plan(recipe, loaded)
    check_fits(chosen, loaded.identity, sites.signature(), [site.signature() for site in sites.feed_forward])
    _refuse_untrainable(chosen)
    start = Start(loaded, copy.deepcopy(loaded.module), chosen, {"training": recipe.seed})
    if has_structure(chosen):
        with own_seed(recipe.seed):
            if recipe.model.weights is None or not fill:
                install_structure(start.model, chosen, training=True)
            else:
                _take_up(start, recipe)
    return start


def _of_artifact(recipe: TrainingRecipe) -> Start:
    """Go on from an artifact: merged layers stay merged."""
    artifact = Artifact.load(str(recipe.start.artifact))
    if artifact.name != recipe.model.name:
        raise VitfrostError(f"start.artifact is a {artifact.name}, but model.name is {recipe.model.name}; name the same model")
    _refuse_untrainable(artifact.plan)
    for parameter in artifact.module.parameters():
        parameter.requires_grad_(True)
    return Start(artifact, artifact.module, artifact.plan, {**artifact.seeds, "training": recipe.seed}, artifact.structure)


def _refuse_untrainable(chosen: Plan) -> None:
    if chosen.freeze is not None or chosen.quantize.parts.any:
        raise VitfrostError(
            "the plan freezes entries or quantizes, which is not trained through; plan with 32 bits and whole heads frozen at most, train, "
            "then compress"
        )


def _load_model(recipe: TrainingRecipe) -> Model:
    part = recipe.model
    loaded = open_part(replace(part, weights=None if part.weights == "timm" else "random"), seed=recipe.seed)
    if part.weights not in (None, "timm"):
        loaded = _with_weights(loaded, str(part.weights))
    kept = {name: value for name, value in loaded.options.items() if not name.endswith("drop_rate") and name != "drop_path_rate"}
    return replace(loaded, options=kept)


def _with_weights(loaded: Model, path: str) -> Model:
    """Weights of a file, but for a classifier that has other classes: that stays untrained."""
    model: Any = loaded.module
    state, own = fit_state(model, own_part(model, read_weights(path), path)), model.state_dict()
    classifier = model.get_classifier()
    for name in [name for name, module in model.named_modules() if module is classifier]:
        for key in (f"{name}.{part}" for part in classifier.state_dict()):
            if key in state and state[key].shape != own[key].shape:
                state[key] = own[key]
    load_state(model, state, path)
    return replace(loaded, weight_tag=f"file:{Path(path).name}", state_hash=hash_state(model))


def _plan(recipe: TrainingRecipe, loaded: Model) -> Plan:
    if recipe.plan is None:
        return unfrozen_plan(loaded.identity, find_sites(loaded.module).signature(), UNQUANTIZED)
    if isinstance(recipe.plan, str):
        return Plan.load(recipe.plan)
    methods = (recipe.plan.constants, recipe.plan.hallucinate, recipe.plan.compact)
    source: Any = recipe.start.statistics or loaded
    return plan(source, *(method for method in methods if method is not None), UNQUANTIZED)


def _take_up(start: Start, recipe: TrainingRecipe) -> None:
    """Fill the plan's structure from the trained weights, in closed form."""
    part = recipe.start
    statistics = None if part.statistics is None else Statistics.load(part.statistics)
    if statistics is not None and statistics.header.model.state_hash != start.loaded.state_hash:
        raise VitfrostError(f"the statistics {part.statistics} are of other weights; calibrate this model, or leave them out")
    pixels = None
    if part.images is not None:
        pixels, start.structure = draw_calibration(start.loaded, part.images, part.limit, part.seed)
        start.seeds["structure"] = part.seed
    errors = start_from(start.model, start.plan, pixels, fit_sources(start.plan, statistics), training=True, seed=part.seed)
    start.structure = (start.structure or {}) | {"relative_errors": errors}


def load_teacher(recipe: TrainingRecipe, start: Start) -> Model | None:
    """The teacher in evaluation mode, without gradients. Raises VitfrostError where its classes are not the model's."""
    part = recipe.teacher
    if part is None:
        return None
    if part.original:
        teacher = replace(start.loaded, module=copy.deepcopy(start.loaded.module))
    else:
        weights = None if part.weights == "timm" else part.weights
        teacher = Model.open(str(part.name), weights=weights, image_size=part.image_size, options=part.options)
    if teacher.classes != start.loaded.classes:
        raise VitfrostError(
            f"the teacher {teacher.name} has {teacher.classes} classes, the model {start.loaded.classes}; give an equal one"
        )
    teacher.module.eval().requires_grad_(False)
    return teacher


def open_training(recipe: TrainingRecipe, start: Start, progress: bool) -> DecodedImages:
    """The training pictures, decoded. Raises VitfrostError where labels are missing that no teacher replaces, or do not fit the model."""
    size = recipe.data.size or max(start.loaded.image_size)
    threads = recipe.threads or DECODING_THREADS
    cache = None if recipe.data.cache is None else Path(recipe.data.cache)
    parts = [_open(part, size, cache, start.loaded.class_space, threads, progress and rank() == 0) for part in recipe.data.train]
    images = join(parts)
    if images.labels is None and (recipe.teacher is None or recipe.teacher.weight < 1):
        raise VitfrostError("data.train has no labels; give labels, or a teacher with weight 1")
    if images.labels is not None and int(images.labels.max()) >= start.loaded.classes:
        raise VitfrostError(
            f"data.train has labels up to {int(images.labels.max())}, the model has {start.loaded.classes} classes; set model.classes"
        )
    return images


def _open(part: SourcePart, size: int, cache: Path | None, classes: ClassSpace, threads: int, progress: bool) -> DecodedImages:
    images = open_decoded(
        part.source, size=size, split=part.split, labels="local" if part.labels == "none" else part.labels, limit=part.limit,
        seed=part.seed, cache=cache, classes=classes, threads=threads, progress=progress,
    )  # fmt: skip
    return replace(images, labels=None, classes=None, label_space="") if part.labels == "none" else images


def evaluated_classes(recipe: TrainingRecipe, start: Start) -> ClassSpace:
    """The classes that the evaluation may name: the model's, which a folder of training pictures names where nothing else does."""
    loaded = start.loaded
    if loaded.class_names is None:
        for part in recipe.data.train:
            folders = class_folders(part.source) if part.labels == "local" and Path(part.source).is_dir() else ()
            if len(folders) == loaded.classes:
                return class_space(loaded.classes, folders)
    return loaded.class_space


def input_hashes(
    recipe: TrainingRecipe, start: Start, images: DecodedImages, evaluation: str | None, teacher: Model | None
) -> dict[str, str]:
    """What a checkpoint belongs to, by name."""
    found = {"recipe": recipe.hash(), "plan": start.plan.content_hash, "start": start.loaded.state_hash, "training data": images.digest}
    if evaluation is not None:
        found["evaluation data"] = evaluation
    if teacher is not None:
        found["teacher"] = teacher.state_hash
    return found
