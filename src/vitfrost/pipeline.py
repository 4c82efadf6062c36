"""The verb `run`: the stages in order, each a file in the run's folder, each skipped when it is already there.

A stage is done when its output exists and was made from the same inputs: `stages.json` keeps for every stage the hash of
its part of the recipe and of the files it read. Outputs appear by atomic rename, so a run that is killed can be resumed
and ends with the same bits as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .artefact import CONFIG_FILE, load_artefact
from .compression.apply import compress
from .errors import VitfrostError
from .files import read_json, refuse_existing, sha256_of_file, write_json
from .images.source import open_images
from .measure.accuracy import evaluate_many, find_images
from .measure.results import Results, save_results
from .plans.choose import plan, unfrozen_plan
from .plans.schema import Plan, QuantizePlan
from .recipe import Recipe, load_recipe, save_recipe
from .reporting.build import report
from .statistics.collect import calibrate
from .vit.families import find_sites
from .vit.load import LoadedModel, load_model

RECIPE_FILE, STAGES_FILE = "recipe.yaml", "stages.json"


@dataclass(frozen=True)
class Stage:
    """One arrow: a name, the file it makes, the files it reads, its part of the recipe, and what makes it."""

    name: str
    output: str
    inputs: tuple[str, ...]
    settings: Any
    make: Callable[[Path], object]


class Run:
    """A run's folder, its recipe, and the stages that the recipe asks for."""

    def __init__(self, recipe: Recipe, folder: Path, progress: bool):
        self.recipe = recipe
        self.folder = folder
        self.progress = progress

    @cached_property
    def original(self) -> LoadedModel:
        """The model to compress, loaded once."""
        part = self.recipe.model
        return load_model(part.name, part.weights, part.image_size, crop_pct=part.crop_pct, crop_mode=part.crop_mode)

    def check_images(self) -> None:
        """Find out before the work that every folder of images and every label is there. Raises VitfrostError as the stages do."""
        for folder in {self.recipe.calibration.images, self.recipe.compress.images or self.recipe.calibration.images}:
            open_images(folder)
        if (part := self.recipe.evaluation) is not None:
            find_images(part.images, part.labels, self.original.classes, has_reference=True)

    @property
    def quantised_statistics(self) -> bool:
        """Whether the plan is made from statistics of the quantised model."""
        return self.recipe.calibration.precision == "quantised"

    def _calibrate(self, model: LoadedModel | Path, out: Path, maps: str) -> None:
        part = self.recipe.calibration
        calibrate(model, part.images, limit=part.limit, seed=part.seed, out=out, maps=maps, progress=self.progress)

    def _compress(self, chosen: Plan | Path, statistics: str | None, out: Path) -> None:
        part = self.recipe.compress
        compress(
            self.original, chosen, statistics=None if statistics is None else self.folder / statistics,
            images=part.images or self.recipe.calibration.images, seed=part.seed, calibration_images=part.calibration_images,
            recipe=self.recipe.without_paths(), out=out, overwrite=True,
        )  # fmt: skip

    def _compress_unfrozen(self, out: Path) -> None:
        part = self.recipe.plan
        quantize = QuantizePlan(weight_bits=part.weight_bits, activation_bits=part.activation_bits, levels=part.levels)  # type: ignore[arg-type]
        signature = find_sites(self.original.model).signature()
        self._compress(unfrozen_plan(self.original.identity(), signature, quantize), None, out)

    def _evaluate(self, out: Path) -> None:
        part = self.recipe.evaluation
        assert part is not None
        models: dict[str, LoadedModel] = {"original": self.original}
        if self.quantised_statistics:
            models["quantised"] = load_artefact(self.folder / "quantised")
        models["compressed"] = load_artefact(self.folder / "artefact")
        rows = evaluate_many(
            models, part.images, labels=part.labels, reference="original", limit=part.limit, seed=part.seed, progress=self.progress
        )
        save_results(Results(rows=rows), out)

    def stages(self) -> list[Stage]:
        """The stages in order. The last, the report, reads everything before it."""
        recipe, folder = self.recipe, self.folder
        model = {**recipe.model.model_dump(), "state": self.original.state_hash}
        taken = recipe.calibration.model_dump()
        drawn = {**recipe.compress.model_dump(), "bits": (recipe.plan.weight_bits, recipe.plan.activation_bits, recipe.plan.levels)}
        stages = [
            Stage("calibrate", "statistics.safetensors", (), [model, taken], lambda out: self._calibrate(self.original, out, "before"))
        ]
        source = "statistics.safetensors"
        if self.quantised_statistics:
            source = "statistics.quantised.safetensors"
            stages += [
                Stage("quantise", "quantised", (), [model, drawn, taken["images"]], self._compress_unfrozen),
                Stage(
                    "calibrate quantised", source, ("quantised",), taken,
                    lambda out: self._calibrate(folder / "quantised", out, recipe.calibration.observed),
                ),
            ]  # fmt: skip
        stages += [
            Stage(
                "plan", "plan.yaml", (source,), recipe.plan.model_dump(),
                lambda out: plan(folder / source, **recipe.plan.model_dump(), out=out),
            ),
            Stage(
                "compress", "artefact", (source, "plan.yaml"), [model, drawn, taken["images"]],
                lambda out: self._compress(folder / "plan.yaml", source, out),
            ),
        ]  # fmt: skip
        if recipe.evaluation is not None:
            stages.append(Stage("evaluate", "results.json", ("artefact",), recipe.evaluation.model_dump(), self._evaluate))
        made = tuple(stage.output for stage in stages)
        return [*stages, Stage("report", "report.html", made, {}, lambda out: report(folder, out))]


