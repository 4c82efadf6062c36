"""The verb `run`: from a recipe to a report, stage by stage; and what the runs of all kinds of recipes have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..budget.history import SUFFIX, OtherSearch
from ..budget.search import search
from ..configs import Bench, Compress, Evaluate, Export, Quantize, Run, Search
from ..configs.base import parsed, plain
from ..configs.methods import REPQ
from ..deploy.export import export
from ..errors import VitfrostError
from ..evaluation.evaluate import evaluate_many, find_images
from ..evaluation.results import Results, save_results
from ..files import refuse_existing_run
from ..images.source import open_images
from ..model import Model, open_part
from ..passes.compress import compress
from ..passes.quantizers.repq import IMAGES
from ..plans.choose import plan, unfrozen_plan
from ..plans.criteria import CRITERIA
from ..progress import TimeLeft
from ..reporting.build import REPORT, report
from ..runtime.folder import EXPORT_FILE
from ..runtime.runtimes import FORMATS, import_runtime
from ..statistics.calibrate import calibrate
from ..timing.bench import RESULT_FILE, bench
from ..vit.families import find_sites
from ..vit.load import find_device, find_weights
from .recipe import Recipe, load_recipe, save_recipe
from .stages import Stage, run_stages

RECIPE_FILE, PLAN_FILE, DEPLOY = "recipe.yaml", "plan.yaml", "deploy"
R = TypeVar("R", bound=Recipe)


class RecipeRun(ABC, Generic[R]):
    """A run's folder and its recipe. Subclasses say which stages the recipe asks for, and how the page is made of their files."""

    clock: TimeLeft | None = None

    def __init__(self, recipe: R, folder: Path, progress: bool, device: str = "cpu"):
        self.recipe = recipe
        self.folder = folder
        self.progress = progress
        self.device = device

    @abstractmethod
    def stages(self) -> list[Stage]:
        """The stages in order, without the report."""

    @abstractmethod
    def report(self, out: Path) -> object:
        """Write the page of the folder."""

    def run(self, resume: bool) -> Path:
        """Do all stages and the report; return the folder. Raises VitfrostError as the stages do, and for a folder that is taken."""
        refuse_existing_run(self.folder, resume, RECIPE_FILE, "run")
        if not resume:
            self.check_images()
        stages = self.stages()
        save_recipe(self.recipe, self.folder / RECIPE_FILE)
        made = tuple(stage.output for stage in stages)
        run_stages([*stages, Stage("report", REPORT, (), {}, self.report, optional=made)], self.folder, self.clock)
        return self.folder

    @cached_property
    def original(self) -> Model:
        """The model to compress, loaded once."""
        return open_part(self.recipe.model, self.device)

    def open(self, model: Model | Path) -> Model:
        """A model, or the artifact in a folder, where the run measures."""
        return (model if isinstance(model, Model) else Model.open(model)).to(self.device)

    @property
    def model(self) -> dict[str, Any]:
        """What says which model it is, for the keys of stages."""
        return {**self.recipe.model.settings(), "state": self.original.state_hash}

    @property
    def compression_images(self) -> str:
        """The folder that the images of quantizing, fitting and repairing are drawn from."""
        return self.recipe.compress.images or self.recipe.calibration.images

    def check_images(self) -> None:
        """Find out before the work that every folder of images and every label is there. Raises VitfrostError as the stages do."""
        for folder in {self.recipe.calibration.images, self.compression_images}:
            option = "Run.calibration" if folder == self.recipe.calibration.images else "compress.images in the recipe"
            _refuse_missing(folder, option)
            open_images(folder)
        part = self.recipe.evaluation
        if part is not None:
            _refuse_missing(part.images, "Run.images")
            classes = self.original.class_space if self.original.outputs == "classes" else None
            find_images(part.images, part.labels, classes, has_reference=True)

    def calibrate(self, model: Model | Path, out: Path, maps: str, **options: Any) -> None:
        """Statistics of a model over the recipe's calibration images."""
        part = self.recipe.calibration
        calibrate(self.open(model), part.images, part.config(maps=maps, **options), out=out, progress=self.progress)

    def compress(self, out: Path, chosen: Any, config: Compress, **options: Any) -> None:
        """The original compressed by a plan, with the recipe's images."""
        compress(
            self.original, chosen, images=self.compression_images, config=config, out=out, overwrite=True, progress=self.progress,
            recipe=self.recipe.without_paths(), **options,
        )  # fmt: skip

    def quantize(self, out: Path, seed: int, **bits: Any) -> None:
        """The original quantized by RepQ-ViT, with nothing frozen; `bits`: fields of Quantize."""
        settings = parsed(Quantize, bits)
        chosen = unfrozen_plan(self.original.identity, find_sites(self.original.module).signature(), settings)
        self.compress(out, chosen, Compress(seed, self.recipe.compress.calibration_images))


