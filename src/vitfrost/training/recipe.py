"""What a person writes for `vitfrost train`: a strict, versioned YAML file. Paths are relative to the recipe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from ..configs import Compact, FreezeHeads, Hallucinate, refuse_idle
from ..configs.model import ModelPart
from ..errors import VitfrostError
from ..files import write_text
from ..plans.file import overlaid
from ..records import Format
from ..strict import Strict
from .augment import AugmentSettings

FORMAT = Format("a training recipe", "vitfrost training", language="YAML")
NAMED_WEIGHTS = ("timm", "random")
RUN_ONLY = ("threads", "checkpoint_every", "log_every", "tensorboard", "time_limit")


class StartPart(Strict):
    """Where trained weights take up a plan's structure: statistics with `similarity`, images for moments; or an artifact to go on from."""

    statistics: str | None = None
    images: str | None = None
    limit: int = Field(256, ge=1)
    seed: int = Field(0, ge=0)
    artifact: str | None = None


class TeacherPart(Strict):
    """A model that is imitated: the one training starts from (`original`), or any other with the same classes.

    `weight` is the share of the distillation in the loss; the labels have the rest. `tokens` is what the mean squared difference
    of the last tokens (before pooling and classifier) counts beside it, for a teacher whose tokens are as many and as wide.
    `options` are further arguments of timm's create_model, for a teacher that is no model of timm's as it stands.
    """

    original: bool = False
    name: str | None = None
    weights: str | None = None
    image_size: int | tuple[int, int] | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    kind: Literal["soft", "hard"] = "soft"
    temperature: float = Field(1.0, gt=0)
    weight: float = Field(0.5, gt=0, le=1)
    tokens: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _names_one_model(self) -> TeacherPart:
        if self.original == (self.name is not None):
            raise ValueError("original is to be true, or name and weights given; a teacher is one model")
        if self.original and self.options:
            raise ValueError("options belong to a teacher with a name; the original is as model says")
        return self


class SourcePart(Strict):
    """Pictures: a folder or a pack (.npz), the part of it that is used, and whose numbers its labels are."""

    source: str
    split: Literal["all", "train", "test"] = "all"
    labels: Literal["local", "imagenet", "none"] = "local"
    limit: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)


class DataPart(Strict):
    """Training pictures, several sources joined, decoded once to squares of `size` pixels (None: the model's), and evaluation pictures.

    Evaluation pictures are resized and cropped as `vitfrost evaluate` does. `cache`: a folder for decoded training pictures.
    """

    train: list[SourcePart] = Field(min_length=1)
    evaluation: SourcePart | None = None
    size: int | None = Field(None, ge=1)
    cache: str | None = None


class MixingPart(Strict):
    """Mixup and CutMix by their Beta parameters (0: off), within chunks of so many pictures; label smoothing."""

    mixup: float = Field(0.0, ge=0)
    cutmix: float = Field(0.0, ge=0)
    switch_prob: float = Field(0.5, ge=0, le=1)
    smoothing: float = Field(0.0, ge=0, lt=1)
    chunk: int = Field(8, ge=1)


class OptimizerPart(Strict):
    """An optimizer by its name in timm; `clip` bounds the norm of the gradient.

    `constants_rate`: learning rate of frozen heads' maps relative to `lr`. Adam moves every number by about its learning rate at each
    step, and the entries of a map are tens of times smaller than weights. `branch_rates`: the same of the first, second, ... branch of
    compact blocks, 1 where not given; without a norm behind them, branches differ by this and their start only.
    """

    name: str = "adamw"
    lr: float = Field(gt=0)
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[float, float] | None = None
    layer_decay: float | None = Field(None, gt=0, le=1)
    clip: float | None = Field(None, gt=0)
    constants_rate: float = Field(1.0, gt=0)
    branch_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field((), max_length=4)


class SchedulePart(Strict):
    """The learning rate by step, and the length in `epochs` or `steps`; `warmup` is in the same unit.

    `follow: time`: the rate follows the share of `time_limit` that has passed and training ends with it, however many steps that
    are; the length then only scales the warm-up. Such a run is not reproducible.
    """

    name: Literal["cosine", "linear", "constant"] = "cosine"
    epochs: int | None = Field(None, ge=1)
    steps: int | None = Field(None, ge=1)
    warmup: float = Field(0.0, ge=0)
    min_lr: float = Field(0.0, ge=0)
    follow: Literal["steps", "time"] = "steps"

    @model_validator(mode="after")
    def _one_length(self) -> SchedulePart:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("epochs or steps is to be given, one of the two")
        if self.warmup >= (self.epochs or self.steps or 0):
            raise ValueError(f"warmup is {self.warmup:g}, as long as the whole training; it is in the same unit")
        return self


class EveryPart(Strict):
    """How often a checkpoint is written: every so many steps, or seconds."""

    steps: int | None = Field(None, ge=1)
    seconds: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _one_unit(self) -> EveryPart:
        if (self.steps is None) == (self.seconds is None):
            raise ValueError("steps or seconds is to be given, one of the two")
        return self


class InlinePlan(Strict):
    """A plan's structural parts, with the keys that they have in a plan. It is made from the start's statistics, or the model alone."""

    constants: FreezeHeads | None = None
    hallucinate: Hallucinate | None = None
    compact: Compact | None = None


