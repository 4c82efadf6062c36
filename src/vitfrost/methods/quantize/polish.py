"""A quantized model trained towards the original by gradient steps, all blocks at once; unlabeled images, no new parameters.

The loss is the mean squared distance of the residual streams behind every block, each relative to how much the original's varies, and the
distance of the outputs (see methods.output_distance). Features keep it from learning the outputs of a few images by heart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ...outputs import OutputKind
from ...vit.families import forward_pass
from ..output_distance import distances
from .trainable import groups, take, trainable


@dataclass(frozen=True)
class PolishOptions:
    """Rates are those of Adam at the start; they fall to zero as a cosine. `codes` is in levels, `scales` is of logarithms, `constants` in
    entries of maps.

    `features`: what the streams count beside the outputs.
    """

    steps: int = 300
    batch: int = 16
    codes: float = 0.01
    scales: float = 0.001
    shifts: float = 0.0003
    constants: float = 0.00001
    features: float = 1.0
    every: int = 100
    seed: int = 0


@dataclass
class PolishEnd:
    """How it ended: the step whose state was kept, its divergence on the images held out, the step at which a loss, a gradient or a
    divergence was not finite, and all divergences that were measured, by step."""

    best_step: int
    best: float
    broke_at: int | None = None
    measured: dict[int, float] = field(default_factory=dict)


class _BlockOutputs:
    """What the blocks of a model put out."""

    def __init__(self, model: nn.Module, names: list[str]):
        self.seen: list[Tensor] = []
        self._handles = [model.get_submodule(name).register_forward_hook(self._keep) for name in names]

    def _keep(self, _: nn.Module, __: Any, output: Tensor) -> None:
        self.seen.append(output)

    def take(self) -> list[Tensor]:
        """Those of the last forward pass."""
        taken, self.seen = self.seen, []
        return taken

    def remove(self) -> None:
        """Watch no longer."""
        for handle in self._handles:
            handle.remove()


def polish_loss(
    found: Float[Tensor, images * outputs],
    wanted: Float[Tensor, images * outputs],
    streams: list[Tensor],
    aims: list[Tensor],
    share: float,
    outputs: OutputKind = "classes",
) -> Float[Tensor, ""]:
    """Distance of the outputs plus `share` times the mean over blocks of the relative squared distance of the streams."""
    loss = distances(outputs, wanted, found).mean()
    for own, other in zip(streams, aims, strict=True):
        spread = other.var(dim=tuple(range(other.ndim - 1)), correction=0).mean().clamp_min(1e-12)
        loss = loss + share / len(aims) * F.mse_loss(own, other) / spread
    return loss


def flipped(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the images mirrored."""
    mirror = torch.rand(len(pixels), generator=generator) < 0.5
    return torch.where(mirror.view(-1, 1, 1, 1), pixels.flip(-1), pixels)


def best_precision() -> torch.dtype:
    """bfloat16 where the processor multiplies it itself, else float32."""
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported() else torch.float32


class Polishing:
    """Training of `model`, quantized, in place: `steps` names each step done, and then the model has the state with the smallest
    `divergence` (that of the start counts too).

    `state` is everything that the steps after it depend on, and `restore` takes it: then they give the same bits.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        pixels: Float[Tensor, "images 3 height width"],
        divergence: Callable[[nn.Module], float],
        options: PolishOptions,
        outputs: OutputKind = "classes",
        precision: torch.dtype = torch.float32,
    ):
        self.outputs: OutputKind = outputs
        self.precision = precision
        self.names = [call.name for call in forward_pass(teacher).blocks]
        self.model, self.teacher, self.pixels, self.divergence, self.options = model, teacher, pixels, divergence, options
        self.twin = trainable(model)
        rates = {"codes": options.codes, "scales": options.scales, "shifts": options.shifts, "constants": options.constants}
        grouped = [{"params": found, "lr": rates[kind]} for kind, found in groups(self.twin).items() if found]
        self.optimizer = torch.optim.Adam(grouped, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, partial(_rate, total=options.steps))
        self.generator = torch.Generator().manual_seed(options.seed)
        self.order: list[int] = []
        self.done = 0
        start = divergence(model)
        self.end = PolishEnd(0, start, measured={0: start})
        self.best = self._weights()

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.twin.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """Tensors and plain values, for a file."""
        parts = {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(), "generator": self.generator.get_state()}
        return parts | {"twin": self._weights(), "best": self.best, "order": self.order, "done": self.done, "end": asdict(self.end)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.twin.load_state_dict(state["twin"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"])
        self.best, self.order, self.done, self.end = state["best"], list(state["order"]), state["done"], PolishEnd(**state["end"])

    def steps(self) -> Iterator[int]:
        """Train to the end; a number that is not finite is the end, and `end` has its step. What was reached before it is measured."""
        own, aimed = _BlockOutputs(self.twin, self.names), _BlockOutputs(self.teacher, self.names)
        try:
            while self.done < self.options.steps and self.end.broke_at is None:
                loss = self._loss(own, aimed)
                if not math.isfinite(float(loss)) or not self._finite_gradients():
                    self.end.broke_at = self.done + 1
                    if self.done not in self.end.measured:
                        self._keep_best()
                    break
                self.optimizer.step()
                self.schedule.step()
                self.done += 1
                if self.done % self.options.every == 0 or self.done == self.options.steps:
                    self._keep_best()
                    own.take()
                yield self.done
        finally:
            own.remove()
            aimed.remove()
        self.twin.load_state_dict(self.best)
        if self.end.best_step:
            take(self.model, self.twin)

    def _loss(self, own: _BlockOutputs, aimed: _BlockOutputs) -> Tensor:
        """The loss of the next batch, whose gradients are taken."""
        if len(self.order) < self.options.batch:
            self.order += torch.randperm(len(self.pixels), generator=self.generator).tolist()
        chosen, self.order = self.order[: self.options.batch], self.order[self.options.batch :]
        batch = flipped(self.pixels[chosen], self.generator)
        with torch.autocast("cpu", self.precision, enabled=self.precision != torch.float32):
            with torch.no_grad():
                wanted = self.teacher(batch)
            with torch.enable_grad():
                found = self.twin(batch)
        streams, aims = ([each.float() for each in seen.take()] for seen in (own, aimed))
        with torch.enable_grad():
            loss = polish_loss(found.float(), wanted.float(), streams, aims, self.options.features, self.outputs)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _finite_gradients(self) -> bool:
        grads = [each.grad for group in self.optimizer.param_groups for each in group["params"] if each.grad is not None]
        return all(bool(grad.isfinite().all()) for grad in grads)

    def _keep_best(self) -> None:
        lost = self.end.measured[self.done] = self.divergence(self.twin)
        if not math.isfinite(lost) and self.end.broke_at is None:
            self.end.broke_at = self.done
        if lost < self.end.best:
            self.end.best_step, self.end.best = self.done, lost
            self.best = self._weights()


def _rate(step: int, total: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / total))