def _refuse_missing(folder: str, option: str) -> None:
    """Raise VitfrostError for images that are not there, which names what gives others."""
    if not Path(folder).exists():
        raise VitfrostError(f"no image folder {folder}; name an existing folder with {option}")


class SingleRun(RecipeRun[Recipe]):
    """One plan: statistics, plan, artifact, and as far as the recipe asks for them an exported folder, results and times."""

    def check_images(self) -> None:
        """Also find out whether the packages of an export are there."""
        if self.recipe.export is not None:
            for package in FORMATS[self.recipe.export.format].needs(self.recipe.export.precision):
                import_runtime(package, "export")
        super().check_images()

    def report(self, out: Path) -> object:
        return report(self.folder, out)

    @property
    def quantized_statistics(self) -> bool:
        """Whether the plan is made from statistics of the quantized model."""
        return self.recipe.calibration.precision == "quantized"

    @property
    def sensitivity(self) -> bool:
        """Whether the statistics need gradients."""
        return self.recipe.calibration.sensitivity or CRITERIA[self.recipe.plan.by].needs_sensitivity

    @property
    def similarity(self) -> bool:
        """Whether the statistics need the heads' similarity."""
        return self.recipe.calibration.similarity or self.recipe.plan.similarity

    def _calibrate(self, model: Model | Path, out: Path, maps: str) -> None:
        self.calibrate(model, out, maps, sensitivity=self.sensitivity, similarity=self.similarity)

    def _compress(self, source: str, out: Path) -> None:
        part = self.recipe.compress
        repair = self.recipe.repair or part.repair_config()
        self.compress(out, self.folder / PLAN_FILE, part.config(), statistics=self.folder / source, repair=repair)

    def _search(self, budget: Search, source: str, out: Path) -> None:
        """The plan under a budget; what an earlier search of the same model and images measured is not measured again."""
        record = out.with_suffix(SUFFIX)
        how = [] if self.recipe.windowed is None else [self.recipe.windowed]
        options: dict[str, Any] = {"statistics": self.folder / source, "record": record, "out": out, "progress": self.progress}
        try:
            search(self.original, self.compression_images, budget, *how, resume=record.exists(), **options)
        except OtherSearch:
            record.unlink()
            search(self.original, self.compression_images, budget, *how, **options)

    def _export(self, config: Export, out: Path) -> None:
        export(self.folder / "artifact", config, images=self.compression_images, out=out.parent, overwrite=True)

    def _bench(self, config: Bench, out: Path) -> None:
        """The exported folder, or the artifact, beside the unmodified model on the runtimes of this machine."""
        made = self.folder / ("artifact" if self.recipe.export is None else DEPLOY)
        bench(
            [self.original, made], config, images=self.compression_images, out=out.parent, resume=out.parent.exists(),
            progress=self.progress,
        )  # fmt: skip

    def _quantize(self, out: Path) -> None:
        part = self.recipe.plan
        bits = {"weights": part.weight_bits, "activations": part.activation_bits, "levels": part.levels}
        self.quantize(out, self.recipe.compress.seed, **bits, layers=part.layer_bits, heads=part.head_bits)

    def _evaluate(self, out: Path) -> None:
        part = self.recipe.evaluation
        assert part is not None
        models: dict[str, Model] = {"original": self.original}
        if self.quantized_statistics:
            models["quantized"] = self.open(self.folder / "quantized")
        models["compressed"] = self.open(self.folder / "artifact")
        if self.recipe.export is not None:
            models["exported"] = Model.open(self.folder / DEPLOY)
        rows = evaluate_many(
            models,
            part.images,
            labels=part.labels,
            reference="original",
            config=Evaluate(limit=part.limit, seed=part.seed),
            progress=self.progress,
        )
        save_results(Results(rows=rows), out)

    def stages(self) -> list[Stage]:
        recipe, folder = self.recipe, self.folder
        taken = recipe.calibration.model_dump() | {"sensitivity": self.sensitivity, "similarity": self.similarity}
        by_default = IMAGES if recipe.plan.quantizer == REPQ else None
        others = (*(recipe.plan.layer_bits or ()), *(recipe.plan.head_bits or ()))
        bits = (recipe.plan.weight_bits, recipe.plan.activation_bits, recipe.plan.levels, *others)
        drawn = {**recipe.compress.model_dump(), "bits": bits}
        drawn["calibration_images"] = recipe.compress.calibration_images or by_default
        stages = [
            Stage("calibrate", "statistics.safetensors", (), [self.model, taken], lambda out: self._calibrate(self.original, out, "before"))
        ]
        source = "statistics.safetensors"
        if self.quantized_statistics:
            source = "statistics.quantized.safetensors"
            stages += [
                Stage("quantize", "quantized", (), [self.model, drawn, taken["images"]], self._quantize),
                Stage(
                    "calibrate quantized", source, ("quantized",), taken,
                    lambda out: self._calibrate(folder / "quantized", out, recipe.calibration.observed),
                ),
            ]  # fmt: skip
        if (budget := recipe.search) is None:
            plan_made_by = Stage(
                "plan", PLAN_FILE, (source,), recipe.plan.options(), lambda out: plan(folder / source, *recipe.plan.methods(), out=out)
            )
        else:
            how = plain(budget) if recipe.windowed is None else [plain(budget), plain(recipe.windowed)]
            plan_made_by = Stage("search", PLAN_FILE, (source,), how, lambda out: self._search(budget, source, out))
        repair = recipe.repair
        stages += [
            plan_made_by,
            Stage(
                "compress" if repair is None else "compress and repair", "artifact", (source, PLAN_FILE),
                [self.model, drawn, taken["images"], *([] if repair is None else [plain(repair)])],
                lambda out: self._compress(source, out),
            ),
        ]  # fmt: skip
        return stages + self._stages_after("artifact")

    def _stages_after(self, made: str) -> list[Stage]:
        """Export, evaluation and bench, those that the recipe asks for."""
        recipe, stages = self.recipe, []
        if (config := recipe.export) is not None:
            made = f"{DEPLOY}/{EXPORT_FILE}"
            settings = [plain(config), self.compression_images]
            stages.append(Stage("export", made, ("artifact",), settings, lambda out: self._export(config, out)))
        if recipe.evaluation is not None:
            read = tuple(dict.fromkeys(("artifact", made)))
            stages.append(Stage("evaluate", "results.json", read, recipe.evaluation.model_dump(), self._evaluate))
        if (timing := recipe.bench) is not None:
            settings = [self.model, plain(timing)]
            stages.append(Stage("bench", f"bench/{RESULT_FILE}", (made,), settings, lambda out: self._bench(timing, out)))
        return stages