class TrainingRecipe(Strict):
    """One training run. `batch_size` is that of all processes together; `time_limit` is in minutes.

    `drop_until`: after this share of the training nothing is dropped any more (dropout, stochastic depth, patches).
    `evaluate_every` is in epochs; without it only the result is evaluated. `products`: what computes linear layers and depthwise
    convolutions of fp32 steps on a CPU, torch's own choice or oneDNN (`products.fast_products`: the same to rounding, and faster).
    """

    kind: Literal["vitfrost training"] = "vitfrost training"
    version: Literal[1] = 1
    model: ModelPart
    plan: str | InlinePlan | None = None
    start: StartPart = StartPart()
    teacher: TeacherPart | None = None
    data: DataPart
    augment: AugmentSettings = AugmentSettings()
    mixing: MixingPart = MixingPart()
    optimizer: OptimizerPart
    schedule: SchedulePart
    ema: float | None = Field(None, gt=0, lt=1)
    drop_until: float = Field(1.0, ge=0, le=1)
    batch_size: int = Field(64, ge=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    products: Literal["torch", "onednn"] = "torch"
    compile: bool = False
    seed: int = Field(0, ge=0)
    evaluate_every: int | None = Field(None, ge=1)
    checkpoint_every: EveryPart = EveryPart(seconds=300)
    log_every: int = Field(20, ge=1)
    time_limit: float | None = Field(None, gt=0)
    threads: int | None = Field(None, ge=1)
    tensorboard: bool = False

    @field_validator("model")
    @classmethod
    def _random_is_untrained(cls, value: ModelPart) -> ModelPart:
        return replace(value, weights=None) if value.weights == "random" else value

    @model_validator(mode="after")
    def _methods_have_an_effect(self) -> TrainingRecipe:
        parts = (self.plan.constants, self.plan.hallucinate, self.plan.compact) if isinstance(self.plan, InlinePlan) else ()
        for part in filter(None, parts):
            try:
                refuse_idle(part)
            except VitfrostError as error:
                raise ValueError(f"plan: {error}") from error
        return self

    @model_validator(mode="after")
    def _parts_agree(self) -> TrainingRecipe:
        if self.schedule.follow == "time" and self.time_limit is None:
            raise ValueError("schedule.follow is 'time', but there is no time_limit; give one in minutes")
        if self.teacher is not None and self.teacher.original and self.model.weights is None:
            raise ValueError("teacher.original is true, but the model is untrained; give model.weights, or name another teacher")
        if self.products == "onednn" and self.precision != "fp32":
            raise ValueError("products onednn computes in fp32; set precision to fp32, or leave products out")
        if self.start.artifact is not None and self.plan is not None:
            raise ValueError("start.artifact brings its own plan; leave out plan, or the artifact")
        if self.teacher is None and all(source.labels == "none" for source in self.data.train):
            raise ValueError("data.train has no labels, which needs a teacher; give labels, or a teacher")
        return self

    def hash(self) -> str:
        """SHA-256 of what determines the result, without folders (the digests of what the files hold are compared on their own)."""
        data = {key: value for key, value in self.without_paths().items() if key not in RUN_ONLY}
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    def without_paths(self) -> dict[str, Any]:
        """What is recorded in an artifact: everything but where files lay."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        for part, key in _paths(data):
            part[key] = Path(part[key]).name
        return data

    def resolved(self, folder: Path, data: Path | None = None) -> TrainingRecipe:
        """The same recipe with absolute paths: taken from `folder`, those of pictures from `data` where it is given.

        `data` may also be a file (a pack), which then takes the place of every source.
        """
        values = self.model_dump(mode="json")
        pictures = data if data is not None and data.is_dir() else folder
        for part, key in _paths(values):
            from_data = "source" in part or (part is values["start"] and key == "images")
            if from_data and data is not None and not data.is_dir():
                if "source" in part:
                    part[key] = str(data.resolve())
                continue
            part[key] = str(((pictures if from_data else folder) / part[key]).resolve())
        return TrainingRecipe.model_validate(values)


def _paths(data: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Where the plain data of a recipe names files: (part, key) pairs."""
    sources = [*data["data"]["train"], data["data"].get("evaluation") or {}]
    start = data.get("start") or {}
    named = [(source, "source") for source in sources]
    named += [(start, key) for key in ("statistics", "images", "artifact")]
    named += [
        (data["data"], "cache"),
        (data["model"], "weights"),
        (data["model"], "class_names"),
        (data.get("teacher") or {}, "weights"),
        (data, "plan"),
    ]
    return [(part, key) for part, key in named if isinstance(part.get(key), str) and part[key] not in NAMED_WEIGHTS]


def load_training_recipe(path: str | Path, variants: Sequence[str] = (), data: str | Path | None = None) -> TrainingRecipe:
    """Read a recipe with its paths resolved; each of `variants` puts the values of its part of `variants` over the others'.

    Raises VitfrostError naming the key that is wrong and why.
    """
    path = Path(path)
    content = FORMAT.read(path)
    known = content.pop("variants", None) or {}
    if not isinstance(known, dict):
        raise VitfrostError(f"{path}: variants is a mapping of names to the keys that they change")
    for name in variants:
        if not isinstance(known.get(name), dict):
            named = f"its variants are {', '.join(map(str, known))}" if known else "it has none"
            raise VitfrostError(f"{path} has no variant '{name}'; {named}")
        content = overlaid(content, known[name])
    recipe = FORMAT.record(TrainingRecipe, content, path)
    if data is not None and not Path(data).exists():
        raise VitfrostError(f"no data {data}; name a folder that holds the recipe's sources, or a pack (.npz)")
    return recipe.resolved(path.parent, None if data is None else Path(data))


def save_training_recipe(recipe: TrainingRecipe, path: str | Path) -> None:
    """Write the recipe as YAML, atomically."""
    write_text(path, yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True))
