"""The verb `run`: from a recipe, a recipe with a grid, or a list of recipes, to a report, stage by stage."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from ..passes.compress import compress
from ..configs import Calibrate, Evaluate
from ..errors import VitfrostError
from ..files import refuse_existing, refuse_existing_run
from ..studies.stages import GridRun
from ..images.source import open_images
from ..evaluation.evaluate import evaluate_many, find_images
from ..evaluation.results import Results, save_results
from ..plans.choose import plan, unfrozen_plan
from ..plans.criteria import NEED_SENSITIVITY
from ..plans.schema import Plan, QuantizePlan
from .recipe import Recipe, RecipeList, load_recipe, load_recipe_list, save_recipe
from ..reporting.build import report
from ..studies.several import report_several
from .stages import Stage, run_stages, say
from ..statistics.calibrate import calibrate
from ..vit.families import find_sites
from ..model import Model
from ..vit.load import find_device, find_weights

RECIPE_FILE, REPORT_FILE = "recipe.yaml", "report.html"


class SingleRun:
    """A run's folder, its recipe, and the stages that the recipe asks for."""

    def __init__(self, recipe: Recipe, folder: Path, progress: bool, device: str = "cpu"):
        self.recipe = recipe
        self.folder = folder
        self.progress = progress
        self.device = device

    @cached_property
    def original(self) -> Model:
        """The model to compress, loaded once."""
        part = self.recipe.model
        return part.open(self.device)

    def check_images(self) -> None:
        """Find out before the work that every folder of images and every label is there. Raises VitfrostError as the stages do."""
        for folder in {self.recipe.calibration.images, self.recipe.compress.images or self.recipe.calibration.images}:
            open_images(folder)
        if (part := self.recipe.evaluation) is not None:
            find_images(part.images, part.labels, self.original.classes, has_reference=True)

    @property
    def quantized_statistics(self) -> bool:
        """Whether the plan is made from statistics of the quantized model."""
        return self.recipe.calibration.precision == "quantized"

    @property
    def sensitivity(self) -> bool:
        """Whether the statistics need gradients."""
        return self.recipe.calibration.sensitivity or self.recipe.plan.by in NEED_SENSITIVITY

    @property
    def similarity(self) -> bool:
        """Whether the statistics need the heads' similarity."""
        return self.recipe.calibration.similarity or self.recipe.plan.similarity

    def _open(self, model: Model | Path) -> Model:
        return (model if isinstance(model, Model) else Model.open(model)).to(self.device)

    def _calibrate(self, model: Model | Path, out: Path, maps: Literal["before", "after"]) -> None:
        part = self.recipe.calibration
        calibrate(
            self._open(model), part.images,
            Calibrate(limit=part.limit, seed=part.seed, maps=maps, sensitivity=self.sensitivity, similarity=self.similarity),
            out=out, progress=self.progress,
        )  # fmt: skip

    def _compress(self, chosen: Plan | Path, statistics: str | None, out: Path, repairs: bool = True) -> None:
        part = self.recipe.compress
        compress(
            self.original, chosen, statistics=None if statistics is None else self.folder / statistics,
            images=part.images or self.recipe.calibration.images, seed=part.seed, calibration_images=part.calibration_images,
            compact_images=part.compact_images, repair=part.repair if repairs else None, repair_images=part.repair_images,
            repair_penalty=part.repair_penalty if repairs else None, progress=self.progress, recipe=self.recipe.without_paths(),
            out=out, overwrite=True,
        )  # fmt: skip

    def _compress_unfrozen(self, out: Path) -> None:
        part = self.recipe.plan
        quantize = QuantizePlan(weight_bits=part.weight_bits, activation_bits=part.activation_bits, levels=part.levels)  # type: ignore[arg-type]
        signature = find_sites(self.original.module).signature()
        self._compress(unfrozen_plan(self.original.identity, signature, quantize), None, out, repairs=False)

    def _evaluate(self, out: Path) -> None:
        part = self.recipe.evaluation
        assert part is not None
        models: dict[str, Model] = {"original": self.original}
        if self.quantized_statistics:
            models["quantized"] = self._open(self.folder / "quantized")
        models["compressed"] = self._open(self.folder / "artifact")
        rows = evaluate_many(
            models, part.images, labels=part.labels, reference="original", config=Evaluate(limit=part.limit, seed=part.seed),
            progress=self.progress,
        )
        save_results(Results(rows=rows), out)

    def stages(self) -> list[Stage]:
        """The stages in order, without the report."""
        recipe, folder = self.recipe, self.folder
        model = {**recipe.model.settings(), "state": self.original.state_hash}
        taken = recipe.calibration.model_dump() | {"sensitivity": self.sensitivity, "similarity": self.similarity}
        drawn = {**recipe.compress.model_dump(), "bits": (recipe.plan.weight_bits, recipe.plan.activation_bits, recipe.plan.levels)}
        stages = [
            Stage("calibrate", "statistics.safetensors", (), [model, taken], lambda out: self._calibrate(self.original, out, "before"))
        ]
        source = "statistics.safetensors"
        if self.quantized_statistics:
            source = "statistics.quantized.safetensors"
            stages += [
                Stage("quantize", "quantized", (), [model, drawn, taken["images"]], self._compress_unfrozen),
                Stage(
                    "calibrate quantized", source, ("quantized",), taken,
                    lambda out: self._calibrate(folder / "quantized", out, recipe.calibration.observed),
                ),
            ]  # fmt: skip
        stages += [
            Stage(
                "plan", "plan.yaml", (source,), recipe.plan.options(),
                lambda out: plan(folder / source, **recipe.plan.options(), out=out),
            ),
            Stage(
                "compress", "artifact", (source, "plan.yaml"), [model, drawn, taken["images"]],
                lambda out: self._compress(folder / "plan.yaml", source, out),
            ),
        ]  # fmt: skip
        if recipe.evaluation is not None:
            stages.append(Stage("evaluate", "results.json", ("artifact",), recipe.evaluation.model_dump(), self._evaluate))
        return stages


