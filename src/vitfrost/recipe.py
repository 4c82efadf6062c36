"""What a person writes for `vitfrost run`: a strict, versioned YAML file. Paths are relative to the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import VitfrostError
from .files import write_text
from .plans.schema import Bits, describe
from .plans.text import from_yaml

KIND, VERSION = "vitfrost recipe", 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ModelPart(_Part):
    """Which model: a timm name, and a weights file unless timm's own pretrained weights are meant."""

    name: str
    weights: str | None = None
    image_size: int | tuple[int, int] | None = None
    crop_pct: float | None = Field(None, gt=0, le=1)
    crop_mode: Literal["center", "squash", "border"] | None = None


class CalibrationPart(_Part):
    """Images behind the statistics. `precision` says on which model the plan's statistics are taken (EAM section 4.3)."""

    images: str
    limit: int = Field(1000, ge=1)
    seed: int = Field(0, ge=0)
    precision: Literal["fp32", "quantised"] = "fp32"
    observed: Literal["before", "after"] = "before"


class PlanPart(_Part):
    """Options of `vitfrost plan`, under the same names and with the same defaults."""

    freeze: float = Field(0.2, ge=0, le=1)
    by: Literal["entropy", "mean", "variance", "random", "output-error"] = "entropy"
    scope: Literal["head", "layer", "model"] = "head"
    unit: Literal["entry"] = "entry"
    ties: Literal["rank", "strict", "le"] = "rank"
    protect: list[Literal["cls-rows", "cls-columns"]] = []
    renormalise: Literal["none", "mass", "renorm"] = "none"
    frozen_bits: Bits = 4
    frozen_grid: Literal["layer", "head"] = "layer"
    order: Literal["quantise-merge", "merge-quantise"] = "quantise-merge"
    weight_bits: Bits = 4
    activation_bits: Bits = 4
    levels: Literal["published", "strict"] = "published"
    seed: int = Field(0, ge=0)


class CompressPart(_Part):
    """RepQ-ViT's calibration draw; the images are the calibration folder's unless another one is named."""

    images: str | None = None
    seed: int = Field(0, ge=0)
    calibration_images: int = Field(32, ge=1)


class EvaluationPart(_Part):
    """Images and labels on which original and compressed model are compared."""

    images: str
    labels: str | None = None
    limit: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)


class Recipe(_Part):
    """One run: calibrate, plan, compress, evaluate, report."""

    kind: Literal["vitfrost recipe"] = "vitfrost recipe"
    version: Literal[1] = 1
    model: ModelPart
    calibration: CalibrationPart
    plan: PlanPart = PlanPart()
    compress: CompressPart = CompressPart()
    evaluation: EvaluationPart | None = None

    def resolved(self, folder: Path) -> Recipe:
        """The same recipe with its relative paths taken from `folder`."""

        def absolute(path: str | None) -> str | None:
            return None if path is None else str((folder / path).resolve())

        recipe = self.model_copy(deep=True)
        if recipe.model.weights != "random":
            recipe.model.weights = absolute(recipe.model.weights)
        recipe.calibration.images = str((folder / recipe.calibration.images).resolve())
        recipe.compress.images = absolute(recipe.compress.images)
        if recipe.evaluation is not None:
            recipe.evaluation.images = str((folder / recipe.evaluation.images).resolve())
            recipe.evaluation.labels = absolute(recipe.evaluation.labels)
        return recipe

    def without_paths(self) -> dict[str, Any]:
        """What is recorded in an artefact: everything but where files lay (their hashes are recorded instead)."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        for part, keys in (
            ("model", ["weights"]),
            ("calibration", ["images"]),
            ("compress", ["images"]),
            ("evaluation", ["images", "labels"]),
        ):
            for key in keys:
                data.get(part, {}).pop(key, None)
        return data


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe with its paths resolved. Raises VitfrostError naming the key that is wrong and why."""
    path = Path(path)
    try:
        data = from_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise VitfrostError(f"no recipe {path}") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise VitfrostError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise VitfrostError(f"{path} is no recipe: its first line should be 'kind: {KIND}'")
    if isinstance(data.get("version"), int) and data["version"] > VERSION:
        raise VitfrostError(f"{path} has recipe version {data['version']}, this vitfrost reads up to {VERSION}; update vitfrost")
    try:
        return Recipe.model_validate(data).resolved(path.parent)
    except ValidationError as error:
        raise VitfrostError(f"{path}: {describe(error)}") from error


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write the recipe as YAML, atomically."""
    write_text(path, yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True))