def run(
    recipe: str | Path,
    out: str | Path,
    config: Run = Run(),
    *,
    resume: bool = False,
    device: str = "cpu",
    progress: bool = True,
) -> Path:
    """Go from a recipe to a report; every stage's file is left in the folder `out`, which is returned.

    `config`: what takes the place of the recipe's paths, and its quick variant; a folder of weights holds NAME/model.safetensors or
    NAME.safetensors for the model's name. With `resume`, stages whose outputs are already there and were made from the same inputs are
    not done again.
    Raises VitfrostError as the stages do, for a study (see `vitfrost.studies`), and when `out` holds something and `resume` is not set;
    a resumed run with a changed recipe redoes what the change touches. `device`: where statistics are taken and models are measured
    ("cpu" or "cuda"); what is compressed is compressed on the CPU, so it has the same bits.
    """
    find_device(device)
    loaded = with_paths(load_recipe(recipe, quick=config.quick), config)
    return SingleRun(loaded, Path(out), progress, device).run(resume)


def with_paths(recipe: R, config: Run) -> R:
    """The recipe with other weights (a file, or a folder as in `run`), calibration images and evaluation images where they are given.

    Raises VitfrostError for evaluation images where the recipe evaluates nothing, and as `find_weights` does.
    """
    recipe = recipe.model_copy(deep=True)
    if config.weights is not None:
        found = str(config.weights) if str(config.weights) == "random" else find_weights(Path(config.weights), recipe.model.name)
        recipe.model = replace(recipe.model, weights=found)
    if config.calibration is not None:
        recipe.calibration.images = str(Path(config.calibration).resolve())
    if config.images is not None:
        if recipe.evaluation is None:
            raise VitfrostError(
                f"Run.images is {config.images}, but the recipe evaluates nothing; give it a part evaluation, or leave it out"
            )
        recipe.evaluation.images = str(Path(config.images).resolve())
    return recipe
