"""The folder of a grid run, read: recipe, outcomes, points, and what the figures are drawn from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ..errors import VitfrostError
from ..evaluation.cost import macs_by_part
from ..evaluation.results import Row
from ..reporting.parts import Anatomy
from ..reporting.places import RECIPE
from ..statistics.record import Statistics
from ..vit.families import find_sites, has_class_token
from ..vit.load import create_model
from .outcome_files import OUTCOMES, Outcome, load_outcomes
from .picture import MappedPicture, load_picture
from .recipe import StudyRecipe, load_study
from .roles import Line, Roles, assign, lines_of
from .summary import Point, points
from .variants import UNFROZEN, Variant, expand

PICTURE, STATISTICS_FOLDER = "picture.safetensors", "statistics"


@dataclass(frozen=True, eq=False)
class GridParts:
    """A grid run as far as it is measured. `outcomes` holds the original's (variant None) and those of `variants`."""

    folder: Path
    recipe: StudyRecipe
    variants: list[Variant]
    outcomes: list[Outcome]

    @cached_property
    def original(self) -> Outcome | None:
        """The original model's outcome."""
        return next((outcome for outcome in self.outcomes if outcome.variant is None), None)

    @property
    def measured(self) -> list[Outcome]:
        """Outcomes of variants."""
        return [outcome for outcome in self.outcomes if outcome.variant is not None]

    @cached_property
    def all_points(self) -> list[Point]:
        """Points of everything that can be compared with its unfrozen model. Blocks are put together: options tell points apart."""
        unfrozen = {
            outcome.variant.source.model
            for outcome in self.measured
            if outcome.variant and outcome.variant.block == UNFROZEN and outcome.correct is not None
        }
        if self.original is not None and self.original.correct is not None:
            unfrozen.add("fp32")
        usable = [one for one in self.outcomes if one.variant is None or one.variant.source.model in unfrozen]
        return points(_without_block(one) for one in usable)

    @cached_property
    def waiting(self) -> int:
        """Measured variants that cannot be compared yet, because their unfrozen model is not measured."""
        compared = {outcome.variant.key for point in self.all_points for outcome in point.outcomes if outcome.variant}
        return sum(one.correct is not None and one.variant is not None and one.variant.key not in compared for one in self.outcomes)

    @cached_property
    def lines(self) -> list[Line]:
        """Every plan of the grid with its shares, measured or not."""
        return lines_of(self.variants, self.all_points)

    @cached_property
    def roles(self) -> Roles:
        """Which lines are the paper's figures, and which are compared beside them."""
        return assign(self.lines)

    def unfrozen(self, weight_bits: int, activation_bits: int, levels: str) -> Point | None:
        """The unfrozen quantized model over its seeds."""
        wanted = {"weight_bits": weight_bits, "activation_bits": activation_bits, "levels": levels}
        found = [point for point in self.all_points if point.block == UNFROZEN]
        return next((point for point in found if wanted.items() <= point.options.items()), None)

    @property
    def missing(self) -> list[Variant]:
        """Variants that are not measured yet."""
        known = {outcome.variant.key for outcome in self.measured if outcome.variant}
        return [variant for variant in self.variants if variant.key not in known]

    @cached_property
    def statistics(self) -> Statistics | None:
        """Statistics of the original, over the most images."""
        return self._statistics("fp32")

    @cached_property
    def quantized(self) -> tuple[str, Statistics] | None:
        """Name and statistics of a quantized model: of the paper's bits, of as many images as the original's, of the lowest seed."""
        found = self._statistics_file("quantized")
        return None if found is None else (found.stem.rpartition("-")[0], self._read(found))

    def _statistics(self, kind: str) -> Statistics | None:
        found = self._statistics_file(kind)
        return None if found is None else self._read(found)

    def _statistics_file(self, kind: str) -> Path | None:
        sources = {variant.source for variant in self.variants if variant.freeze > 0 and variant.source.statistics == kind}
        bits, images = self.roles.bits, self.statistics.header.images if kind == "quantized" and self.statistics else 0
        ordered = sorted(
            sources,
            key=lambda one: ((one.weight_bits, one.activation_bits) != bits, one.images != images, -one.images, one.model, one.seed),
        )
        paths = (self.folder / STATISTICS_FOLDER / f"{source.observed}.safetensors" for source in ordered)
        return next((path for path in paths if path.is_file()), None)

    def _read(self, path: Path) -> Statistics:
        statistics = Statistics.load(path)
        expected = self.state_hash
        if expected is not None and statistics.header.model.state_hash != expected:
            raise self._mixed(path.name)
        return statistics

    @cached_property
    def picture(self) -> MappedPicture | None:
        """The picture with its maps."""
        if not (self.folder / PICTURE).is_file():
            return None
        found = load_picture(self.folder / PICTURE)
        if self.state_hash is not None and found.header.state_hash != self.state_hash:
            raise self._mixed(PICTURE)
        return found

    def _mixed(self, name: str) -> VitfrostError:
        return VitfrostError(f"{self.folder} mixes runs: {name} is of other weights than the outcomes; remove it and resume the run")

    @property
    def some_row(self) -> Row | None:
        """The first row that there is."""
        return self.outcomes[0].row if self.outcomes else None

    @property
    def state_hash(self) -> str | None:
        """Hash of the model's weights, from the rows."""
        return self.some_row.state_hash if self.some_row else None

    @cached_property
    def anatomy(self) -> Anatomy:
        """Sites and costs of the model, built anew by timm with untrained weights.

        Raises VitfrostError for a name that timm does not know, and for statistics that do not fit the sites.
        """
        kept = [one for one in (self.statistics, self.quantized[1] if self.quantized else None) if one is not None]
        header = kept[0].header.model if kept else None
        size = header.image_size if header else self.recipe.model.image_size
        part = self.recipe.model
        options = part.options if part.classes is None else {**part.options, "num_classes": part.classes}
        model = create_model(header.name if header else part.name, size, **options)
        sites = find_sites(model)
        for one in kept:
            assert header is not None
            one.check_fits(header, sites.signature())
        return Anatomy(sites, has_class_token(model), macs_by_part(model, sites))


def _without_block(outcome: Outcome) -> Outcome:
    if outcome.variant is None or outcome.variant.block == UNFROZEN:
        return outcome
    return replace(outcome, variant=replace(outcome.variant, block=""))


def read_grid(folder: Path) -> GridParts:
    """What a grid run has left in its folder.

    Raises VitfrostError for the folder of another run or of none, for a damaged recipe or outcome, and for outcomes of different weights.
    """
    if not (folder / RECIPE).is_file():
        raise VitfrostError(f"{folder} holds no study; python -m vitfrost.studies run makes one from a recipe with a grid")
    recipe = load_study(folder / RECIPE)
    variants = expand(recipe)
    outcomes = load_outcomes(folder / OUTCOMES, variants)
    _check_weights(folder, outcomes)
    return GridParts(folder, recipe, variants, outcomes)


def _check_weights(folder: Path, outcomes: Iterable[Outcome]) -> None:
    hashes = {outcome.row.state_hash for outcome in outcomes}
    if len(hashes) > 1:
        shown = " and ".join(sorted(digest[:12] for digest in hashes)[:2])
        raise VitfrostError(f"{folder} mixes runs: its outcomes are of the weights {shown}; run the grid anew")
