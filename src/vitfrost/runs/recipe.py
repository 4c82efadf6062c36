"""What a person writes for `vitfrost run`: a strict, versioned YAML file. Paths are relative to the recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import yaml
from pydantic import ConfigDict, Field, create_model, model_validator

from ..configs import (
    Bench,
    Calibrate,
    Compact,
    Compress,
    Evaluate,
    Export,
    FreezeEntries,
    Hallucinate,
    Quantize,
    Repair,
    Search,
    WindowHeads,
)
from ..configs.base import Option, options_of
from ..configs.flat import NONE, UNIT, Method, flat_options, methods_of
from ..configs.methods import REPQ, ProtectedPart, RepairMethod
from ..configs.model import ModelPart
from ..errors import VitfrostError
from ..files import write_text
from ..plans.file import overlaid
from ..records import Format
from ..strict import Strict

R = TypeVar("R", bound="Recipe")
FORMAT = Format("a recipe", "vitfrost recipe", language="YAML")
LIST_FORMAT = Format("a list of recipes", "vitfrost recipes", language="YAML")


P = TypeVar("P", bound="Part")


class Part(Strict):
    """A part of a recipe: keys that it does not know are refused."""

    model_config = ConfigDict(frozen=False)  # defaults that depend on each other, and paths, are filled in


class _Flat(Part):
    """A part with fields that `with_options` adds."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


def with_options(*options: Option, **renamed: str) -> Callable[[type[P]], type[P]]:
    """Give a part one field per option, under its flat name or another one; types, checks and defaults are the option's."""
    names = [renamed.get(option.field, option.name.replace("-", "_")) for option in options]

    def add(part: type[P]) -> type[P]:
        own = {name: (option.checked_type, option.default) for name, option in zip(names, options, strict=True)}
        fields: dict[str, Any] = {name: field for name, field in own.items() if name not in part.model_fields}
        return create_model(part.__name__, __base__=part, __doc__=part.__doc__, __module__=part.__module__, **fields)

    return add


def _options(config: type, *without: str) -> list[Option]:
    return [option for option in options_of(config) if option.field not in without and option.flag.form != "none"]


@with_options(*_options(Calibrate, "batch_size", "memory_limit"), maps="observed")
class CalibrationPart(_Flat):
    """Images behind the statistics. `precision` says on which model the plan's statistics are taken (EAM section 4.3); `observed` is what
    Calibrate calls maps."""

    images: str
    precision: Literal["fp32", "quantized"] = "fp32"

    def config(self, **changes: Any) -> Calibrate:
        """How statistics are taken."""
        own = {"limit": self.limit, "seed": self.seed, "sensitivity": self.sensitivity, "similarity": self.similarity}
        return Calibrate(**own | changes)


@with_options(*(option for name, option in flat_options().items() if option.config not in (WindowHeads, Hallucinate, Compact)))
class PlanPart(_Flat):
    """The methods of a plan, under the flat names of `vitfrost plan` and with the same defaults.

    `windowed`, `hallucinate` and `compact` are a share or a ratio, or the fields of WindowHeads, Hallucinate and Compact; with one of them
    and without `freeze` nothing is frozen. Bits are 32 where no single weights are frozen and none are given.
    """

    freeze: float | None = Field(FreezeEntries.ratio, ge=0, le=1)
    windowed: Annotated[float, Field(gt=0, le=1)] | WindowHeads | None = None
    hallucinate: Annotated[float, Field(gt=0, lt=1)] | Hallucinate | None = None
    compact: Annotated[float, Field(gt=0, lt=1)] | Compact | None = None
    protect: tuple[ProtectedPart, ...] = FreezeEntries.protect  # as written: the keys of measured variants hold it so

    @model_validator(mode="after")
    def _resolve(self) -> PlanPart:
        structure = (self.windowed, self.hallucinate, self.compact)
        if any(part is not None for part in structure) and "freeze" not in self.model_fields_set:
            self.freeze = None
        try:
            quantize = self.quantize
        except VitfrostError as error:
            raise ValueError(str(error)) from error
        found: dict[str, Any] = {"weight_bits": quantize.weights, "activation_bits": quantize.activations}
        if quantize.method != REPQ:
            found["levels"] = quantize.levels
        for name, value in found.items():
            setattr(self, name, value)
        return self

    @property
    def quantize(self) -> Quantize:
        """The bits. Raises VitfrostError for options that have no effect."""
        return next(method for method in self.methods() if isinstance(method, Quantize))

    @property
    def has_structure(self) -> bool:
        """Whether layers are changed."""
        parts = (self.windowed, self.hallucinate, self.compact)
        return any(part is not None for part in parts) or self.unit != "entry"

    @property
    def similarity(self) -> bool:
        """Whether the heads' similarity is needed: to choose heads, or to fit the mix."""
        found = [method for method in self.methods() if isinstance(method, Hallucinate)]
        return any(method.compares_heads or method.fits_mix for method in found)

    def methods(self) -> tuple[Method, ...]:
        """The arguments of the verb `plan`. Raises VitfrostError for options that have no effect."""
        given: dict[str, Any] = {"freeze": NONE if self.freeze is None else self.freeze}
        for name, option in flat_options().items():
            key = name.replace("-", "_")
            if (
                key in type(self).model_fields
                and key not in ("freeze", "windowed", "hallucinate", "compact")
                and key in self.model_fields_set
            ):
                value = getattr(self, key)
                if value != option.default or name in ("weight-bits", "activation-bits") or (name == "by" and self.unit != UNIT.default):
                    given[name] = value
        if self.freeze is None or self.by != "random":
            given.pop("seed", None)  # a study gives every plan the seed of its images; a recipe refuses it
        made = list(methods_of(given, lambda name: name.replace("-", "_")))
        if self.compact is not None:
            made.append(self.compact if isinstance(self.compact, Compact) else Compact(self.compact))
        if self.hallucinate is not None:
            made.append(self.hallucinate if isinstance(self.hallucinate, Hallucinate) else Hallucinate(self.hallucinate))
        if self.windowed is not None:
            made.append(self.windowed if isinstance(self.windowed, WindowHeads) else WindowHeads(self.windowed))
        return tuple(made)

    def options(self) -> dict[str, Any]:
        """What the plan depends on as plain data, without the parts that are not used."""
        data = self.model_dump(mode="json")
        unused = {key for key in ("windowed", "hallucinate", "compact") if data[key] is None}
        if self.unit == "entry":
            unused |= {"constants", "window", "tolerance"}
        elif "by" not in self.model_fields_set:
            unused.add("by")
        later = {"quantizer": REPQ, "quantizer_steps": None, "layer_bits": None, "head_bits": None, "relu": False, "map_base": "sqrt2"}
        unused |= {key for key, value in later.items() if data[key] == value}  # as stages knew it before
        return {key: value for key, value in data.items() if key not in unused}


