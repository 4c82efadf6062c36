"""From the blocks of a grid to its variants: one plan, one source of statistics, one calibration seed each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from pydantic import ValidationError

from ..errors import VitfrostError
from ..runs.recipe import PlanPart
from ..strict import describe
from .recipe import BlockPart, StudyRecipe

FULL = 32
UNFROZEN = "unfrozen"
ORIGINAL = "original"


@dataclass(frozen=True, order=True)
class Source:
    """What a variant's model and statistics are made from.

    `seed` draws RepQ-ViT's calibration images (0 where nothing is quantized). `statistics` says which model's maps were
    counted, the original's or that seed's quantized model's, over `images` images.
    """

    weight_bits: int
    activation_bits: int
    levels: str
    seed: int
    statistics: Literal["fp32", "quantized"]
    images: int

    @property
    def quantizes(self) -> bool:
        """Whether weights or activations are below 32 bits."""
        return min(self.weight_bits, self.activation_bits) < FULL

    @property
    def model(self) -> str:
        """Name of the quantized model: "w4a4-seed0", with "-strict" for strict levels; "fp32" where nothing is quantized."""
        if not self.quantizes:
            return "fp32"
        return f"w{self.weight_bits}a{self.activation_bits}-seed{self.seed}" + ("" if self.levels == "published" else f"-{self.levels}")

    @property
    def observed(self) -> str:
        """Name of the statistics: those of the original model do not depend on bits and seed."""
        return f"{'fp32' if self.statistics == 'fp32' else self.model}-{self.images}"


@dataclass(frozen=True)
class Variant:
    """One point of a grid. `freeze` 0 leaves the quantized model as it is: the baseline of its seed."""

    block: str
    source: Source
    options: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, block: str, source: Source, plan: PlanPart) -> Variant:
        """A variant with a plan's options, those of `source` included."""
        options = plan.options() | {"protect": tuple(plan.protect)}
        return cls(block, source, tuple(sorted(options.items())))

    @property
    def plan(self) -> dict[str, Any]:
        """The options for `vitfrost.plan`."""
        return dict(self.options)

    @property
    def seed(self) -> int:
        """The calibration seed, which is that of a random criterion as well."""
        return self.source.seed

    @property
    def freeze(self) -> float:
        """Share of attention weights to freeze."""
        return float(self.plan["freeze"])

    @property
    def point(self) -> tuple[Any, ...]:
        """What variants that differ only in their seed have in common."""
        options = tuple((key, value) for key, value in self.options if key != "seed")
        return (self.block, self.source.statistics, self.source.images, options)

    @property
    def title(self) -> str:
        """What a person calls it: model, share, criterion, statistics, and the options that are not the defaults."""
        if self.block == UNFROZEN:
            return f"{self.source.model} unfrozen"
        own = [f"{self.plan['by']} {100 * self.freeze:g} %", f"{self.plan['frozen_bits']} bit", f"statistics {self.source.observed}"]
        return f"{self.source.model} {', '.join([*own, *changed_options(self.plan, beside=('levels',))])}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for files."""
        plan = {key: list(value) if isinstance(value, tuple) else value for key, value in self.options}
        return {
            "block": self.block,
            "seed": self.source.seed,
            "statistics": self.source.statistics,
            "statistics_images": self.source.images,
            "plan": plan,
        }

    @property
    def key(self) -> str:
        """A short hash of everything but the block's name."""
        data = {name: value for name, value in self.as_dict().items() if name != "block"}
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def changed_options(plan: dict[str, Any], beside: Collection[str] = ()) -> list[str]:
    """The options in words that are not a plan's defaults, less those that everything says of a variant, and those named."""
    own = PlanPart()
    known = {"freeze", "by", "seed", "frozen_bits", "weight_bits", "activation_bits", *beside}
    lists = {key: (_as_list(value), _as_list(getattr(own, key))) for key, value in plan.items() if key not in known}
    return [f"{key.replace('_', ' ')} {' '.join(map(str, value))}" for key, (value, default) in lists.items() if value != default]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def variant_from(data: dict[str, Any]) -> Variant:
    """The inverse of `Variant.as_dict`. Raises VitfrostError where something is missing or out of range."""
    try:
        plan = PlanPart.model_validate(data["plan"])
        source = Source(
            plan.weight_bits, plan.activation_bits, plan.levels, int(data["seed"]), data["statistics"], int(data["statistics_images"])
        )
        return Variant.of(str(data["block"]), source, plan)
    except (KeyError, TypeError, ValueError) as error:
        text = describe(error) if isinstance(error, ValidationError) else f"{type(error).__name__} {error}"
        raise VitfrostError(f"a variant is damaged: {text}; measure again") from error


def expand(recipe: StudyRecipe) -> list[Variant]:
    """All variants of a recipe's grid without repetition, each quantized model's unfrozen baseline first.

    Order: by source, so that variants of the same model and statistics stand together, then as written. Where the result
    does not depend on the seed (nothing is quantized and the criterion is not random) only seed 0 is kept.
    Raises VitfrostError for combinations that no plan can have.
    """
    found: dict[str, Variant] = {}
    for block in recipe.grid.blocks:
        for variant in _expand_block(recipe, block, block.seeds or recipe.grid.seeds):
            baseline = _baseline(variant)
            if baseline is not None:
                found.setdefault(baseline.key, baseline)
            if variant.freeze > 0:
                found.setdefault(variant.key, variant)
    return sorted(found.values(), key=lambda variant: (variant.seed, variant.source.model, variant.block != UNFROZEN))


def _expand_block(recipe: StudyRecipe, block: BlockPart, seeds: list[int]) -> Iterator[Variant]:
    names = list(block.choices)
    for values in product(*(block.choices[name] for name in names)):
        chosen = dict(zip(names, values, strict=True))
        statistics = chosen.pop("statistics", recipe.calibration.precision)
        images = chosen.pop("statistics_images", recipe.calibration.limit)
        for seed in seeds:
            try:
                plan = PlanPart.model_validate(recipe.plan.model_dump() | chosen | {"seed": seed})
            except ValidationError as error:
                raise VitfrostError(f"block '{block.name}': {describe(error)}") from error
            if plan.layer_bits or plan.head_bits:
                raise VitfrostError(f"block '{block.name}': a grid has bits of whole models; run layer_bits and head_bits in recipes")
            quantizes = min(plan.weight_bits, plan.activation_bits) < FULL
            if not quantizes and statistics == "quantized":
                raise VitfrostError(f"block '{block.name}': statistics is 'quantized', but nothing is quantized; write statistics: fp32")
            if not quantizes and plan.by != "random":
                if seed != seeds[0]:
                    continue
                plan = plan.model_copy(update={"seed": 0})
            source_seed = seed if quantizes or plan.by == "random" else 0
            source = Source(plan.weight_bits, plan.activation_bits, plan.levels, source_seed, statistics, images)
            yield Variant.of(block.name, source, plan)


def _baseline(variant: Variant) -> Variant | None:
    """The unfrozen model of the same bits and seed; None where that is the original."""
    if not variant.source.quantizes:
        return None
    source = variant.source
    bits = {name: variant.plan[name] for name in ("weight_bits", "activation_bits", "levels")}
    plan = PlanPart.model_validate({"freeze": 0.0, "seed": source.seed} | bits)
    return Variant.of(UNFROZEN, Source(source.weight_bits, source.activation_bits, source.levels, source.seed, "fp32", 0), plan)
