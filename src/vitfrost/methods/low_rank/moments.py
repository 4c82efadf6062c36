"""First and second moments of what a layer reads, summed over batches."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 8192


class InputMoments:
    """Sums of h and h h^T over all tokens that were added, on the device of the activations.

    Products are in float32 (float64 for activations in float64) over chunks of tokens, their sums in float64. Activations are
    shifted by the mean of the first chunk before they are multiplied and shifted back in float64, so a large mean does not drown
    the covariance.
    """

    def __init__(self, channels: int, channels_first: bool = False):
        self.channels, self.channels_first = channels, channels_first
        self.count = 0
        self._shift = torch.zeros(channels)
        self._sums = torch.zeros(channels, dtype=torch.float64)
        self._products = torch.zeros(0, 0, dtype=torch.float64)

    @torch.no_grad()
    def add(self, inputs: Float[Tensor, "*sizes"]) -> None:
        """Add activations [..., channels], or [B, channels, ...] in channel-first form. Raises ValueError for other channels."""
        if self.channels_first:
            inputs = inputs.movedim(1, -1)
        if inputs.shape[-1] != self.channels:
            raise ValueError(f"activations of {inputs.shape[-1]} channels do not fit moments of {self.channels}")
        rows = inputs.reshape(-1, self.channels)
        with torch.autocast(rows.device.type, enabled=False):
            for chunk in rows.split(CHUNK):
                self._add_chunk(chunk.to(torch.promote_types(chunk.dtype, torch.float32)))

    def _add_chunk(self, rows: Float[Tensor, "tokens channels"]) -> None:
        if not len(rows):
            return
        if not self.count:
            self._shift = rows.mean(0)
            self._sums = self._sums.to(rows.device)
            self._products = self._sums.new_zeros(self.channels, self.channels)
        rows = rows - self._shift
        self._products += rows.T @ rows
        self._sums += rows.sum(0, dtype=torch.float64)
        self.count += len(rows)

    @property
    def second_moment(self) -> Float[Tensor, "channels channels"]:
        """E[h h^T] in float64. Raises ValueError where nothing was added."""
        shift, rest = self._shift.double(), self._sums / self._tokens()
        half = self._products / (2 * self.count) + torch.outer(shift, rest + shift / 2)
        return half + half.T

    @property
    def mean(self) -> Float[Tensor, " channels"]:
        """E[h] in float64. Raises ValueError where nothing was added."""
        return self._shift.double() + self._sums / self._tokens()

    def _tokens(self) -> int:
        if not self.count:
            raise ValueError("no activations were added")
        return self.count
