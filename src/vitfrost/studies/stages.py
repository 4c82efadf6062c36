"""The stages of a recipe with a grid: statistics, quantized models, outcomes. What variants share is one stage.

For every calibration seed the model is quantized once and its maps are measured once; all variants of that model are then
measured in passes over the same decoded images. Outcomes are saved after every pass, so a killed run loses at most one pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path

from ..configs import Evaluate
from ..distributed import contained
from ..errors import VitfrostError
from ..evaluation.evaluate import find_images
from ..evaluation.results import Results, save_results
from ..images.source import ImageSet, open_images
from ..keyed import file_key, hash_of
from ..model import Model
from ..passes.quantizers.repq import IMAGES
from ..plans.criteria import CRITERIA
from ..progress import TimeLeft, say
from ..runs.run import RecipeRun
from ..runs.stages import Stage
from ..runtime.runtimes import reason_of
from ..statistics.record import Statistics
from .grid_page import report_study
from .measure import Evaluation, measure_variants
from .outcome_files import OUTCOMES, Outcome, load_outcome, load_outcomes, outcome_path
from .picture import take_picture
from .recipe import StudyRecipe
from .variants import Source, Variant, expand

PICTURE, RESULTS = "picture.safetensors", "results.json"
VARIANTS_PER_PASS = 8
SENSITIVITY_WORK, CALIBRATION_WORK = 3.0, 1.1
"""Forward passes that an image of the statistics is worth: with gradients, and without."""


class GridRun(RecipeRun[StudyRecipe]):
    """The folder of a grid, its variants, and the stages that they need."""

    clock: TimeLeft

    def __init__(self, recipe: StudyRecipe, folder: Path, progress: bool, device: str = "cpu"):
        super().__init__(recipe, folder, progress, device)
        self.variants = expand(recipe)
        self.clock = TimeLeft()

    def check_images(self) -> None:
        """As for a run; a study's figures are of classes."""
        if self.original.outputs != "classes":
            raise VitfrostError(f"a study compares classifiers, and {self.original.name} gives features; measure it by vitfrost run")
        super().check_images()

    def report(self, out: Path) -> object:
        return report_study(self.folder, out)

    @cached_property
    def image_set(self) -> ImageSet:
        """The images on which all variants are measured."""
        part = self.recipe.evaluation
        return find_images(part.images, part.labels, self.original.class_space, has_reference=False).subset(part.limit, part.seed)

    @cached_property
    def available(self) -> int:
        """How many images there are for statistics."""
        return len(open_images(self.recipe.calibration.images))

    @cached_property
    def evaluation(self) -> Evaluation:
        """What all variants are measured on."""
        return Evaluation(self.original, self.image_set, Evaluate().batch_size, self.folder / OUTCOMES, self.progress)

    def stages(self) -> list[Stage]:
        part = self.recipe.evaluation
        stages = [
            Stage("picture", PICTURE, (), [self.model, part], lambda out: take_picture(self.original, part.images, out, seed=part.seed))
        ]
        observed: set[str] = set()
        for name, members in self._models().items():
            source = members[0].source
            if source.quantizes:
                stages.append(self._quantize(source))
            for each in sorted({member.source for member in members if member.freeze > 0}):
                if each.observed not in observed:
                    observed.add(each.observed)
                    stages.append(self._calibrate(each))
            stages.append(self._measure(name, members))
        made = tuple(stage.output for stage in stages if stage.output.startswith("results/"))
        stages.append(Stage("results", RESULTS, made, [variant.key for variant in self.variants], self._collect))
        self.clock.left = sum(stage.work for stage in stages)
        return stages

    def _models(self) -> dict[str, list[Variant]]:
        """Variants by the model that they are made from; the original's come first."""
        found: dict[str, list[Variant]] = {"fp32": []}
        for variant in self.variants:
            found.setdefault(variant.source.model, []).append(variant)
        return {name: members for name, members in found.items() if members}

    def _quantize(self, source: Source) -> Stage:
        count = self.recipe.compress.calibration_images or IMAGES
        settings = [self.model, self.compression_images, count, source.model]

        def make(out: Path) -> None:
            self.quantize(out, source.seed, weights=source.weight_bits, activations=source.activation_bits, levels=source.levels)

        return Stage(f"quantize {source.model}", f"quantized/{source.model}", (), settings, make, 2.0 * count)

    def _calibrate(self, source: Source) -> Stage:
        part = self.recipe.calibration
        quantized = source.statistics == "quantized"
        same = [variant for variant in self.variants if variant.source.observed == source.observed]
        sensitivity = part.sensitivity or any(CRITERIA[variant.plan["by"]].needs_sensitivity for variant in same)
        model: Model | Path = self.folder / "quantized" / source.model if quantized else self.original

        def make(out: Path) -> None:
            self.calibrate(model, out, part.observed if quantized else "before", limit=source.images, sensitivity=sensitivity)

        inputs = (f"quantized/{source.model}",) if quantized else ()
        settings = [self.model, part.images, part.seed, part.observed, source.images, sensitivity]
        work = min(source.images, self.available) * (SENSITIVITY_WORK if sensitivity else CALIBRATION_WORK)
        return Stage(f"calibrate {source.observed}", _statistics_file(source), inputs, settings, make, work)

    def _measure(self, name: str, members: Sequence[Variant]) -> Stage:
        inputs = (f"quantized/{name}",) if members[0].source.quantizes else ()
        needed = tuple(sorted({_statistics_file(variant.source) for variant in members if variant.freeze > 0}))
        settings = [self.model, self.recipe.evaluation, [variant.key for variant in members]]
        work = float(len(members) * len(self.image_set))
        make = partial(self._make_outcomes, name, members)
        return Stage(f"measure {name}", f"results/{name}.json", inputs, settings, make, work, needed)

    def _make_outcomes(self, name: str, members: Sequence[Variant], out: Path) -> None:
        images_hash = self._original_outcome().row.images_hash
        open_members = []
        failed: dict[str, str] = {}
        for variant in members:
            if variant.freeze > 0 and not (self.folder / _statistics_file(variant.source)).exists():
                failed[variant.title] = f"its statistics {_statistics_file(variant.source)} could not be made"
            elif self._is_measured(variant, images_hash):
                self.clock.skipped(len(self.image_set))
            else:
                open_members.append(variant)
        quantizes = members[0].source.quantizes
        # the original stays as it is
        base = self.open(self.folder / "quantized" / name) if quantizes else copy.deepcopy(self.original)
        statistics: dict[str, Statistics] = {}
        measured = len(members) - len(open_members) - len(failed)
        for start in range(0, len(open_members), VARIANTS_PER_PASS):
            group = open_members[start : start + VARIANTS_PER_PASS]
            needed = {_statistics_file(variant.source) for variant in group if variant.freeze > 0}
            statistics = {file: statistics.get(file) or Statistics.load(self.folder / file) for file in sorted(needed)}
            chosen = [(variant, statistics.get(_statistics_file(variant.source)) if variant.freeze > 0 else None) for variant in group]
            text = f"measure {name}, variants {measured + 1} to {measured + len(group)} of {len(members)}{self.clock.text()}"
            if self.progress:
                say(text)
            contexts = {variant.key: self._context(variant) for variant in group}
            failed |= self._measured(base, chosen, contexts, text)
            measured += len(group)
            self.clock.done(len(group) * len(self.image_set))
        if failed:
            first = next(iter(failed))
            raise VitfrostError(f"{len(failed)} of {len(members)} variants cannot be measured; the first, {first}: {failed[first]}")
        rows = [outcome.row for outcome in load_outcomes(self.folder / OUTCOMES, members) if outcome.variant is not None]
        save_results(Results(rows=rows), out)

    def _measured(
        self, base: Model, chosen: Sequence[tuple[Variant, Statistics | None]], contexts: dict[str, str], text: str
    ) -> dict[str, str]:
        """Measure variants together, or where that fails one by one; what failed, by title."""
        try:
            measure_variants(self.evaluation, base, chosen, contexts, text)
        except contained() as error:
            if len(chosen) == 1:
                return {chosen[0][0].title: reason_of(error)}
            failed = [self._measured(base, [one], contexts, f"{text}, {one[0].title}") for one in chosen]
            return {title: why for each in failed for title, why in each.items()}
        return {}

    def _original_outcome(self) -> Outcome:
        """The original's outcome, measured where that was not done yet."""
        path = outcome_path(self.folder / OUTCOMES, None)
        context = self._context(None)
        if path.is_file() and (found := _readable(path)) is not None and found.context == context:
            return found
        return self.evaluation.measure_original(context, "measure the original")

    def _is_measured(self, variant: Variant, images_hash: str) -> bool:
        path = outcome_path(self.folder / OUTCOMES, variant)
        found = _readable(path) if path.is_file() else None
        return found is not None and found.context == self._context(variant) and found.row.images_hash == images_hash

    def _context(self, variant: Variant | None) -> str:
        """What an outcome depends on beside its variant: model, images, and the bytes it is made from."""
        files: list[str] = []
        if variant is not None and variant.source.quantizes:
            files.append(self._file_key(f"quantized/{variant.source.model}"))
        if variant is not None and variant.freeze > 0:
            files.append(self._file_key(_statistics_file(variant.source)))
        return hash_of(self.model, self.recipe.evaluation, files)

    def _file_key(self, name: str) -> str:
        path = self.folder / name
        stamp = (name, (path / "config.json" if path.is_dir() else path).stat().st_mtime_ns)
        if stamp not in self._keys:
            self._keys[stamp] = file_key(path)
        return self._keys[stamp]

    @cached_property
    def _keys(self) -> dict[tuple[str, int], str]:
        return {}

    def _collect(self, out: Path) -> None:
        """All rows in one file: the original's, then the variants' in the order of the grid."""
        save_results(Results(rows=[outcome.row for outcome in self.outcomes()]), out)

    def outcomes(self, variants: Iterable[Variant] | None = None) -> list[Outcome]:
        """What has been measured so far."""
        return load_outcomes(self.folder / OUTCOMES, self.variants if variants is None else variants)


def _statistics_file(source: Source) -> str:
    return f"statistics/{source.observed}.safetensors"


def _readable(path: Path) -> Outcome | None:
    """The outcome, or None for one that is damaged: it is measured again."""
    try:
        return load_outcome(path)
    except VitfrostError:
        return None