def _file_key(path: Path) -> str:
    return sha256_of_file(path / CONFIG_FILE if path.is_dir() else path)


def _stage_key(stage: Stage, folder: Path) -> str:
    inputs = {name: _file_key(folder / name) for name in stage.inputs}
    return hashlib.sha256(json.dumps([stage.settings, inputs], sort_keys=True, default=str).encode()).hexdigest()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(
    recipe: str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    weights: str | Path | None = None,
    calibration: str | Path | None = None,
    images: str | Path | None = None,
    progress: bool = True,
) -> Path:
    """Go from a recipe to a report; every stage's file is left in the folder `out`, which is returned.

    `weights`, `calibration` and `images` (evaluation) replace the recipe's paths. With `resume`, stages whose outputs are
    already there and were made from the same inputs are not done again. Raises VitfrostError as the stages do, and when
    `out` holds something and `resume` is not set; a resumed run with a changed recipe redoes what the change touches.
    """
    folder = Path(out)
    loaded = load_recipe(recipe)
    if weights is not None:
        loaded.model.weights = str(weights) if str(weights) == "random" else str(Path(weights).resolve())
    if calibration is not None:
        loaded.calibration.images = str(Path(calibration).resolve())
    if images is not None and loaded.evaluation is not None:
        loaded.evaluation.images = str(Path(images).resolve())
    refuse_existing_run(folder, resume)
    started = Run(loaded, folder, progress)
    stages = started.stages()
    if not resume:
        started.check_images()
    save_recipe(loaded, folder / RECIPE_FILE)
    done = _stages_done(folder / STAGES_FILE)
    for number, stage in enumerate(stages, 1):
        key, target = _stage_key(stage, folder), folder / stage.output
        if target.exists() and done.get(stage.name) == key:
            _say(f"[{number}/{len(stages)}] {stage.name}: already there")
            continue
        _say(f"[{number}/{len(stages)}] {stage.name} -> {target}")
        stage.make(target)
        done[stage.name] = key
        write_json(folder / STAGES_FILE, done)
    return folder


def refuse_existing_run(folder: Path, resume: bool) -> None:
    """Raise VitfrostError where no run can be made: a folder with a run unless `resume`, one with anything else, a file."""
    refuse_existing(folder, overwrite=True)
    if folder.is_dir() and any(not item.name.startswith(".") for item in folder.iterdir()):
        if not (folder / RECIPE_FILE).is_file():
            raise VitfrostError(f"the folder {folder} exists and holds no run; name another one")
        if not resume:
            raise VitfrostError(f"{folder} holds a run already; add --resume to finish it, or name another folder")


def _stages_done(path: Path) -> dict[str, str]:
    done = read_json(path) if path.is_file() else {}
    if not isinstance(done, dict):
        raise VitfrostError(f"{path} is damaged; remove it, and all stages are done again")
    return done
