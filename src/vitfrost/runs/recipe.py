"""What a person writes for `vitfrost run`: a strict, versioned YAML file. Paths are relative to the recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..configs.model import ModelPart
from ..errors import VitfrostError
from ..files import write_text
from ..plans.schema import Bits
from ..plans.strict import describe
from ..plans.structure import CompactPlan, HallucinatePlan
from ..plans.text import from_yaml, overlaid

KIND, LIST_KIND, VERSION = "vitfrost recipe", "vitfrost recipes", 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CalibrationPart(_Part):
    """Images behind the statistics. `precision` says on which model the plan's statistics are taken (EAM section 4.3)."""

    images: str
    limit: int = Field(1000, ge=1)
    seed: int = Field(0, ge=0)
    precision: Literal["fp32", "quantized"] = "fp32"
    observed: Literal["before", "after"] = "before"
    sensitivity: bool = False
    similarity: bool = False


class PlanPart(_Part):
    """Options of `vitfrost plan`, under the same names and with the same defaults.

    `hallucinate` and `compact` are a share and a ratio, or the fields of those parts of a plan; with one of them and without `freeze`
    nothing is frozen. Whole heads (`unit` head or layer) are frozen in floating point unless bits are given.
    """

    hallucinate: Annotated[float, Field(gt=0, lt=1)] | HallucinatePlan | None = None
    compact: Annotated[float, Field(gt=0, lt=1)] | CompactPlan | None = None
    freeze: float | None = Field(0.2, ge=0, le=1)
    by: Literal["entropy", "mean", "variance", "random", "output-error", "largest-entropy", "output-error-joint", "fisher"] = "entropy"
    scope: Literal["head", "layer", "model"] = "head"
    unit: Literal["entry", "head", "layer"] = "entry"
    constants: Literal["auto", "dense", "toeplitz", "local"] = "auto"
    window: int | None = Field(None, ge=1)
    tolerance: float = Field(0.1, ge=0)
    ties: Literal["rank", "strict", "le"] = "rank"
    protect: list[Literal["cls-rows", "cls-columns"]] = []
    renormalize: Literal["none", "mass", "renorm"] = "none"
    frozen_bits: Bits = 4
    frozen_grid: Literal["layer", "head"] = "layer"
    order: Literal["quantize-merge", "merge-quantize"] = "quantize-merge"
    weight_bits: Bits = 4
    activation_bits: Bits = 4
    levels: Literal["published", "strict"] = "published"
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _structure_alone_freezes_nothing(self) -> PlanPart:
        if (self.hallucinate is not None or self.compact is not None) and "freeze" not in self.model_fields_set:
            self.freeze = None
        if self.unit != "entry":
            for bits in {"weight_bits", "activation_bits"} - self.model_fields_set:
                setattr(self, bits, 32)
        return self

    @property
    def has_structure(self) -> bool:
        """Whether layers are changed."""
        return self.hallucinate is not None or self.compact is not None or self.unit != "entry"

    @property
    def similarity(self) -> bool:
        """Whether the heads' similarity is needed: to choose heads, or to fit the mix."""
        if not isinstance(self.hallucinate, HallucinatePlan):
            return self.hallucinate is not None
        return self.hallucinate.compares_heads or self.hallucinate.mix == "ridge"

    def options(self) -> dict[str, Any]:
        """The arguments of the verb `plan`, without the parts that are not used."""
        data = self.model_dump(mode="json")
        unused = {key for key in ("hallucinate", "compact") if data[key] is None}
        if self.unit == "entry":
            unused |= {"constants", "window", "tolerance"}
        elif "by" not in self.model_fields_set:
            unused.add("by")
        return {key: value for key, value in data.items() if key not in unused}


class CompressPart(_Part):
    """The images of RepQ-ViT's calibration, of compact blocks and of the repair, drawn from the calibration folder unless another one is
    named; and whether and how the model is repaired."""

    images: str | None = None
    seed: int = Field(0, ge=0)
    calibration_images: int = Field(32, ge=1)
    compact_images: int = Field(256, ge=1)
    repair: Literal["ridge", "bias"] | None = None
    repair_images: int = Field(300, ge=1)
    repair_penalty: float | None = Field(None, ge=0)


class EvaluationPart(_Part):
    """Images and labels on which original and compressed model are compared."""

    images: str
    labels: str | None = None
    limit: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)


class BlockPart(_Part):
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
        known = {*PlanPart.model_fields, *STATISTICS_AXES} - {"seed", "hallucinate", "compact", "unit", "constants", "window", "tolerance"}
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


STATISTICS_AXES: dict[str, Callable[[Any], bool]] = {
    "statistics": lambda value: value in ("fp32", "quantized"),
    "statistics_images": lambda value: type(value) is int and value >= 1,
}


class GridPart(_Part):
    """Many plans on one model: blocks of variants, each over the calibration seeds. The `plan` part holds their defaults."""

    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1)
    blocks: list[BlockPart] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> GridPart:
        names = [block.name for block in self.blocks]
        if len(names) != len(set(names)):
            raise ValueError(f"blocks have names that occur twice: {', '.join(sorted({name for name in names if names.count(name) > 1}))}")
        return self


