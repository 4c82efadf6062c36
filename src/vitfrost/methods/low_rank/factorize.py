"""A weight as a product of two thin ones, best for the inputs it meets. Formulas only.

Shapes: d outputs, m inputs (hidden channels), r rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """weight ~ up down in float64, the bias that goes with them, and what is lost.

    `error`: root of the mean squared change of the output (summed over outputs); without calibration inputs, the Frobenius norm
    of weight - up down. `relative_error` divides by the same of the output without its bias (and its mean, where one was given).
    """

    up: Float[Tensor, "outputs rank"]
    down: Float[Tensor, "rank inputs"]
    bias: Float[Tensor, " outputs"]
    error: float
    relative_error: float


@torch.no_grad()
def factorize(
    weight: Float[Tensor, "outputs inputs"],
    bias: Float[Tensor, " outputs"] | None,
    rank: int,
    second_moment: Float[Tensor, "inputs inputs"] | None = None,
    mean: Float[Tensor, " inputs"] | None = None,
) -> Factors:
    """The rank-r product that changes the layer's output least over the calibration inputs h.

    Minimises E |(W - U V) h|^2 = |(W - U V) C^(1/2)|_F^2 with C = E[h h^T] (`second_moment`). With the left singular vectors P of
    W C^(1/2), the eigenvectors of W C W^T, the optimum is U V = P_r P_r^T W, which needs neither root nor inverse of C, so C may be
    singular; the error is the tail of the singular values (known to 1e-8 of the largest). With the `mean` E[h] the bias takes over
    the mean's part, b' = b + (W - U V) E[h], and C is centered first. Without `second_moment`: plain SVD.
    Scales are split so that every column of U is as long as its row of V, U = P S^(1/2) and
    V = S^(1/2) Q^T in plain SVD. Raises ValueError for a rank outside 1..min(outputs, inputs).
    """
    if not 1 <= rank <= min(weight.shape):
        raise ValueError(f"a weight of shape {tuple(weight.shape)} has no factors of rank {rank}")
    weight = weight.double()
    mean = None if mean is None else mean.to(weight)
    if second_moment is None:
        left, values, _ = torch.linalg.svd(weight, full_matrices=False)
    else:
        left, values = _output_directions(weight, second_moment.to(weight), mean)
    up = left[:, :rank]
    down = up.T @ weight
    lengths = down.norm(dim=1)
    scale = torch.where(lengths > 0, lengths, 1).sqrt()
    up, down = up * scale, down / scale[:, None]
    new_bias = weight.new_zeros(len(weight)) if bias is None else bias.double()
    if mean is not None:
        new_bias = new_bias + (weight - up @ down) @ mean
    error, whole = float(values[rank:].norm()), float(values.norm())
    return Factors(up, down, new_bias, error, error / whole if whole else 0.0)


def _output_directions(
    weight: Float[Tensor, "outputs inputs"], moments: Float[Tensor, "inputs inputs"], mean: Float[Tensor, " inputs"] | None
) -> tuple[Float[Tensor, "outputs outputs"], Float[Tensor, " outputs"]]:
    """Principal directions of the layer's outputs and their root mean squares, largest first; rounding below zero counts as zero."""
    centered = moments if mean is None else moments - torch.outer(mean, mean)
    outputs = weight @ centered @ weight.T
    energies, directions = torch.linalg.eigh((outputs + outputs.T) / 2)
    return directions.flip(1), energies.flip(0).clamp(min=0).sqrt()
