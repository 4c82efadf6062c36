"""What a person writes for `python -m vitfrost.studies run`: a recipe with a grid of plans, or a list of such recipes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from ..errors import VitfrostError
from ..runs.recipe import LIST_FORMAT, EvaluationPart, Part, PlanPart, Recipe, is_study, parse_recipe, read_recipe
from ..strict import Strict, describe

STATISTICS_AXES: dict[str, Callable[[Any], bool]] = {
    "statistics": lambda value: value in ("fp32", "quantized"),
    "statistics_images": lambda value: type(value) is int and value >= 1,
}
FIXED = {"seed", "windowed", "hallucinate", "compact", "unit", "constants", "window", "tolerance"}  # options of a plan that no block varies


class BlockPart(Part):
    """Variants of a grid that belong together: every combination of the listed choices, over the grid's seeds.

    `choices` holds, for each option of `plan` and for `statistics` ("fp32": of the original, "quantized": of the quantized
    model) and `statistics_images`, the values it takes; in the file they stand beside `name`, a single value or a list.
    """

    name: str
    seeds: list[Annotated[int, Field(ge=0)]] | None = Field(None, min_length=1)
    choices: dict[str, list[Any]]

    @model_validator(mode="before")
    @classmethod
    def _gather_choices(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "choices" in data:
            return data
        known = {*PlanPart.model_fields, *STATISTICS_AXES} - FIXED
        gathered: dict[str, list[Any]] = {}
        for key, value in data.items():
            if key in ("name", "seeds"):
                continue
            if key not in known:
                raise ValueError(f"{key} is not known here; a block has name, seeds, {', '.join(sorted(known))}")
            several = isinstance(value, list) and (key != "protect" or any(isinstance(item, list) for item in value) or not value)
            gathered[key] = value if several and value else [value]
        return {key: data[key] for key in ("name", "seeds") if key in data} | {"choices": gathered}

    @model_validator(mode="after")
    def _choices_are_possible(self) -> BlockPart:
        for key, values in self.choices.items():
            if len(values) != len({str(value) for value in values}):
                raise ValueError(f"{key} names a value twice")
            for value in values:
                if key in STATISTICS_AXES:
                    if not STATISTICS_AXES[key](value):
                        raise ValueError(f"{key} is {value!r}; it is 'fp32' or 'quantized', statistics_images a number from 1 on")
                    continue
                try:
                    PlanPart.model_validate({key: value})
                except ValidationError as error:
                    raise ValueError(describe(error)) from error
        return self


class GridPart(Part):
    """Many plans on one model: blocks of variants, each over the calibration seeds. The `plan` part holds their defaults."""

    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1)
    blocks: list[BlockPart] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> GridPart:
        names = [block.name for block in self.blocks]
        if len(names) != len(set(names)):
            raise ValueError(f"blocks have names that occur twice: {', '.join(sorted({name for name in names if names.count(name) > 1}))}")
        return self


class PublishedPart(Part):
    """Numbers of a paper, top-1 in percent, that the report shows beside ours. `frozen` is by share of frozen weights."""

    source: str
    images: str
    full_precision: float | None = None
    quantized: float | None = None
    frozen: dict[float, float] = Field(default_factory=dict)


class StudyRecipe(Recipe):
    """Many plans on one model: the `grid` names them, `published` holds a paper's numbers for the page."""

    evaluation: EvaluationPart
    grid: GridPart
    published: PublishedPart | None = None

    @model_validator(mode="after")
    def _plans_differ_in_frozen_entries_only(self) -> StudyRecipe:
        if self.plan.has_structure:
            raise ValueError(
                "grid has variants of frozen maps; leave hallucinate, compact and whole heads out of its plan, or run without a grid"
            )
        if self.plan.seed:
            raise ValueError("plan.seed has no effect in a grid, which has seeds of its own; write grid.seeds")
        if self.compress.repair is not None:
            raise ValueError("grid has variants that are not repaired; leave compress.repair out, or repair without a grid")
        return self


def load_study(path: str | Path, *, quick: bool = False) -> StudyRecipe:
    """Read a recipe with a grid. Raises VitfrostError as `load_recipe` does, and for a recipe without a grid."""
    data = read_recipe(path)
    if isinstance(data, dict) and not is_study(data):
        raise VitfrostError(f"{path} is no study, it has no grid; use vitfrost run or vitfrost report")
    return parse_recipe(StudyRecipe, data, Path(path), quick=quick)


class _Names(Strict):
    kind: str
    version: Literal[1]
    recipes: list[str] = Field(min_length=1)


def load_study_list(path: str | Path) -> list[Path] | None:
    """The recipes that a list (`kind: vitfrost recipes`, `recipes:` names files beside it) names; None for a file of another kind.

    Every recipe is read, so that a mistake in the last one is found before the first one runs. Raises VitfrostError as `load_study`.
    """
    path, data = Path(path), read_recipe(path)
    if not isinstance(data, dict) or data.get("kind") != LIST_FORMAT.kind:
        return None
    named = LIST_FORMAT.record(_Names, LIST_FORMAT.check(data, path), path)
    paths = [(path.parent / name).resolve() for name in named.recipes]
    if len({one.stem for one in paths}) < len(paths):
        raise VitfrostError(f"{path}: recipes has a name twice; every recipe runs in a folder of its name")
    for one in paths:
        load_study(one)
    return paths