class PublishedPart(_Part):
    """Numbers of a paper, top-1 in percent, that the report shows beside ours. `frozen` is by share of frozen weights."""

    source: str
    images: str
    full_precision: float | None = None
    quantized: float | None = None
    frozen: dict[float, float] = {}


class Recipe(_Part):
    """One run: calibrate, plan, compress, evaluate, report; with a `grid`, many variants of it that share their work."""

    kind: Literal["vitfrost recipe"] = "vitfrost recipe"
    version: Literal[1] = 1
    model: ModelPart
    calibration: CalibrationPart
    plan: PlanPart = PlanPart()
    compress: CompressPart = CompressPart()
    evaluation: EvaluationPart | None = None
    grid: GridPart | None = None
    published: PublishedPart | None = None

    @model_validator(mode="after")
    def _grid_is_evaluated(self) -> Recipe:
        if self.grid is not None and self.evaluation is None:
            raise ValueError("evaluation is missing; a grid is made to be evaluated")
        if self.grid is not None and self.plan.has_structure:
            raise ValueError(
                "grid has variants of frozen maps; leave hallucinate, compact and whole heads out of its plan, or run without a grid"
            )
        if self.grid is not None and self.compress.repair is not None:
            raise ValueError("grid has variants that are not repaired; leave compress.repair out, or repair without a grid")
        return self

    def resolved(self, folder: Path) -> Recipe:
        """The same recipe with its relative paths taken from `folder`."""

        def absolute(path: str | None) -> str | None:
            return None if path is None else str((folder / path).resolve())

        def absolute_file(path: str | None) -> str | None:
            return path if path == "random" else absolute(path)

        recipe = self.model_copy(deep=True)
        recipe.model = replace(recipe.model, weights=absolute_file(self.model.weights), class_names=absolute(self.model.class_names))
        recipe.calibration.images = str((folder / recipe.calibration.images).resolve())
        recipe.compress.images = absolute(recipe.compress.images)
        if recipe.evaluation is not None:
            recipe.evaluation.images = str((folder / recipe.evaluation.images).resolve())
            recipe.evaluation.labels = absolute(recipe.evaluation.labels)
        return recipe

    def without_paths(self) -> dict[str, Any]:
        """What is recorded in an artifact: everything but where files lay (their hashes are recorded instead)."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        for part, keys in (
            ("model", ["weights", "class_names"]),
            ("calibration", ["images"]),
            ("compress", ["images"]),
            ("evaluation", ["images", "labels"]),
        ):
            for key in keys:
                data.get(part, {}).pop(key, None)
        return data


def load_recipe(path: str | Path, *, quick: bool = False) -> Recipe:
    """Read a recipe with its paths resolved; `quick` takes the values of its `quick` part in place of the others.

    Raises VitfrostError naming the key that is wrong and why.
    """
    path = Path(path)
    data = _read(path)
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise VitfrostError(f"{path} is no recipe: its first line should be 'kind: {KIND}'")
    if isinstance(data.get("version"), int) and data["version"] > VERSION:
        raise VitfrostError(f"{path} has recipe version {data['version']}, this vitfrost reads up to {VERSION}; update vitfrost")
    shorter = data.pop("quick", None)
    if quick:
        if not isinstance(shorter, dict):
            raise VitfrostError(f"{path} has no quick variant; run it without --quick")
        data = overlaid(data, shorter)
    try:
        return Recipe.model_validate(data).resolved(path.parent)
    except ValidationError as error:
        raise VitfrostError(f"{path}: {describe(error)}") from error


@dataclass(frozen=True)
class RecipeList:
    """Recipes that are run one after the other."""

    paths: tuple[Path, ...]


def load_recipe_list(path: str | Path) -> RecipeList | None:
    """Read a list of recipes (`kind: vitfrost recipes`, `recipes:` names files beside it); None for a file of another kind.

    Every recipe is read, so that a mistake in the last one is found before the first one runs. Raises VitfrostError as `load_recipe`.
    """
    path = Path(path)
    data = _read(path)
    if not isinstance(data, dict) or data.get("kind") != LIST_KIND:
        return None
    names = data.get("recipes")
    unknown = set(data) - {"kind", "version", "recipes"}
    if unknown or data.get("version") != VERSION or not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise VitfrostError(f"{path}: a list of recipes has kind, version: {VERSION}, and recipes, the names of files")
    paths = tuple((path.parent / name).resolve() for name in names)
    stems = [one.stem for one in paths]
    if len(stems) != len(set(stems)):
        raise VitfrostError(f"{path}: recipes has a name twice; every recipe runs in a folder of its name")
    for one in paths:
        load_recipe(one)
    return RecipeList(paths)


def _read(path: Path) -> Any:
    try:
        return from_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise VitfrostError(f"no recipe {path}") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise VitfrostError(f"{path} is not readable YAML: {error}") from error


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write the recipe as YAML, atomically."""
    write_text(path, yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True))