@with_options(*_options(Compress), *_options(Repair, "method"))
class CompressPart(_Flat):
    """The images of RepQ-ViT's calibration, of compact blocks and of the repair, drawn from the calibration folder unless another one is
    named; and whether and how the model is repaired."""

    images: str | None = None
    repair: RepairMethod | None = None

    def config(self) -> Compress:
        """How many images are drawn, and by which seed."""
        return Compress(self.seed, self.calibration_images, self.compact_images)

    def repair_config(self) -> Repair | None:
        """How the model is repaired, if it is."""
        return None if self.repair is None else Repair(self.repair, self.repair_images, self.repair_penalty)


@with_options(*_options(Evaluate, "batch_size"))
class EvaluationPart(_Flat):
    """Images and labels on which original and compressed model are compared."""

    images: str
    labels: str | None = None


class Recipe(Part):
    """One run: calibrate, plan or search, compress (and repair), export, evaluate, bench, report.

    `search` chooses the plan under a budget, in the place of `plan`; `search`, `repair`, `export` and `bench` hold the fields of the
    configuration classes of these names, and a stage whose part is missing is left out. `windowed`: of a search over windows, the fields of
    WindowHeads but its ratio.
    """

    kind: Literal["vitfrost recipe"] = "vitfrost recipe"
    version: Literal[1] = 1
    model: ModelPart
    calibration: CalibrationPart
    search: Search | None = None
    windowed: WindowHeads | None = None
    plan: PlanPart = PlanPart()
    compress: CompressPart = CompressPart()
    repair: Repair | None = None
    export: Export | None = None
    evaluation: EvaluationPart | None = None
    bench: Bench | None = None

    @model_validator(mode="after")
    def _parts_go_together(self) -> Recipe:
        if self.search is not None and "plan" in self.model_fields_set:
            raise ValueError("search chooses the plan; leave plan out, or search")
        if self.windowed is not None and (self.search is None or "windows" not in self.search.over):
            raise ValueError("windowed goes with a search over windows; write search.over, or plan.windowed")
        if self.windowed is not None and self.windowed.ratio is not None:
            raise ValueError("windowed.ratio is given, but a search finds the share of windowed heads itself; leave it out")
        if self.search is not None and self.calibration.precision == "quantized":
            raise ValueError("search starts from the original; leave calibration.precision out")
        if self.repair is not None and self.compress.repair is not None:
            raise ValueError("repair stands in the recipe twice; leave compress.repair out")
        if self.plan.seed and self.plan.by != "random":
            raise ValueError(f"plan.seed has no effect where plan.by is {self.plan.by}; leave it out")
        exported = self.export is not None and self.export.format != "native"
        if exported and self.search is None and self.plan.quantize.parts.any_activations:
            raise ValueError(
                "export refuses simulated activations; set plan.activation_bits to 32 and export.precision to int8, or export.format "
                "to native"
            )
        return self

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
            raise VitfrostError(f"{path} has no quick variant; run it without Run.quick")
        data = overlaid(data, shorter)
    return FORMAT.record(kind, data, path).resolved(path.parent)


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write the recipe as YAML, atomically."""
    unused = {"plan"} if recipe.search is not None else set()
    data = recipe.model_dump(mode="json", exclude_none=True, exclude=unused)
    write_text(path, yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