def run(
    recipe: str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    quick: bool = False,
    weights: str | Path | None = None,
    calibration: str | Path | None = None,
    images: str | Path | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> Path:
    """Go from a recipe to a report; every stage's file is left in the folder `out`, which is returned.

    `weights`, `calibration` and `images` (evaluation) replace the recipe's paths; `weights` may be a folder that holds
    NAME/model.safetensors or NAME.safetensors for the model's name. `quick` takes the recipe's quick variant. With `resume`, stages whose
    outputs are already there and were made from the same inputs are not done again. A list of recipes runs one after the
    other, each in its own folder below `out`; those that cannot be run are named at the end.
    Raises VitfrostError as the stages do, and when `out` holds something and `resume` is not set; a resumed run with a
    changed recipe redoes what the change touches. `device`: where statistics are taken and models are measured ("cpu" or "cuda");
    what is compressed is compressed on the CPU, so it has the same bits.
    """
    find_device(device)
    folder = Path(out)
    several = load_recipe_list(recipe)
    if several is not None:
        refuse_existing(folder, overwrite=True)
        return _run_several(several, folder, resume, quick, weights, calibration, images, device, progress)
    loaded = load_recipe(recipe, quick=quick)
    if weights is not None:
        found = str(weights) if str(weights) == "random" else find_weights(Path(weights), loaded.model.name)
        loaded.model = replace(loaded.model, weights=found)
    if calibration is not None:
        loaded.calibration.images = str(Path(calibration).resolve())
    if images is not None and loaded.evaluation is not None:
        loaded.evaluation.images = str(Path(images).resolve())
    refuse_existing_run(folder, resume, RECIPE_FILE, "run")
    started = SingleRun(loaded, folder, progress, device)
    if not resume:
        started.check_images()
    if loaded.grid is None:
        stages, clock = started.stages(), None
    else:
        grid = GridRun(loaded, folder, started.original, progress, device)
        stages, clock = grid.stages(), grid.clock
    save_recipe(loaded, folder / RECIPE_FILE)
    made = tuple(stage.output for stage in stages)
    run_stages([*stages, Stage("report", REPORT_FILE, made, {}, lambda path: report(folder, path))], folder, clock)
    return folder


def _run_several(
    recipes: RecipeList,
    folder: Path,
    resume: bool,
    quick: bool,
    weights: str | Path | None,
    calibration: str | Path | None,
    images: str | Path | None,
    device: str,
    progress: bool,
) -> Path:
    """Run recipes one after the other and make one page of them; name those that could not be run at the end."""
    failed: dict[str, str] = {}
    made: dict[str, Path] = {}
    for number, path in enumerate(recipes.paths, 1):
        target = folder / path.stem
        say(f"({number}/{len(recipes.paths)}) {path.name} -> {target}")
        try:
            made[path.stem] = run(
                path, target, resume=resume and target.is_dir(), quick=quick, weights=weights, calibration=calibration, images=images,
                device=device, progress=progress,
            )  # fmt: skip
        except VitfrostError as error:
            say(f"({number}/{len(recipes.paths)}) {path.name} cannot be run: {error}")
            failed[path.stem] = str(error)
    if made:
        report_several(made, folder / REPORT_FILE)
    if failed:
        first = next(iter(failed))
        raise VitfrostError(
            f"{len(failed)} of {len(recipes.paths)} recipes did not run ({', '.join(failed)}); the first, {first}: {failed[first]}; "
            f"mend it and add --resume"
        )
    return folder
