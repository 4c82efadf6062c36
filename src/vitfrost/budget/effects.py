"""What states of a model do to its outputs, on the same images: distance from the original, agreement with it, and top-1.

States share what comes before the first block in which they differ: what every block reads is kept for the state that the search is at,
so a change in block l only runs blocks l to L.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import VitfrostError
from ..evaluation.retrieval import nearest, unit_rows
from ..methods.output_distance import distances
from ..outputs import OutputKind
from ..vit.stream import ResidualStream
from .moves import State
from .replacements import Replacements

MEMORY = 1 << 30


@dataclass(frozen=True)
class Effect:
    """Means over the images. `kl`: KL(original || changed) in nats, of features the relative error, `kl_error` its standard error;
    agreement (of best classes, of features of the nearest other image) and top-1 in percent (`top1` None without labels); the seconds
    that it took."""

    kl: float
    kl_error: float
    agreement: float
    top1: float | None
    seconds: float = 0.0


class EffectMeter:
    """Measures states on images, in batches that never change.

    `labels`: one per image, or None; of features None. `outputs`: what the model gives. `memory`: bytes for what blocks read; where all
    of it does not fit, only every second block's (third, ...) is kept. The model is that of `replacements`, in evaluation mode.
    """

    def __init__(
        self,
        replacements: Replacements,
        batches: Sequence[Float[Tensor, "images 3 height width"]],
        labels: Sequence[int] | None = None,
        memory: int = MEMORY,
        outputs: OutputKind = "classes",
    ):
        self.outputs: OutputKind = outputs
        self.replacements, self.batches = replacements, list(batches)
        self.stream = ResidualStream(replacements.model)
        self.labels = None if labels is None else np.asarray(labels)
        self._blocks = range(len(self.stream.blocks))
        self._block_of_heads = [self.stream.block_of(site) for site in replacements.attention_sites]
        self._block_of_rank = [self.stream.block_of(site) for site in replacements.feed_forward_sites]
        self.memory = memory
        self.kept: State | None = None
        self._inputs: list[dict[int, Tensor]] = [{} for _ in self.batches]
        self._every = 1
        start = replacements.state
        self.teacher = self._whole(start)
        self._aims = self._answers(self.teacher)
        if not np.isfinite(self.teacher).all():
            raise VitfrostError("the outputs of the original are not finite on the images; check its weights")
        self.original = self._effect(self.teacher, 0.0)

    def measure(self, state: State, near: State) -> Effect:
        """The effect of a state that differs little from the state `near`, which the search is at."""
        start = time.perf_counter()
        self._keep(near)
        outputs = self._run(state, self._first_difference(state, near))
        if not np.isfinite(outputs).all():
            raise VitfrostError(f"the outputs are not finite with {state.key}; check the statistics, and calibrate again")
        return self._effect(outputs, time.perf_counter() - start)

    def _answers(self, outputs: np.ndarray) -> np.ndarray:
        """What every image is taken for: its best class, or of features the other image that is nearest to it."""
        return outputs.argmax(axis=1) if self.outputs == "classes" else nearest(unit_rows(outputs.reshape(len(outputs), -1)))

    def _effect(self, outputs: np.ndarray, seconds: float) -> Effect:
        divergence = np.concatenate(
            [
                distances(self.outputs, torch.from_numpy(aims).double(), torch.from_numpy(found).double()).clamp_min(0).numpy()
                for aims, found in zip(_parts(self.teacher), _parts(outputs), strict=True)
            ]
        )
        best = self._answers(outputs)
        return Effect(
            kl=float(divergence.mean()),
            kl_error=float(divergence.std(ddof=1) / np.sqrt(len(divergence))) if len(divergence) > 1 else 0.0,
            agreement=100 * float((best == self._aims).mean()),
            top1=None if self.labels is None else 100 * float((best == self.labels).mean()),
            seconds=seconds,
        )

    def _first_difference(self, state: State, other: State) -> int:
        """The first block in which two states differ (the number of blocks where they are equal)."""
        heads = zip(self._block_of_heads, state.heads, other.heads, strict=True)
        ranks = zip(self._block_of_rank, state.ranks, other.ranks, strict=True)
        windows = zip(self._block_of_heads, state.windows, other.windows, strict=True)
        differing = [block for block, own, others in (*heads, *ranks, *windows) if own != others]
        return min(differing, default=len(self._blocks))

    @torch.no_grad()
    def _whole(self, state: State) -> Float[np.ndarray, images * outputs]:
        self.replacements.install(state)
        return np.concatenate([self.replacements.model(batch).float().cpu().numpy() for batch in self.batches])

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
            for number in self._blocks[start:-1]:
                x = self.stream.run(x, number, number + 1)
                if (number + 1) % self._every == 0:
                    kept[number + 1] = x
        self.kept = state

    def _begin(self) -> None:
        """Keep what the first block reads, and find out how many others can be kept."""
        for batch, kept in zip(self.batches, self._inputs, strict=True):
            kept[0] = self.stream.enter(batch)
        one = sum(kept[0].numel() * kept[0].element_size() for kept in self._inputs)
        fit = max(self.memory // max(one, 1), 1)
        self._every = -(-len(self._blocks) // fit)

    def _run(self, state: State, first: int) -> Float[np.ndarray, images * outputs]:
        """Outputs of a state that is the kept one up to block `first`."""
        first = min(first, len(self._blocks) - 1)
        start = first - first % self._every
        self.replacements.install(state)
        outputs = [self.stream.leave(self.stream.run(kept[start], start)) for kept in self._inputs]
        return np.concatenate([logits.float().cpu().numpy() for logits in outputs])


def _parts(outputs: np.ndarray, rows: int = 64) -> list[np.ndarray]:
    """Some images at a time, which become float64."""
    return [outputs[start : start + rows] for start in range(0, len(outputs), rows)]
