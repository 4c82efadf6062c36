"""A quantized model trained towards the original by gradient steps, all blocks at once; unlabeled images, no new parameters.

The loss is the mean squared distance of the residual streams behind every block, each relative to how much the original's varies, and the
KL divergence of the outputs. Features keep it from learning the outputs of a few images by heart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...vit.families import forward_pass
from .trainable import groups, take, trainable


@dataclass(frozen=True)
class PolishOptions:
    """Rates are those of Adam at the start; they fall to zero as a cosine. `features`: what the streams count beside the divergence."""

    steps: int = 300
    batch: int = 16
    codes: float = 0.01
    scales: float = 0.001
    shifts: float = 0.0003
    features: float = 1.0
    every: int = 25
    seed: int = 0


@dataclass
class PolishEnd:
    """How it ended: the step whose state was kept, its divergence on the images held out, and the step at which a loss was not finite."""

    best_step: int
    best: float
    broke_at: int | None = None


class _Streams:
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
    logits: Float[Tensor, "images classes"],
    wanted: Float[Tensor, "images classes"],
    streams: list[Tensor],
    aims: list[Tensor],
    share: float,
) -> Float[Tensor, ""]:
    """KL divergence plus `share` times the mean over blocks of the relative squared distance of the streams."""
    aim = wanted.log_softmax(-1)
    loss = (aim.exp() * (aim - logits.log_softmax(-1))).sum(-1).mean()
    for own, other in zip(streams, aims, strict=True):
        spread = (other - other.mean(dim=tuple(range(other.ndim - 1)), keepdim=True)).square().mean().clamp_min(1e-12)
        loss = loss + share / len(aims) * (own - other).square().mean() / spread
    return loss


def flipped(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the images mirrored."""
    mirror = torch.rand(len(pixels), generator=generator) < 0.5
    return torch.where(mirror.view(-1, 1, 1, 1), pixels.flip(-1), pixels)


def polish(
    model: nn.Module, teacher: nn.Module, pixels: Float[Tensor, "images 3 height width"], divergence: Callable[[nn.Module], float],
    options: PolishOptions, end: PolishEnd,
) -> Iterator[int]:  # fmt: skip
    """Train `model` in place and name the steps done; in the end it has the state with the smallest `divergence` (the first counts too).

    A loss that is not finite ends it; `end` then has the step.
    """
    twin = trainable(model)
    rates = {"codes": options.codes, "scales": options.scales, "shifts": options.shifts}
    optimizer = torch.optim.Adam([{"params": found, "lr": rates[kind]} for kind, found in groups(twin).items() if found])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, total=options.steps))
    generator = torch.Generator().manual_seed(options.seed)
    names = [call.name for call in forward_pass(teacher).blocks]
    own, aimed = _Streams(twin, names), _Streams(teacher, names)
    best = {name: value.clone() for name, value in twin.state_dict().items()}
    order: list[int] = []
    try:
        for step in range(1, options.steps + 1):
            if len(order) < options.batch:
                order += torch.randperm(len(pixels), generator=generator).tolist()
            chosen, order = order[: options.batch], order[options.batch :]
            batch = flipped(pixels[chosen], generator)
            with torch.no_grad():
                wanted = teacher(batch)
            with torch.enable_grad():
                loss = polish_loss(twin(batch), wanted, own.take(), aimed.take(), options.features)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
            if not math.isfinite(float(loss.detach())):
                end.broke_at = step
                break
            optimizer.step()
            schedule.step()
            if step % options.every == 0 or step == options.steps:
                lost = divergence(twin)
                own.take()
                if lost < end.best:
                    end.best_step, end.best = step, lost
                    best = {name: value.clone() for name, value in twin.state_dict().items()}
            yield step
    finally:
        own.remove()
        aimed.remove()
    twin.load_state_dict(best)
    take(model, twin)


def _rate(step: int, total: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / total))
