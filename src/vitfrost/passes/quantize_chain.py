"""The pass that quantizes a model in steps, measures each on images that it was not fitted to, and takes back what makes it worse."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..artifact import Artifact
from ..configs import Quantize
from ..errors import VitfrostError
from ..methods.output_distance import distances
from ..methods.quantize.layerwise import LayerOptions, LayerWise
from ..methods.quantize.repq import QuantizationSettings
from ..methods.quantize.token_weights import token_weights
from ..outputs import OutputKind
from ..progress import track
from ..vit.families import find_sites, install_map_attention, show_layers
from ..vit.sites import ModelSites
from .left_models import LeftModels, key_of
from .work import Record, Work

SURE, MUCH = 2.0, 1.5  # standard errors; times the former divergence
LOST = 2.0  # nats, or relative error: outputs that have hardly anything to do with the original's any more
BATCH_SIZE, WEIGHT_IMAGES = 32, 64
HELD_OUT, MOST_HELD_OUT = 5, 128  # of so many images one is held out, and not more in all


@dataclass
class Chain:
    """A model on its way through the steps.

    `float_model` has everything but quantizers; `teacher` is the original, rotated as `float_model` is. `model` is the quantized one, None
    before the first step. `options` say what is done at each layer; steps change them and quantize anew. The closed form is fitted to the
    first `fitted` images (None: all). `scratch` is a folder for what takes long, if there is a place for it, and `left` are the quantized
    models in it.
    """

    float_model: nn.Module
    teacher: nn.Module
    sites: ModelSites
    teacher_sites: ModelSites
    options: LayerOptions
    batches: list[Float[Tensor, "_ 3 height width"]]
    held_out: list[Float[Tensor, "_ 3 height width"]]
    wanted: list[Float[Tensor, _ * outputs]]
    seed: int
    outputs: OutputKind = "classes"
    progress: bool = False
    model: nn.Module | None = None
    weights: dict[str, tuple[float, float]] = field(default_factory=dict)
    fitted: int | None = None
    scratch: Path | None = None
    left: LeftModels | None = None

    def quantize(self, images: int | None) -> Record:
        """Quantize the float model layer by layer on the first so many images (None: `fitted`), as `options` say, or take what a killed run
        made of the same. Returns the penalties."""
        batches = self._first(images)
        key = key_of([self.float_model, self.teacher], batches, self.options, self.weights) if self.left is not None else ""
        if self.left is not None and (found := self.left.find(key)) is not None:
            self.model, record = found
            return record
        self.model = copy.deepcopy(self.float_model)
        steps = LayerWise(self.model, self.teacher, self.sites, self.options, self.weights)
        for _ in track(steps.run(batches), steps.count, "quantize: layers", self.progress):
            pass
        record = {"penalties": steps.penalties} if steps.penalties else {}
        if self.left is not None:
            self.left.keep(key, self.model, record)
        return record

    def copied(self) -> nn.Module:
        """A copy of the quantized model, for a step to change. Raises ValueError before anything is quantized."""
        if self.model is None:
            raise ValueError("nothing is quantized yet; ranges come first")
        return copy.deepcopy(self.model)

    def _first(self, images: int | None) -> list[Tensor]:
        images = self.fitted if images is None else images
        return self.batches if images is None else self.batches[: max(2, images // BATCH_SIZE)]

    def divergences(self) -> Float[Tensor, " images"]:
        """Those of the model as it is now, see `divergences_of`."""
        return self.divergences_of(self.float_model if self.model is None else self.model)

    def divergence_of(self, model: nn.Module) -> float:
        """Mean distance from the original's outputs (KL in nats, or relative error) on the images held out; infinite where outputs are not
        finite."""
        lost = float(self.divergences_of(model).mean())
        return lost if math.isfinite(lost) else math.inf

    @torch.no_grad()
    def divergences_of(self, model: nn.Module) -> Float[Tensor, " images"]:
        """The distance of each image that is held out."""
        parts = zip(self.held_out, self.wanted, strict=True)
        return torch.cat([distances(self.outputs, wanted.double(), model(pixels).double()) for pixels, wanted in parts])


@runtime_checkable
class ChainStep(Protocol):
    """One change. `needed`: it is never taken back."""

    @property
    def name(self) -> str:
        """In records and options."""

    @property
    def needed(self) -> bool:
        """Whether the others need it."""

    def apply(self, chain: Chain) -> Record:
        """Change the chain; returns what to keep beside the divergences (plain values)."""


@dataclass(frozen=True)
class QuantizeInSteps:
    """`images` are drawn; one in five is held out to measure on, 128 at most, and none that a repair has read, as far as there are others.
    The closed form takes the first `fitted` of the rest (None: all). The record: bits, the draw, and for every step the divergence from
    the original (KL, of features the relative error) before and after, and whether it was kept."""

    method: str
    settings: QuantizationSettings
    steps: tuple[ChainStep, ...]
    images: int
    fitted: int | None = None
    name = "quantization"

    @classmethod
    def of(cls, method: str, config: Quantize, steps: Sequence[ChainStep], images: int, fitted: int | None = None) -> QuantizeInSteps:
        """The steps that the configuration leaves. Raises VitfrostError for one that the method has not."""
        known = [step.name for step in steps if not step.needed]
        for name in config.steps or ():
            if name not in known:
                raise VitfrostError(f"Quantize.steps has {name}, which is no step of {method}; its steps are {', '.join(known)}")
        if config.steps is not None and list(config.steps) != [name for name in known if name in config.steps]:
            raise VitfrostError(f"Quantize.steps is {', '.join(config.steps)}; name each step once, in this order: {', '.join(known)}")
        chosen = tuple(step for step in steps if step.needed or config.steps is None or step.name in config.steps)
        return cls(method, QuantizationSettings.of(config), chosen, images, fitted)

    def check(self, work: Work) -> None:
        """Needs images, also for weights alone: it fits what is left to them."""
        if not work.draws.given:
            raise VitfrostError(f"the quantizer {self.method} is fitted to images, which need no labels; give --images DIR, or take repq")

    def apply(self, work: Work) -> Record:
        """Apply the steps in order; one that makes the divergence larger, see `is_worse`, is taken back."""
        kept, held_out, drawn = work.draws.batch_apart("calibration", self.images, HELD_OUT, MOST_HELD_OUT)
        chain = self.start(work, kept, held_out)
        records = list(self._steps(chain))
        assert chain.model is not None
        work.model = chain.model
        settings = self.settings
        about = {"weight_bits": settings.weight_bits, "activation_bits": settings.activation_bits, "levels": settings.levels}
        held = sum(map(len, chain.held_out))
        features = {} if chain.outputs == "classes" else {"outputs": chain.outputs}
        return {"method": self.method} | about | drawn | {"held_out": held, **features, "steps": records}

    def start(self, work: Work, kept: Float[Tensor, "images 3 height width"], held_out: Float[Tensor, "held_out 3 height width"]) -> Chain:
        """The chain before its first step, which is fitted to the images `kept` and measured on those held out."""
        size = min(BATCH_SIZE, -(-len(kept) // 2))
        outputs = work.original.outputs
        teacher = copy.deepcopy(work.original.module).cpu().eval()
        sites = work.sites if isinstance(work.original, Artifact) else find_sites(teacher)
        show_layers(teacher)
        install_map_attention(teacher)  # so that its heads are turned as the model's are
        with torch.no_grad():
            wanted = [teacher(part) for part in held_out.split(BATCH_SIZE)]
        batches = list(kept.split(size))
        weights = token_weights(teacher, sites, batches[: max(1, WEIGHT_IMAGES // size)], work.draws.seed, outputs)
        return Chain(
            work.model.eval(), teacher, work.sites, sites, LayerOptions(self.settings), batches, list(held_out.split(BATCH_SIZE)), wanted,
            work.draws.seed, outputs, work.progress, weights=weights, fitted=self.fitted, scratch=work.scratch,
            left=None if work.scratch is None else LeftModels(work.scratch, work.plan, work.original.blank),
        )  # fmt: skip

    def _steps(self, chain: Chain) -> Iterator[dict[str, Any]]:
        before = chain.divergences()
        for step in self.steps:
            was = dict(vars(chain))
            record = step.apply(chain)
            after = chain.divergences()
            kept = step.needed or not is_worse(before, after)
            if not kept:
                vars(chain).update(was)
            yield {"step": step.name, "before": _plain(before), "after": _plain(after), "kept": kept, **record}
            before = after if kept else before


def is_worse(before: Float[Tensor, " images"], after: Float[Tensor, " images"]) -> bool:
    """Whether a step is taken back: it is worse by so much that few images are enough to see it, or surely worse. Of a model that is lost
    the latter says nothing (3 bits before the fit: a rotation, which gives most in the end, made 4.3 nats 4.5)."""
    if not bool(after.isfinite().all()):
        return bool(before.isfinite().all())
    if float(after.mean()) > MUCH * float(before.mean()):
        return True
    return float(before.mean()) <= LOST and surely_less(before, after)


def surely_less(these: Float[Tensor, " images"], others: Float[Tensor, " images"]) -> bool:
    """Whether these divergences are smaller than others of the same images by more than chance: the mean difference is above `SURE`
    standard errors. Single differences of quantized models are mostly noise, and of one image nothing is sure."""
    if not bool(these.isfinite().all()) or not bool(others.isfinite().all()):
        return bool(these.isfinite().all())
    gain = others - these
    error = float(gain.std()) / len(gain) ** 0.5 if len(gain) > 1 else math.inf
    return float(gain.mean()) > SURE * error


def _plain(divergences: Float[Tensor, " images"]) -> float | None:
    """The mean for a file, which has no infinite numbers."""
    divergence = float(divergences.mean())
    return divergence if math.isfinite(divergence) else None
