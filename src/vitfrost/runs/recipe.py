"""What a person writes for `vitfrost run`: a strict, versioned YAML file. Paths are relative to the recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import ConfigDict, Field, model_validator

from ..configs.model import ModelPart
from ..errors import VitfrostError
from ..files import write_text
from ..plans.schema import Bits
from ..plans.structure import CompactPlan, HallucinatePlan
from ..plans.text import overlaid
from ..records import Format
from ..strict import Strict

R = TypeVar("R", bound="Recipe")
FORMAT = Format("a recipe", "vitfrost recipe", language="YAML")
LIST_FORMAT = Format("a list of recipes", "vitfrost recipes", language="YAML")


class Part(Strict):
    """A part of a recipe: keys that it does not know are refused."""

    model_config = ConfigDict(frozen=False)  # defaults that depend on each other, and paths, are filled in


class CalibrationPart(Part):
    """Images behind the statistics. `precision` says on which model the plan's statistics are taken (EAM section 4.3)."""

    images: str
    limit: int = Field(1000, ge=1)
    seed: int = Field(0, ge=0)
    precision: Literal["fp32", "quantized"] = "fp32"
    observed: Literal["before", "after"] = "before"
    sensitivity: bool = False
    similarity: bool = False


class PlanPart(Part):
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


class CompressPart(Part):
    """The images of RepQ-ViT's calibration, of compact blocks and of the repair, drawn from the calibration folder unless another one is
    named; and whether and how the model is repaired."""

    images: str | None = None
    seed: int = Field(0, ge=0)
    calibration_images: int = Field(32, ge=1)
    compact_images: int = Field(256, ge=1)
    repair: Literal["ridge", "bias"] | None = None
    repair_images: int = Field(300, ge=1)
    repair_penalty: float | None = Field(None, ge=0)


class EvaluationPart(Part):
    """Images and labels on which original and compressed model are compared."""

    images: str
    labels: str | None = None
    limit: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)


class Recipe(Part):
    """One run: calibrate, plan, compress, evaluate, report."""

    kind: Literal["vitfrost recipe"] = "vitfrost recipe"
    version: Literal[1] = 1
    model: ModelPart
    calibration: CalibrationPart
    plan: PlanPart = PlanPart()
    compress: CompressPart = CompressPart()
    evaluation: EvaluationPart | None = None

    def resolved(self: R, folder: Path) -> R:
        """The same recipe with its relative paths taken from `folder`."""

        def absolute(path: str | None) -> str | None:
            return None if path is None else str((folder / path).resolve())

        recipe = self.model_copy(deep=True)
        weights = "random" if self.model.weights == "random" else absolute(self.model.weights)
        recipe.model = replace(self.model, weights=weights, class_names=absolute(self.model.class_names))
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

    Raises VitfrostError naming the key that is wrong and why, and for a study.
    """
    data = read_recipe(path)
    if is_study(data):
        raise VitfrostError(f"{path} is a study, a grid of plans or a list of recipes; run python -m vitfrost.studies run {path} --out DIR")
    return parse_recipe(Recipe, data, Path(path), quick=quick)


def is_study(data: Any) -> bool:
    """Whether plain data are those of a grid of plans or of a list of recipes, which `python -m vitfrost.studies` runs."""
    return isinstance(data, dict) and ("grid" in data or data.get("kind") == LIST_FORMAT.kind)


def read_recipe(path: str | Path) -> Any:
    """Plain data of a YAML file. Raises VitfrostError for a file that is missing or no YAML."""
    return FORMAT.plain(path)


def parse_recipe(kind: type[R], data: Any, path: Path, *, quick: bool = False) -> R:
    """A recipe of this class from the plain data of the file `path`; see `load_recipe`."""
    data = dict(FORMAT.check(data, path))
    shorter = data.pop("quick", None)
    if quick:
        if not isinstance(shorter, dict):
            raise VitfrostError(f"{path} has no quick variant; run it without --quick")
        data = overlaid(data, shorter)
    return FORMAT.record(kind, data, path).resolved(path.parent)


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write the recipe as YAML, atomically."""
    write_text(path, yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True))
