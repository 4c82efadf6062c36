"""What states of a model do to its outputs, on the same images: divergence from the original, agreement with it, and top-1.

In plain ViTs, states share what comes before the first layer in which they differ: what every block reads is kept for the state that the
search is at, so a change in layer l only runs layers l to L. Models of other families run whole.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import VitfrostError
from ..evaluation.intervals import divergences
from ..vit import plain
from .moves import State
from .replacements import Replacements

MEMORY = 1 << 30


@dataclass(frozen=True)
class Effect:
    """Means over the images. `kl`: KL(original || changed) in nats, `kl_error` its standard error; agreement and top-1 in percent
    (`top1` None without labels); the seconds that it took."""

    kl: float
    kl_error: float
    agreement: float
    top1: float | None
    seconds: float = 0.0


class Bench:
    """Measures states on images, in batches that never change.

    `labels`: one per image, or None. `memory`: bytes for what blocks read; where all of it does not fit, only every second block's
    (third, ...) is kept. The model is that of `replacements`, in evaluation mode.
    """

    def __init__(
        self,
        replacements: Replacements,
        batches: Sequence[Float[Tensor, "images 3 height width"]],
        labels: Sequence[int] | None = None,
        memory: int = MEMORY,
    ):
        self.replacements, self.batches = replacements, list(batches)
        self.model: Any = replacements.model
        self.labels = None if labels is None else np.asarray(labels)
        self.blocks: list[nn.Module] = list(self.model.get_submodule("blocks").children()) if plain.matches(self.model) else []
        self.memory = memory
        self.kept: State | None = None
        self._inputs: list[dict[int, Tensor]] = [{} for _ in self.batches]
        self._every = 1
        start = replacements.state
        self.teacher = self._whole(start)
        if not np.isfinite(self.teacher).all():
            raise VitfrostError("the outputs of the original are not finite on the images; check its weights")
        self.original = self._effect(self.teacher, 0.0)

    def measure(self, state: State, near: State) -> Effect:
        """The effect of a state that differs little from the state `near`, which the search is at."""
        start = time.perf_counter()
        if self.blocks:
            self._keep(near)
            logits = self._run(state, self._first_difference(state, near))
        else:
            logits = self._whole(state)
        if not np.isfinite(logits).all():
            raise VitfrostError(f"the outputs are not finite with {state.key}; check the statistics, and calibrate again")
        return self._effect(logits, time.perf_counter() - start)

    def _effect(self, logits: np.ndarray, seconds: float) -> Effect:
        divergence = divergences(self.teacher, logits)
        best = logits.argmax(axis=1)
        return Effect(
            kl=float(divergence.mean()),
            kl_error=float(divergence.std(ddof=1) / np.sqrt(len(divergence))) if len(divergence) > 1 else 0.0,
            agreement=100 * float((best == self.teacher.argmax(axis=1)).mean()),
            top1=None if self.labels is None else 100 * float((best == self.labels).mean()),
            seconds=seconds,
        )

    def _first_difference(self, state: State, other: State) -> int:
        """The first block in which two states differ (the number of blocks where they are equal)."""
        pairs = zip(state.heads, other.heads, state.ranks, other.ranks, strict=True)
        return next((place for place, (a, b, c, d) in enumerate(pairs) if a != b or c != d), len(self.blocks))

    @torch.no_grad()
    def _whole(self, state: State) -> Float[np.ndarray, "images classes"]:
        self.replacements.install(state)
        return np.concatenate([self.model(batch).float().cpu().numpy() for batch in self.batches])

    @torch.no_grad()
    def _keep(self, state: State) -> None:
        """Make what the blocks read in this state the one that is kept."""
        if state == self.kept:
            return
        first = 0 if self.kept is None else self._first_difference(state, self.kept)
        self.replacements.install(state)
        if self.kept is None:
            self._begin()
        for kept in self._inputs:
            start = first - first % self._every
            x = kept[start]
            for number in range(start, len(self.blocks) - 1):
                x = self.blocks[number](x)
                if (number + 1) % self._every == 0:
                    kept[number + 1] = x
        self.kept = state

    def _begin(self) -> None:
        """Keep what the first block reads, and find out how many others can be kept."""
        for batch, kept in zip(self.batches, self._inputs, strict=True):
            read: list[Tensor] = []
            hook = self.blocks[0].register_forward_pre_hook(lambda _, inputs, read=read: read.append(inputs[0]))
            try:
                self.model(batch)
            finally:
                hook.remove()
            kept[0] = read[0]
        one = sum(kept[0].numel() * kept[0].element_size() for kept in self._inputs)
        fit = max(self.memory // max(one, 1), 1)
        self._every = -(-len(self.blocks) // fit)

    @torch.no_grad()
    def _run(self, state: State, first: int) -> Float[np.ndarray, "images classes"]:
        """Outputs of a state that is the kept one up to block `first`."""
        first = min(first, len(self.blocks) - 1)
        start = first - first % self._every
        self.replacements.install(state)
        outputs = []
        for kept in self._inputs:
            x = kept[start]
            for block in self.blocks[start:]:
                x = block(x)
            outputs.append(self.model.forward_head(self.model.norm(x)).float().cpu().numpy())
        return np.concatenate(outputs)
